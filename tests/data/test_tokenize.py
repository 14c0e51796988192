"""Images to folders of tokens: what is in them, and that kills, processes and workers change
nothing."""

import json
import os
import tarfile

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, List, Value, load_dataset
from PIL import Image
from pyarrow import parquet
from torch._dynamo.utils import counters

from titok_hf import TiTokImageProcessor, TiTokModel, VTPForImageReconstruction, VTPImageProcessor
from titok_hf.data import Augmentation, open_images
from titok_hf.data.tokenize import default_workers
from titok_hf.devices import check_backend

from .sources import encoded, picture, write_images, write_shards

pytestmark = pytest.mark.slow

PROCESSOR = TiTokImageProcessor.from_image_size(32)


@torch.no_grad()
def codes_of(model, images, processor=PROCESSOR):
    """Codes of images, each encoded alone."""
    return [
        model.encode(processor(image, return_tensors="pt")["pixel_values"]).codes[0].tolist()
        for image in images
    ]


def rows_of(folder, split="train"):
    return load_dataset(str(folder), split=split)[:]


class TestContent:
    def test_of_an_image_folder(self, titok, tokenize, tmp_path):
        pictures = write_images(tmp_path / "images", {"train": 7, "test": 3})
        folder, record = tokenize("images", part_size=3)

        assert sorted(path.name for path in (folder / "data").iterdir()) == [
            "test-00000-of-00001.parquet",
            "train-00000-of-00003.parquet",
            "train-00001-of-00003.parquet",
            "train-00002-of-00003.parquet",
        ]
        assert {path.name for path in folder.iterdir()} == {"README.md", "data", "tokenize.json"}
        assert not folder.with_name("tokens.partial").exists()
        tokens = load_dataset(str(folder))
        assert tokens["train"].features == {
            "key": Value("string"),
            "label": ClassLabel(names=["cat", "dog"]),
            "codes": List(Value("uint8"), length=8),
        }
        for split in ("train", "test"):
            rows = tokens[split][:]
            expected = sorted(pictures[split])
            assert rows["key"] == expected
            assert rows["label"] == [int("dog" in key) for key in expected]
            assert rows["codes"] == codes_of(titok, [pictures[split][key] for key in expected])
        assert len({tuple(codes) for codes in tokens["train"]["codes"]}) > 4

        opened = open_images(str(folder))["test"]
        assert opened.token_column == "codes" and opened.class_names == ["cat", "dog"]
        assert [row.tokens.tolist() for row in opened.read(0, 3)] == tokens["test"]["codes"][:]
        assert [row.label for row in opened.read(0, 3)] == tokens["test"]["label"][:]
        assert record["command"]["tokenizer"]["class"] == "TiTokModel"
        assert record["command"]["source"] == str(tmp_path / "images")
        assert json.loads((folder / "tokenize.json").read_text()) == record

    def test_of_tar_shards(self, titok, tokenize, tmp_path):
        pictures = write_shards(tmp_path / "shards", [5, 1, 4])
        folder, _ = tokenize("shards/*.tar", num_workers=2)
        assert [
            parquet.read_metadata(path).num_rows for path in sorted((folder / "data").iterdir())
        ] == [5, 1, 4]
        rows = rows_of(folder)
        assert rows["key"] == list(pictures)
        assert rows["codes"] == codes_of(titok, pictures.values())
        assert rows["label"] == [(i + 1) % 3 for i in range(10)]

    def test_of_one_split_without_labels(self, titok, tokenize, tmp_path):
        for number in range(4):
            picture(number).save(tmp_path / f"{number}.png")
        files = [str(tmp_path / f"{number}.png") for number in range(4)]
        DatasetDict(
            train=Dataset.from_dict({"picture": files}),
            other=Dataset.from_dict({"picture": files[1:3]}),
        ).save_to_disk(tmp_path / "saved")
        columns = {"image_column": "picture", "label_column": None}
        folder, record = tokenize("saved", split="other", **columns)
        tokens = load_dataset(str(folder))
        assert list(tokens) == ["other"] and tokens["other"].column_names == ["key", "codes"]
        assert tokens["other"]["codes"][:] == codes_of(titok, [picture(1), picture(2)])
        assert record["result"]["splits"]["other"]["rows"] == 2

    @pytest.mark.parametrize(
        ("codebook_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65537, "uint32")]
    )
    def test_integers_are_as_small_as_can_be(
        self, make_titok_config, tokenize, tmp_path, codebook_size, dtype
    ):
        model = TiTokModel(make_titok_config(codebook_size=codebook_size)).eval()
        model.save_pretrained(tmp_path / "other")
        pictures = write_images(tmp_path / "images", {"train": 3, "test": 1})
        folder, _ = tokenize("images", tokenizer=tmp_path / "other")
        tokens = load_dataset(str(folder))["train"]
        assert tokens.features["codes"] == List(Value(dtype), length=8)
        assert tokens["codes"][:] == codes_of(
            model, [pictures["train"][key] for key in tokens["key"]]
        )

    @pytest.mark.parametrize("family", ["titok", "vtp"])
    def test_latents_and_their_statistics(
        self, make_titok_config, make_vtp_config, tokenize, tmp_path, family
    ):
        if family == "titok":
            model, processor = (
                TiTokModel(make_titok_config("pixels", quantizer="kl")).eval(),
                PROCESSOR,
            )
        else:
            model = VTPForImageReconstruction(make_vtp_config(latent_dim=5)).eval()
            processor = VTPImageProcessor.from_image_size(32)
        model.save_pretrained(tmp_path / "continuous")
        processor.save_pretrained(tmp_path / "continuous")
        pictures = write_images(tmp_path / "images", {"train": 7, "test": 3})
        flip = Augmentation(horizontal_flip=True)
        folder, _ = tokenize("images", tokenizer=tmp_path / "continuous", part_size=3)
        flipped, _ = tokenize(
            "images", "flipped", tokenizer=tmp_path / "continuous", part_size=3, augmentation=flip
        )

        def latents_of(split):
            images = [pictures[split][key] for key in sorted(pictures[split])]
            with torch.no_grad():
                return model.encode(processor(images, return_tensors="pt")["pixel_values"]).latents

        tokens = load_dataset(str(folder)).with_format("torch")
        assert tokens["train"].features["latents"].dtype == "float32"
        for split in ("train", "test"):
            torch.testing.assert_close(
                tokens[split]["latents"][:], latents_of(split), atol=1e-4, rtol=1e-4
            )
        twice = load_dataset(str(flipped)).with_format("torch")["train"]["latents"][:]  # (7, 2, …)
        torch.testing.assert_close(twice[:, 0], latents_of("train"), atol=1e-4, rtol=1e-4)
        for path, stored in (
            (folder, tokens["train"]["latents"][:]),
            (flipped, twice.flatten(0, 1)),
        ):
            statistics = json.loads((path / "latent_statistics.json").read_text())
            channels = (
                stored.double().flatten(0, 1)
                if family == "titok"
                else stored.double().movedim(1, -1).flatten(0, 2)
            )
            assert np.allclose(statistics["mean"], channels.mean(0), rtol=1e-9, atol=1e-12)
            assert np.allclose(statistics["std"], channels.std(0, correction=0), rtol=1e-6)

    def test_copies_are_the_crops_one_by_one(self, titok, tokenize, tmp_path):
        """At 40x48 pixels, 1.25 times the crop's shorter side, nothing is resized: crops are
        slices."""
        pictures = [picture(number, (48, 40)) for number in range(3)]
        for number, image in enumerate(pictures):
            path = tmp_path / "images" / "train" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        arguments = {"label_column": None, "split": "train", "batch_size": 25}
        folder, _ = tokenize("images", augmentation=Augmentation("ten", 1.25), **arguments)
        tokens = load_dataset(str(folder), split="train")
        assert tokens.features["codes"] == List(List(Value("uint8"), length=8), length=10)
        corners = [(0, 0), (0, 16), (8, 0), (8, 16), (4, 8)]
        for image, codes in zip(pictures, tokens["codes"], strict=True):
            pixels = np.asarray(image)
            crops = [pixels[top : top + 32, left : left + 32] for top, left in corners]
            crops += [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]
            assert codes == codes_of(titok, map(Image.fromarray, crops))

        folder, _ = tokenize(
            "images", "flipped", augmentation=Augmentation(horizontal_flip=True), **arguments
        )
        tensors = PROCESSOR(pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = torch.stack(
                [titok.encode(tensors).codes, titok.encode(tensors.flip(-1)).codes], dim=1
            )
        assert load_dataset(str(folder), split="train")["codes"][:] == expected.tolist()

    def test_of_a_tokenizer_in_half_precision(self, titok, tokenize, tmp_path):
        pictures = write_images(tmp_path / "images", {"train": 6, "test": 1})
        folder, record = tokenize("images", dtype="bfloat16")
        titok.to(torch.bfloat16)
        images = [pictures["train"][key] for key in sorted(pictures["train"])]
        with torch.no_grad():
            pixel_values = PROCESSOR(images, return_tensors="pt")["pixel_values"].bfloat16()
            expected = torch.cat([titok.encode(batch).codes for batch in pixel_values.split(4)])
        assert rows_of(folder)["codes"] == expected.tolist()
        assert record["command"]["dtype"] == "bfloat16"

    def test_by_a_compiled_encoder(self, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 7, "test": 3})
        arguments = {"augmentation": Augmentation(horizontal_flip=True), "batch_size": 4}
        folder, record = tokenize("images", part_size=3, **arguments)
        check_backend("inductor", torch.device("cpu"))  # is compiled once in a process
        graphs = counters["stats"]["unique_graphs"]
        compiled, compiled_record = tokenize(
            "images", "compiled", part_size=3, compiled=True, **arguments
        )
        assert counters["stats"]["unique_graphs"] == graphs + 1  # for all sizes of batches
        assert compiled_record["command"] == record["command"] | {"compiled": True}
        for split in ("train", "test"):
            expected, found = rows_of(folder, split), rows_of(compiled, split)
            assert found["key"] == expected["key"]
            differ = np.array(found["codes"]) != np.array(expected["codes"])
            assert differ.sum() <= 1  # a tie that rounding decides

    def test_a_streamed_folder_of_parquet(self, titok, tokenize, tmp_path):
        images = [{"bytes": encoded(picture(number)), "path": None} for number in range(5)]
        (tmp_path / "files").mkdir()
        for part, rows in enumerate((slice(0, 2), slice(2, 5))):
            dataset = Dataset.from_dict(
                {"image": images[rows], "label": [0, 1, 2][: len(images[rows])]}
            )
            dataset.to_parquet(tmp_path / "files" / f"train-{part}.parquet")
        folder, record = tokenize("files", streaming=True)
        assert record["command"]["parts"] == {"train": [2, 3]}
        assert rows_of(folder)["codes"] == codes_of(titok, map(picture, range(5)))


class TestUnreadable:
    @pytest.fixture
    def images(self, tmp_path):
        """Two of ten images are broken, one of them the only one of its batch; returns the
        others."""
        pictures = write_images(tmp_path / "images", {"train": 10, "test": 2})
        folder = tmp_path / "images" / "train"
        (folder / "cat" / "002.png").write_bytes(b"no image")
        (folder / "dog" / "009.png").write_bytes((folder / "dog" / "009.png").read_bytes()[:60])
        return {
            key: image
            for key, image in pictures["train"].items()
            if key[-7:-4] not in ("002", "009")
        }

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_images_are_left_out_and_listed(self, titok, tokenize, images, num_workers):
        folder, record = tokenize(
            "images", part_size=3, max_unreadable=0.2, num_workers=num_workers
        )
        rows = rows_of(folder)
        assert rows["key"] == sorted(images)
        assert rows["codes"] == codes_of(titok, [images[key] for key in sorted(images)])
        listed = [
            json.loads(line) for line in (folder / "unreadable.jsonl").read_text().splitlines()
        ]
        assert [(entry["split"], entry["key"]) for entry in listed] == [
            ("train", "train/cat/002.png"),
            ("train", "train/dog/009.png"),
        ]
        assert "no image" in listed[0]["reason"] and listed[1]["reason"]
        assert record["result"]["splits"]["train"]["unreadable"] == 2
        assert record["result"]["splits"]["test"] == {
            **record["result"]["splits"]["test"],
            "rows": 2,
            "unreadable": 0,
        }
        assert "`unreadable.jsonl` lists it" in (folder / "README.md").read_text()

    def test_too_many_stop_the_run_and_what_is_done_stays(self, tokenize, images, tmp_path):
        sentence = r"2 of the 10 images of the split 'train' cannot be read, more than the share of 0.1 .*dog/009.png"
        for _ in range(2):
            with pytest.raises(ValueError, match=sentence):
                tokenize("images", part_size=3, max_unreadable=0.1)
            assert not (tmp_path / "tokens").exists()
            done = {path: path.stat() for path in (tmp_path / "tokens.partial" / "data").iterdir()}
            assert len(done) == 3
        folder, _ = tokenize("images", part_size=3, max_unreadable=0.5)
        after = {path.name: path.stat() for path in (folder / "data").iterdir()}
        assert len(after) == 5 and all(
            after[path.name].st_mtime_ns == stat.st_mtime_ns for path, stat in done.items()
        )

    def test_more_may_be_unreadable_than_in_the_processes_parts(self, tokenize, images, tmp_path):
        """Unreadable images from before a restart count."""
        with pytest.raises(ValueError, match=r"1 of the 10 images .* share of 0 "):
            tokenize("images", part_size=1, max_unreadable=0)
        tokenize("images", part_size=1, max_unreadable=0.5)
        (tmp_path / "tokens").rename(tmp_path / "tokens.partial")
        next((tmp_path / "tokens.partial" / "data").glob("train-00009*")).unlink()
        with pytest.raises(ValueError, match="2 of the 10 images"):
            tokenize("images", part_size=1, max_unreadable=0.1)

    def test_a_truncated_shard_is_listed(self, titok, tokenize, tmp_path):
        pictures = write_shards(tmp_path / "shards", [4, 4])
        path = tmp_path / "shards" / "train-0001.tar"
        with tarfile.open(path) as archive:
            third = archive.getmember("00006.png")
        with path.open("rb+") as file:
            file.truncate(third.offset_data + 10)
        with pytest.raises(ValueError, match=r"1 of the .*train-0001\.tar"):
            tokenize("shards/*.tar")
        folder, record = tokenize("shards/*.tar", max_unreadable=0.2)
        rows = rows_of(folder)
        assert rows["key"] == list(pictures)[:6]
        assert rows["codes"] == codes_of(titok, [pictures[key] for key in rows["key"]])
        [entry] = [
            json.loads(line) for line in (folder / "unreadable.jsonl").read_text().splitlines()
        ]
        assert entry["key"].endswith("train-0001.tar") and entry["reason"]
        assert record["result"]["splits"]["train"]["unreadable"] == 1

    def test_a_part_without_a_readable_image(self, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 6, "test": 2})
        for name in ("cat/004.png", "dog/001.png"):  # the second part, in the order of the files
            (tmp_path / "images" / "train" / name).write_bytes(b"")
        folder, _ = tokenize("images", part_size=2, max_unreadable=0.5)
        assert [
            parquet.read_metadata(path).num_rows for path in sorted(folder.glob("data/train*"))
        ] == [2, 0, 2]
        assert [key[-7:-4] for key in rows_of(folder)["key"]] == ["000", "002", "003", "005"]
        with pytest.raises(ValueError, match="cannot be read"):
            tokenize("images", "other")


