"""Recall of retrieval, and how alike neighboring latents are."""

import json

import pytest
import torch
from datasets import DatasetDict, Value
from torch.nn import functional as F
from training.tiny_pretraining import captioned_digits, make_model, tokenizer
from typer.testing import CliRunner

from titok_hf import VTPImageProcessor, VTPProcessor
from titok_hf.cli import app
from titok_hf.evaluation import (
    local_spatial_similarity,
    measure_representations,
    region_self_similarity,
    retrieval_recall,
)


class TestRecall:
    def test_of_known_places(self):
        images = torch.eye(4)
        # the text of image 2 is nearer to image 0, that of image 3 to all others
        texts = torch.tensor(
            [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0.9, 0, 0.4, 0], [0.9, 0.8, 0.7, 0.1]]
        )
        found = retrieval_recall(images, texts, ranks=(1, 2, 3, 4))
        assert [found[f"image_recall_at_{k}"].value for k in (1, 2, 3, 4)] == [0.5, 0.75, 0.75, 1.0]
        assert [found[f"text_recall_at_{k}"].value for k in (1, 2, 3, 4)] == [0.75, 1.0, 1.0, 1.0]
        assert found["text_recall_at_1"].standard_error == pytest.approx(0.25)

    def test_a_collapsed_embedding_finds_nothing(self):
        same = torch.ones(8, 3)
        found = retrieval_recall(same, same, ranks=(1, 5, 8))
        assert [found[f"text_recall_at_{k}"].value for k in (1, 5, 8)] == [0.0, 0.0, 1.0]

    def test_any_text_of_an_image_counts(self):
        images = F.normalize(torch.randn(3, 8), dim=1)
        texts = torch.cat([-images[:1], images])
        found = retrieval_recall(images, texts, torch.tensor([0, 0, 1, 2]), ranks=(1,))
        assert found["text_recall_at_1"].value == 1.0
        assert found["image_recall_at_1"].value == 0.75

    def test_chance(self):
        generator = torch.Generator().manual_seed(0)
        images, texts = (
            F.normalize(torch.randn(600, 16, generator=generator), dim=1) for _ in range(2)
        )
        found = retrieval_recall(images, texts, ranks=(10,))
        assert found["image_recall_at_10"].value == pytest.approx(10 / 600, abs=0.02)


class TestSpatialSimilarity:
    def test_of_a_checkerboard_and_of_halves(self):
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        board = (1.0 - 2 * ((rows + columns) % 2))[None, None]
        halves = torch.where(columns < 4, 1.0, -1.0)[None, None]
        near_of_halves = (7 * 8 + 6 * 8 - 8) / (2 * 7 * 8)  # 8 of 112 pairs differ
        [of_board], [of_halves] = (local_spatial_similarity(x) for x in (board, halves))
        assert of_board == pytest.approx(-1.0 - board_far(board), abs=1e-6)
        assert of_halves == pytest.approx(near_of_halves - board_far(halves), abs=1e-6)
        assert of_halves > 1 > of_board

    def test_far_must_fit(self):
        with pytest.raises(ValueError, match="no two at a distance of 6: choose `far` from 2 to 4"):
            local_spatial_similarity(torch.randn(1, 2, 3, 3))


class TestRegionSelfSimilarity:
    def test_of_two_orthogonal_regions(self):
        masks = torch.zeros(2, 8, 8, dtype=torch.bool)
        masks[:, 2:5, :3] = True
        latents = torch.stack([masks.float(), 1 - masks.float()], 1)  # (2, 2, 8, 8)
        assert region_self_similarity(latents, masks).tolist() == pytest.approx([1.0, 1.0])

    def test_pair_by_pair(self):
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(3, 4, 5, 6, generator=generator)
        masks = torch.rand(3, 5, 6, generator=generator) < 0.4
        masks[2] = True  # no background
        unit = F.normalize(latents, dim=1)
        places = [(i, j) for i in range(5) for j in range(6)]
        expected = []
        for image, mask in zip(unit[:2], masks[:2], strict=True):
            of_anchors = []
            for a in (place for place in places if mask[place]):
                distances = {b: abs(a[0] - b[0]) + abs(a[1] - b[1]) for b in places}
                near = [b for b in places if mask[b] and distances[b] == 1]
                distant = [b for b in places if not mask[b] and distances[b] >= 4]
                if near and distant:
                    means = [
                        sum(float(image[:, *a] @ image[:, *b]) for b in group) / len(group)
                        for group in (near, distant)
                    ]
                    of_anchors.append(means[0] - means[1])
            expected.append(sum(of_anchors) / len(of_anchors))
        found = region_self_similarity(latents, masks, far=4)
        assert found[:2].tolist() == pytest.approx(expected, abs=1e-6)
        assert found[2].isnan()


