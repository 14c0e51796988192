"""Batches of VTP's pre-training: subsets, masks, crops and captions, on any number of processes."""

import itertools

import numpy as np
import pytest
import torch
from training.tiny_pretraining import captioned_digits
from transformers import BertTokenizerFast

from titok_hf import VTPConfig, VTPImageProcessor, VTPProcessor
from titok_hf.data import Augmentation
from titok_hf.data.legs import Leg
from titok_hf.data.loader import TrainingLoader
from titok_hf.data.multi_crop import MultiCrop
from titok_hf.data.pretraining import Masking, PretrainingCollator, Subset
from titok_hf.data.samples import IndexedSamples
from titok_hf.data.text_tokenizers import train_text_tokenizer, with_end_token
from titok_hf.modeling.vtp.processing_vtp import check_tokenizer

GLOBAL = 12
PER_SAMPLE = ("pixel_values", "input_ids", "captions_cut", "draws")
PER_CROP = ("global_crops", "local_crops", "patch_mask")


@pytest.fixture(scope="module")
def rows():
    return IndexedSamples(captioned_digits(30), label_column=None, text_column="text")


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(["the digit zero", "one two three"], 300)


@pytest.fixture(scope="module")
def make_collator(tokenizer):
    def make(batch_size=GLOBAL, **arguments):
        defaults = {
            "tokenizer": tokenizer,
            "context_length": 8,
            "reconstruction": Subset("reconstruction", 4, GLOBAL, batch_size, 0),
            "self_supervision": Subset("self_supervision", 8, GLOBAL, batch_size, 1),
            "multi_crop": MultiCrop(32, 16, 2, patch_size=4),
            "augmentation": Augmentation("resized", least_area=0.5),
        }
        processor = VTPImageProcessor.from_image_size(32)
        return PretrainingCollator(processor, **(defaults | arguments))

    return make


@pytest.fixture(scope="module")
def load(rows, make_collator):
    """The first batches of a process."""

    def load(count, batch_size=GLOBAL, rank=0, world_size=1, start_batch=0, legs=(), **arguments):
        loader = TrainingLoader(
            rows,
            make_collator(batch_size, **arguments).collate,
            batch_size,
            rank=rank,
            world_size=world_size,
            accumulated=GLOBAL // (batch_size * world_size),
            start_batch=start_batch,
            num_draws=3,
            legs=legs,
        )
        return [*itertools.islice(loader, count)]

    return load


def assert_parts(whole, parts):
    """Asserts that parts of a global batch, in order, are the whole."""
    for name in PER_SAMPLE:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), name
    for name in PER_CROP:
        assert torch.equal(torch.cat([part[name] for part in parts], 1), whole[name]), name
    size = GLOBAL // len(parts)
    for name in ("reconstruction_rows", "ssl_rows"):
        shifted = [part[name] + i * size for i, part in enumerate(parts)]
        assert torch.equal(torch.cat(shifted), whole[name])


