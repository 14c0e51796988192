"""Interpolated latents and iFID: their limits, and a computation by hand."""

import math

import pytest
import torch

from titok_hf import TiTokImageProcessor, TiTokModel
from titok_hf.evaluation import evaluate_learnability
from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.image_sources import to_uint8
from titok_hf.evaluation.interpolation import interpolated_frechet_distance, interpolated_latents
from titok_hf.evaluation.metrics.frechet import frechet_distance


def white(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestLatents:
    def test_without_a_share_they_are_the_latents(self):
        latents = white(300, 3, 4, 4)
        found = interpolated_latents(latents, white(50, 3, 4, 4, seed=1), share=0)
        torch.testing.assert_close(found, latents)

    def test_with_all_of_it_they_are_neighbors(self):
        latents, known = white(20, 8, 2), white(50, 8, 2, seed=1)
        found = interpolated_latents(latents, known, k=4, share=1)
        distances = (found[:, None] - known).flatten(2).norm(dim=2)
        assert distances.amin(1).max() < 1e-4
        cosines = torch.nn.functional.cosine_similarity(
            latents.flatten(1)[:, None], known.flatten(1)[None], dim=2
        )
        nearest = cosines.topk(4).indices
        assert all(place in row for place, row in zip(distances.argmin(1), nearest, strict=True))

    def test_halfway_on_the_sphere(self):
        """Between two orthogonal unit vectors lies the one at 45 degrees, of the same length."""
        found = interpolated_latents(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]))
        torch.testing.assert_close(found, torch.full((1, 1, 2), math.sqrt(0.5)))

    def test_closer_neighbors_are_drawn_more_often(self):
        """Probabilities are the softmax of the negative mean squared errors, here 0 and 1."""
        known = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
        found = interpolated_latents(torch.ones(20_000, 2), known, k=2, share=1)
        share = (found[:, 0] < 1.5).double().mean().item()
        assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.015)

    def test_the_draw_repeats(self):
        latents, known = white(30, 4, 2), white(40, 4, 2, seed=1)
        assert interpolated_latents(latents, known).equal(interpolated_latents(latents, known))
        assert not interpolated_latents(latents, known, seed=1).equal(
            interpolated_latents(latents, known)
        )


@pytest.mark.slow
class TestDistance:
    @pytest.fixture
    def tokenizer(self, make_titok_config):
        torch.manual_seed(0)
        return TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()

    def test_without_a_share_it_is_that_of_reconstructions(self, tokenizer):
        processor, extractor = TiTokImageProcessor.from_image_size(32), DigitsExtractor()
        images = torch.randint(0, 256, (90, 3, 32, 32), dtype=torch.uint8)
        pixel_values = images / 255
        with torch.no_grad():
            latents = tokenizer.encode(pixel_values).latents
            shown = processor.postprocess(tokenizer.decode(latents).reconstruction, "pt")
        features = [extractor(each).features for each in (to_uint8(shown, "round"), images)]
        arguments = {"features": features[1], "latents": latents, "known": latents.flip(0)}
        found = interpolated_frechet_distance(tokenizer, processor, extractor, **arguments, share=0)
        assert found == pytest.approx(frechet_distance(*features), rel=1e-3)
        # an image is its own nearest neighbor
        alone = interpolated_frechet_distance(tokenizer, processor, extractor, **arguments, k=1)
        assert alone == pytest.approx(found, rel=1e-3)

    def test_the_command_measures_it_with_an_extractor(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path / "titok")
        arguments = {"num_images": 80, "extractor": "digits", "num_training_images": 50}
        found = evaluate_learnability(str(tmp_path / "titok"), "digits", **arguments)
        assert found["metrics"]["interpolated_frechet_distance"]["value"] > 0
        assert found["extractor"]["name"]
        assert "--extractor digits" in found["command"]
        assert "--num-training-images 50" in found["command"]

    def test_too_few_images_for_the_features_have_none(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path / "titok")
        found = evaluate_learnability(
            str(tmp_path / "titok"), "digits", num_images=64, extractor="digits"
        )
        assert found["undefined"]["interpolated_frechet_distance"] == (
            "64 images are too few for 64 features"
        )