def board_far(latents, far=6):
    """The mean cosine of distant latents of one channel, pair by pair."""
    size = latents.shape[-1]
    cells = [(i, j) for i in range(size) for j in range(size)]
    signs = [
        float(latents[0, 0][a] * latents[0, 0][b])
        for a in cells
        for b in cells
        if abs(a[0] - b[0]) + abs(a[1] - b[1]) >= far
    ]
    return sum(signs) / len(signs)


@pytest.fixture(scope="module")
def digits():
    digits = captioned_digits(60)
    return DatasetDict(train=digits.select(range(30)), test=digits.select(range(30, 60)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return make_model().eval()


@pytest.fixture(scope="module")
def processor():
    tokens = tokenizer()
    tokens.model_max_length = 8
    return VTPProcessor(VTPImageProcessor.from_image_size(32), tokens)


class TestRepresentations:
    def test_figures_do_not_depend_on_batches(self, model, processor, digits):
        first, second = (
            measure_representations(model, processor, **digits, batch_size=size) for size in (7, 64)
        )
        assert first["fingerprint"] == second["fingerprint"]
        for name, estimate in first["metrics"].items():
            assert estimate["value"] == pytest.approx(second["metrics"][name]["value"], abs=0.04)
        assert {"psnr", "text_recall_at_5", "zero_shot_accuracy", "spatial_similarity"} <= (
            first["metrics"].keys()
        )

    def test_without_labels_or_texts_there_are_fewer(self, model, processor, digits):
        measured = measure_representations(
            model, processor, **digits, label_column=None, text_column=None
        )
        assert measured["metrics"].keys() == {"psnr", "spatial_similarity"}
        assert measured["num_training_images"] == 0

    def test_labels_without_names_are_probed_but_not_classified(self, model, processor, digits):
        numbered = digits.cast_column("label", Value("int64"))
        found, named = (
            measure_representations(model, processor, **data)["metrics"]
            for data in (numbered, digits)
        )
        assert "zero_shot_accuracy" in named
        assert found == {
            name: value for name, value in named.items() if name != "zero_shot_accuracy"
        }

    def test_images_without_a_text_are_left_out(self, model, processor, digits):
        def without(row, index):
            return {"text": row["text"] if index % 2 else []}

        some = digits["test"].map(without, with_indices=True)
        half = digits["test"].select(range(1, 30, 2))
        found, expected = (
            measure_representations(model, processor, digits["train"], test, label_column=None)[
                "metrics"
            ]
            for test in (some, half)
        )
        for name in ("text_recall_at_5", "image_recall_at_5"):
            assert found[name]["value"] == pytest.approx(expected[name]["value"])

    def test_an_encoder_alone(self, digits):
        encoder = make_model(has_text=False, has_decoder=False).eval()
        processor = VTPImageProcessor.from_image_size(32)
        metrics = measure_representations(encoder, processor, **digits)["metrics"]
        assert "psnr" not in metrics and "text_recall_at_1" not in metrics
        assert 0 <= metrics["knn_balanced_accuracy_bottleneck"]["value"] <= 1

    def test_the_command_writes_and_shows_them(self, model, processor, digits, tmp_path):
        model.save_pretrained(tmp_path / "vtp")
        processor.save_pretrained(tmp_path / "vtp")
        digits.save_to_disk(tmp_path / "data")
        arguments = ["evaluate", "representations", str(tmp_path / "vtp")]
        arguments += ["--data", str(tmp_path / "data"), "--template", "{}", "--device", "cpu"]
        arguments += ["--output", str(tmp_path / "result.json")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "text recall at 5" in result.output
        written = json.loads((tmp_path / "result.json").read_text())
        again = measure_representations(model, processor, **digits, templates=["{}"])
        for name, estimate in again["metrics"].items():
            assert written["metrics"][name]["value"] == pytest.approx(estimate["value"], abs=1e-6)
        assert written["command"].startswith("titok evaluate representations")