class TestGlobalBatches:
    @pytest.mark.parametrize("world_size", [2, 4])
    def test_the_parts_of_processes_are_the_batch_of_one(self, load, world_size):
        whole = load(3)
        size = GLOBAL // world_size
        ranks = [load(3, size, rank, world_size) for rank in range(world_size)]
        for step in range(3):
            assert_parts(whole[step], [batches[step] for batches in ranks])

    def test_so_are_those_of_accumulated_batches(self, load):
        accumulated = load(6, GLOBAL // 2)
        for step, whole in enumerate(load(3)):
            assert_parts(whole, accumulated[2 * step : 2 * step + 2])

    def test_a_run_goes_on_with_the_same_batches(self, load):
        for again, whole in zip(load(2, start_batch=1), load(3)[1:], strict=True):
            assert all(torch.equal(again[name], values) for name, values in whole.items())

    @pytest.mark.parametrize("processes", [1, 2])
    def test_so_does_one_with_other_numbers_of_processes_and_accumulated_batches(
        self, load, processes
    ):
        size = GLOBAL // 4
        leg = Leg(1, GLOBAL, world_size=1, num_workers=1, shuffle_buffer=1000)
        whole = load(2)[1]
        ranks = [
            load(4 // processes, size, rank, processes, legs=[leg]) for rank in range(processes)
        ]
        assert_parts(whole, [batch for batches in zip(*ranks, strict=True) for batch in batches])

    def test_steps_have_other_subsets(self, load):
        for name, size in (("reconstruction_rows", 4), ("ssl_rows", 8)):
            chosen = [tuple(batch[name].tolist()) for batch in load(6)]
            assert len({*chosen}) > 3
            for rows in chosen:
                assert len({*rows}) == size and sorted(rows) == list(rows)


class TestCrops:
    def test_masks_indices_and_weights_belong_together(self, load):
        for batch in load(3):
            mask = batch["patch_mask"]
            assert mask.shape == (2, 8, 64) and mask.dtype == torch.bool
            assert mask.flatten()[batch["masked_indices"]].all()
            counts = mask.sum(-1)
            assert len(batch["masked_indices"]) == counts.sum() == len(batch["mask_weights"])
            assert (counts > 0).sum() == 8  # half of the 16 global crops
            torch.testing.assert_close(batch["mask_weights"].sum(), torch.tensor(8.0))
            edges = 64 * np.linspace(0.1, 0.5, 9)
            found = np.sort(counts[counts > 0].numpy())
            assert (edges[:-1].astype(int) <= found).all() and (found <= edges[1:]).all()

    def test_the_masking_is_configurable(self, load):
        [batch] = load(1, masking=Masking(probability=1.0, least=0.25, largest=0.25))
        assert (batch["patch_mask"].sum(-1) == 16).all()

    def test_shapes(self, load):
        [batch] = load(1)
        assert batch["global_crops"].shape == (2, 8, 3, 32, 32)
        assert batch["local_crops"].shape == (2, 8, 3, 16, 16)
        assert batch["pixel_values"].shape == (GLOBAL, 3, 32, 32)
        assert batch["input_ids"].shape == (GLOBAL, 8)

    def test_only_what_is_needed_is_made(self, load):
        [batch] = load(1, tokenizer=None, self_supervision=None)
        assert batch.keys() == {"pixel_values", "reconstruction_rows", "draws"}
        assert len(batch["pixel_values"]) == 4
        [whole] = load(1, self_supervision=None)
        of_subset = whole["pixel_values"][whole["reconstruction_rows"]]
        assert batch["pixel_values"].shape == of_subset.shape
        [batch] = load(1, tokenizer=None, reconstruction=None)
        assert "pixel_values" not in batch


class TestCaptions:
    def test_each_caption_of_a_list_is_drawn(self, load, tokenizer):
        seen = {
            tokenizer.decode(ids, skip_special_tokens=True).strip()
            for batch in load(12)
            for ids in batch["input_ids"]
        }
        assert {"three", "the digit three"} <= seen

    def test_long_captions_are_cut_before_the_end_and_counted(self, make_collator, tokenizer):
        collator = make_collator(context_length=4)
        texts = ["one", "one two three", "one two three one two", "one two three one two three"]
        batch = collator.tokenize(texts)
        assert batch["captions_cut"].tolist() == [False, False, True, True]
        end = len(tokenizer) - 1
        assert batch["input_ids"].shape == (4, 4)
        assert (batch["input_ids"] == end).any(1).all()
        assert batch["input_ids"][2].tolist() == batch["input_ids"][1].tolist()

    def test_evaluation_takes_the_first(self, make_collator, tokenizer):
        batch = make_collator()(list(captioned_digits(4)))
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]
        assert all(text.strip().startswith("the digit") for text in texts)
        assert "global_crops" not in batch

    def test_evaluation_takes_an_empty_text_where_there_is_none(self, make_collator):
        rows = [
            row | {"text": text}
            for row, text in zip(captioned_digits(3), ([], None, "one"), strict=True)
        ]
        assert make_collator()(rows)["input_ids"].shape == (3, 8)

    def test_the_collator_leaves_the_tokenizer_as_it_is(self, make_collator, tokenizer):
        make_collator().tokenize(["one two three " * 20])
        assert tokenizer.backend_tokenizer.truncation is None


class TestTokenizers:
    def test_a_trained_one_knows_every_text_and_ends_it(self, tokenizer, tmp_path):
        tokenizer.model_max_length = 8
        processor = VTPProcessor(VTPImageProcessor(), tokenizer)
        processor.save_pretrained(tmp_path)
        loaded = VTPProcessor.from_pretrained(tmp_path).tokenizer
        for text in ("Ein Wörterbuch", "数字", "🙂"):
            ids = loaded(text)["input_ids"]
            assert ids[-1] == len(loaded) - 1 and ids == tokenizer(text)["input_ids"]
            assert loaded.decode(ids, skip_special_tokens=True).strip() == text.lower()
        check_tokenizer(loaded, VTPConfig(), "the folder")

    def test_others_get_an_end_of_the_largest_id(self, tmp_path):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two"]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        bert = with_end_token(BertTokenizerFast(str(tmp_path / "vocab.txt")))
        assert bert("one two")["input_ids"] == [5, 6, 7]
        assert len(bert) == 8 and bert.pad_token_id == 0
        assert with_end_token(bert)("one")["input_ids"] == [5, 7]  # and not a second one
        check_tokenizer(bert, VTPConfig(text_vocab_size=8), "BERT")
        with pytest.raises(ValueError, match="has 8 entries, the model only 7"):
            check_tokenizer(bert, VTPConfig(text_vocab_size=7), "BERT")


class TestBadInput:
    @pytest.mark.parametrize(
        ("size", "batch_size", "message"),
        [
            (13, 12, "`size` must be from 1 to the 12 images of an optimizer step, got 13"),
            (0, 12, "from 1 to the 12"),
            (3, 6, "`size` must be a multiple of 2, so that the 2 batches of 6 .* hold as many"),
        ],
    )
    def test_subsets(self, size, batch_size, message):
        with pytest.raises(ValueError, match=message):
            Subset("size", size, GLOBAL, batch_size, 0)

    def test_masks(self):
        with pytest.raises(ValueError, match="`probability` must be a share"):
            Masking(probability=1.5)
        with pytest.raises(ValueError, match="`least` and `largest` must be shares"):
            Masking(least=0.5, largest=0.4)
