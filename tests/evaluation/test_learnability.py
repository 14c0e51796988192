"""Learnability of latents: values that are known, invariances, and tokenizers of all families."""

import json
import math

import pytest
import torch
from training.tiny_pretraining import make_model

from titok_hf import TiTokModel
from titok_hf.evaluation import evaluate_learnability, measure_learnability
from titok_hf.evaluation.learnability import (
    comparable,
    cosine_transform,
    effective_rank,
    high_frequencies,
    same_class_neighbors,
    velocity_variance,
)


def white(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestVelocityVariance:
    def test_of_white_latents(self):
        latents, labels = white(6000, 6, 4), torch.arange(3).repeat(2000)
        found = velocity_variance(latents, labels)
        assert found.shape == (3,)
        torch.testing.assert_close(found, torch.full((3,), math.pi / 2).double(), rtol=0.01, atol=0)

    def test_of_latents_that_are_constant_in_a_class(self):
        labels = torch.arange(4).repeat(5)
        latents = white(4, 6, 3)[labels]
        assert velocity_variance(latents, labels).tolist() == [0, 0, 0, 0]

    def test_of_a_known_covariance(self):
        """Eigenvalues a of places and b of channels: pi / 2 times the mean of sqrt(a * b)."""
        places, channels = torch.tensor([1.0, 4.0, 9.0, 16.0]), torch.tensor([0.25, 1.0, 4.0])
        scale = places.sqrt()[:, None] * channels.sqrt()
        latents = white(20_000, 4, 3) * scale
        found = velocity_variance(latents, torch.zeros(20_000, dtype=torch.long))
        assert found.item() == pytest.approx(math.pi / 2 * scale.mean().item(), rel=0.01)

    def test_it_does_not_depend_on_rotations_and_means(self):
        latents, labels = white(400, 5, 4) * torch.arange(1, 5), torch.arange(2).repeat(200)
        rotation = torch.linalg.qr(white(4, 4, seed=1)).Q
        moved = latents @ rotation + white(2, 5, 4, seed=2)[labels]
        torch.testing.assert_close(
            velocity_variance(moved, labels), velocity_variance(latents, labels), rtol=1e-3, atol=0
        )

    def test_classes_of_fewer_than_four_images_are_left_out(self):
        labels = torch.tensor([0] * 4 + [1] * 3 + [2] * 5)
        assert velocity_variance(white(12, 3, 2), labels).shape == (2,)

    def test_it_does_not_rank_latents_of_different_sizes(self):
        same = [{"shape": [4, 8, 8]}, {"shape": [16, 16]}]
        other = [{"shape": [4, 8, 8]}, {"shape": [8, 8, 8]}]
        assert comparable(same, "velocity_variance")
        assert not comparable(other, "velocity_variance")
        assert comparable(other, "effective_rank")


class TestSameClassNeighbors:
    def test_of_classes_apart(self):
        labels = torch.arange(3).repeat(10)
        features = torch.eye(3)[labels] + 0.01 * white(30, 3)
        assert same_class_neighbors(features, labels, k=9).eq(1).all()

    def test_of_noise_is_the_share_of_the_class(self):
        labels = torch.arange(4).repeat(500)
        found = same_class_neighbors(white(2000, 8), labels, k=20)
        assert found.mean().item() == pytest.approx(499 / 1999, abs=0.01)

    def test_by_hand(self):
        features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.3]])
        labels = torch.tensor([0, 0, 1, 1, 1])
        assert same_class_neighbors(features, labels, k=1).tolist() == [1, 1, 1, 1, 0]


class TestHighFrequencies:
    def test_the_transform_is_orthonormal_and_that_of_type_two(self):
        for size in (1, 5, 8):
            matrix = cosine_transform(size)
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double())
        row = cosine_transform(8)[3]
        assert row[2].item() == pytest.approx(math.sqrt(2 / 8) * math.cos(math.pi / 8 * 2.5 * 3))

    def test_of_white_latents_is_the_share_of_cells(self):
        latents = white(3000, 4, 6, 8)
        for cutoff in (0.25, 0.5):
            frequencies = torch.arange(6)[:, None] + torch.arange(8)
            share = (frequencies > cutoff * 12).double().mean().item()
            found = high_frequencies(latents, cutoff)
            assert found.mean().item() == pytest.approx(share, abs=0.005)

    def test_of_constant_and_of_alternating_latents(self):
        constant = torch.ones(1, 3, 8, 8)
        assert high_frequencies(constant, 0.25).item() == pytest.approx(0, abs=1e-12)
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        alternating = ((-1.0) ** (rows + columns))[None, None]
        assert high_frequencies(alternating, 0.5).item() > 0.9


def test_the_effective_rank_of_equal_and_of_one_channel():
    assert effective_rank(white(50_000, 5)) == pytest.approx(5, rel=0.01)
    assert effective_rank(white(1000, 1) * torch.ones(5)) == pytest.approx(1)
    assert effective_rank(white(1000, 1)) == pytest.approx(1)


def test_the_effective_rank_is_of_channels_as_they_are():
    latents = white(5000, 4, 5) * torch.tensor([100.0, 1, 1, 1, 1])
    found = measure_learnability(latents)["metrics"]["effective_rank"]["value"]
    assert found == pytest.approx(1, rel=0.01)


