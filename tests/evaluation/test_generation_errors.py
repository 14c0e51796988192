"""An evaluation that cannot be made is refused before the pipeline is loaded or any image is made."""

import numpy as np
import pytest
import torch

from titok_hf.evaluation import evaluate_generation
from titok_hf.evaluation.generation import load_pipeline

from .tiny_models import make_ddpm

pytestmark = pytest.mark.slow


class TestBadInput:
    """One sentence each, before the pipeline is loaded or any image is made."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (
                {"reference": "digits", "reference_split": "all"},
                "'digits' has no split 'all' but train, test",
            ),
            ({"reference": "empty"}, "empty must hold images, tar shards or Parquet files"),
            ({"reference": "large.npz"}, r"images of 32x32 pixels, .*large\.npz holds 64x64"),
            ({"reference": "float.npz"}, r"float\.npz must be uint8 in \[0, 255\], got float64"),
            ({"protocol": "titok-rfid"}, "'titok-rfid' is for reconstruction, not for generation"),
        ],
    )
    def test_the_reference_is_looked_at_before_the_pipeline_is(
        self, tmp_path, monkeypatch, arguments, sentence
    ):
        """A pipeline that is not there would be another error."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        np.savez(tmp_path / "large.npz", np.zeros((2, 64, 64, 3), np.uint8))
        np.savez(tmp_path / "float.npz", np.zeros((2, 32, 32, 3)))
        with pytest.raises(ValueError, match=sentence):
            evaluate_generation("nowhere", **{"protocol": "demo", **arguments})

    def test_weights_are_looked_for_before_the_pipeline_is(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody's
        with pytest.raises(FileNotFoundError) as refusal:
            evaluate_generation("nowhere", "adm-256")
        place = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
        assert f"put it at {place}." in str(refusal.value)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (
                {"reference": "digits", "num_samples": 64},
                "frechet_distance with digits-8x8 needs at least 65 judged",
            ),
            (
                {"reference": "few.npz"},
                "frechet_distance with digits-8x8 needs at least 65 reference images, got 64",
            ),
            (
                {"reference": "other.npz"},
                "statistics of 2048 features, and digits-8x8 has 64: they are of another",
            ),
            ({}, "frechet_distance needs images to compare with"),
            (
                {"overrides": ["image_size=64"], "reference": "digits"},
                "64x64 pixels, the pipeline makes 32x32",
            ),
            ({"reference": "digits", "sampler": {"shift": 3}}, "A TiTokPipeline takes no shift"),
            (
                {"num_samples": None, "overrides": ["num_samples=null"]},
                "names no number of images: give `num_samples`",
            ),
            (
                {"reference": "digits", "seeds": [1, 2], "samples": "s.npz"},
                "`samples` takes the images of one seed",
            ),
        ],
    )
    def test_what_cannot_be_measured_is_not_made(
        self, pipeline, tmp_path, monkeypatch, arguments, sentence
    ):
        """The pipeline would make NaN, which is another error."""
        monkeypatch.chdir(tmp_path)
        for parameter in pipeline.tokenizer.parameters():
            torch.nn.init.constant_(parameter, torch.nan)
        pipeline.save_pretrained(tmp_path / "titok")
        np.savez(tmp_path / "few.npz", np.zeros((64, 32, 32, 3), np.uint8))
        np.savez(tmp_path / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
        with pytest.raises(ValueError, match=sentence):
            evaluate_generation("titok", "demo", **{"num_samples": 70, **arguments})
        with pytest.raises(ValueError, match="must be finite, got NaN"):
            evaluate_generation("titok", "demo", num_samples=70, reference="digits")

    def test_labels_of_a_pipeline_without_classes(self, tmp_path):
        make_ddpm().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="accuracy needs labels"):
            evaluate_generation(tmp_path, "demo", reference="digits", num_samples=70)

    def test_a_folder_that_is_no_pipeline(self, tmp_path):
        with pytest.raises(ValueError, match="holds no pipeline"):
            load_pipeline(tmp_path)

    def test_a_pipeline_that_is_not_there(self, hub):
        with pytest.raises(OSError, match="user/nothing"):
            evaluate_generation("user/nothing", "demo", reference="digits")