class TestRefusals:
    def test_of_an_augmentation_without_end(self, tokenize):
        with pytest.raises(
            ValueError, match=r"fixed number of variants is expected, got .*crop='random'"
        ):
            tokenize("images", augmentation=Augmentation("random"))

    def test_of_tokens(self, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        tokenize("images")
        with pytest.raises(ValueError, match="holds tokens already"):
            tokenize("tokens", "again")

    def test_of_images_of_another_size_before_anything_is_written(
        self, titok, tokenizer, tokenize, tmp_path
    ):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        TiTokImageProcessor.from_image_size(16).save_pretrained(tokenizer)
        with pytest.raises(ValueError, match=r"must have shape \(batch, 3, 32, 32\)"):
            tokenize("images")
        assert not (tmp_path / "tokens.partial").exists()

    def test_of_what_is_no_tokenizer(self, generator, tokenize, tmp_path):
        generator.save_pretrained(tmp_path / "generator")
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        with pytest.raises(ValueError, match="must be a tokenizer"):
            tokenize("images", tokenizer=tmp_path / "generator")

    def test_of_a_worker_is_one_sentence(self, tokenize, tmp_path):
        """A shard that changes after it was counted."""
        dataset = Dataset.from_dict(
            {"image": [{"bytes": encoded(picture(0)), "path": None}] * 3, "label": [0, 1, -1]}
        )
        dataset.save_to_disk(tmp_path / "saved")
        with pytest.raises(ValueError) as caught:
            tokenize("saved", num_workers=1, split="train")
        assert "Traceback" not in str(caught.value)


def test_the_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_workers() == 0