class TestMeasured:
    def test_what_2d_latents_have(self):
        found = measure_learnability(white(40, 3, 6, 6), torch.arange(4).repeat(10), k=5)
        assert set(found["metrics"]) == {
            "velocity_variance",
            "same_class_neighbors",
            "spatial_similarity",
            "high_frequencies_0.25",
            "high_frequencies_0.5",
            "effective_rank",
        }
        assert found["undefined"] == {"region_similarity": "no masks"}
        assert found["shape"] == [3, 6, 6]
        for name, measured in found["metrics"].items():
            assert (measured["standard_error"] is None) == (name == "effective_rank")

    def test_what_1d_latents_and_data_without_labels_lack(self):
        found = measure_learnability(white(40, 7, 3))
        assert list(found["metrics"]) == ["effective_rank"]
        assert set(found["undefined"].values()) == {
            "no labels",
            "these latents are no grid",
        }

    def test_of_few_images_and_of_a_single_place(self):
        few = measure_learnability(white(6, 3, 4, 4), torch.arange(3).repeat(2))
        assert few["undefined"]["velocity_variance"] == "no class has 4 images"
        assert 0 <= few["metrics"]["same_class_neighbors"]["value"] <= 1
        assert "spatial_similarity" in measure_learnability(white(9, 3, 1, 1))["undefined"]

    def test_of_one_image(self):
        found = measure_learnability(white(1, 3, 4, 4), torch.tensor([0]))
        assert found["undefined"]["same_class_neighbors"] == "one image has no neighbors"
        json.dumps(found, allow_nan=False)

    def test_a_missing_label_is_refused(self):
        with pytest.raises(ValueError, match="Every image must have a label of 0 or more, got -1"):
            measure_learnability(white(6, 3, 4, 4), torch.tensor([0, 1, 2, -1, 1, 0]))

    def test_of_masks(self):
        """Images whose foreground has no distant background do not count."""
        latents = white(40, 3, 6, 6)
        masks = torch.zeros(40, 6, 6, dtype=torch.bool)
        assert measure_learnability(latents, masks=masks)["undefined"]["region_similarity"] == (
            "no foreground has a background 6 latents away"
        )
        masks[:30, :3, :3] = True
        latents[:30, :, :3, :3] += torch.tensor([3.0, -3.0, 3.0])[:, None, None]
        found = measure_learnability(latents, masks=masks)["metrics"]["region_similarity"]
        assert found["value"] > 0.5
        latents[30:] = latents[30:].flip(-1)
        assert measure_learnability(latents, masks=masks)["metrics"]["region_similarity"] == found

    def test_it_does_not_depend_on_the_channels_scale(self):
        latents, labels = white(60, 3, 4, 4), torch.arange(3).repeat(20)
        scale, shift = torch.tensor([0.1, 1.0, 30.0]), torch.tensor([5.0, 0.0, -2.0])
        moved = latents * scale[:, None, None] + shift[:, None, None]
        left, right = (
            measure_learnability(each, labels, k=5)["metrics"] for each in (latents, moved)
        )
        for name in set(left) - {"effective_rank"}:
            assert left[name]["value"] == pytest.approx(right[name]["value"], rel=1e-3), name

    def test_a_constant_channel_is_refused(self):
        latents = white(8, 3, 4, 4)
        latents[:, 1] = 2
        with pytest.raises(ValueError, match=r"The channels \[1\] are constant"):
            measure_learnability(latents)


@pytest.mark.slow
class TestTokenizers:
    def test_of_each_family(self, tmp_path, make_titok_config):
        torch.manual_seed(0)
        make_model(has_text=False).save_pretrained(tmp_path / "vtp")
        TiTokModel(make_titok_config("pixels", quantizer="kl")).save_pretrained(tmp_path / "titok")
        for name, has_grid in (("vtp", True), ("titok", False)):
            result = evaluate_learnability(str(tmp_path / name), "digits", num_images=60)
            assert result["num_images"] == 60 and result["data"]["split"] == "test"
            assert ("spatial_similarity" in result["metrics"]) == has_grid
            assert "learnability" in result["command"] and "--num-images 60" in result["command"]

    def test_masks_of_emoji(self, tmp_path):
        """The foreground of a picture is where something is drawn, not the white around it."""
        torch.manual_seed(0)
        make_model(has_text=False, patch_size=4).save_pretrained(tmp_path)
        data = "emoji:image_size=32,masks=true"
        result = evaluate_learnability(
            str(tmp_path), data, mask_column="mask", num_images=40, label_column=None
        )
        assert "region_similarity" in result["metrics"]
        assert "--mask-column mask" in result["command"]

    def test_masks_that_are_not_there_are_an_error(self, tmp_path):
        make_model(has_text=False).save_pretrained(tmp_path)
        for name in ("masks", "label"):
            with pytest.raises(ValueError, match=f"images, got '{name}': the data has image"):
                evaluate_learnability(str(tmp_path), "digits", num_images=8, mask_column=name)

    def test_a_discrete_one_is_refused(self, tmp_path, make_titok_config):
        TiTokModel(make_titok_config("pixels")).save_pretrained(tmp_path / "titok")
        with pytest.raises(ValueError, match="is discrete; what is measured is of continuous"):
            evaluate_learnability(str(tmp_path / "titok"), "digits", num_images=8)
