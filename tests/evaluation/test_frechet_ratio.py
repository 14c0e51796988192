"""FDr6: each encoder's preparation by hand, and ratios that are known."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, load_from_disk
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextV2Config,
    ConvNextV2Model,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
)

from titok_hf.evaluation import Evaluation, evaluate_frechet_ratio, write_ratio_reference
from titok_hf.evaluation.frechet_ratio import validation_distances
from titok_hf.evaluation.metric_networks import ENCODERS, load_extractor
from titok_hf.evaluation.vision_extractor import Preparation, VisionExtractor

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SMALL |= {"hidden_size": 4, "initializer_range": 0.5}
NO_INCEPTION = [name for name in ENCODERS if name != "inception"]  # has 2,048 features


def processor(side):
    size = {"height": side, "width": side}
    return ViTImageProcessor(size=size, image_mean=MEAN, image_std=STD)


def dinov2(side=35, patch=7):
    return Dinov2Model(Dinov2Config(**SMALL, image_size=side, patch_size=patch)).eval()


def clip(side=35, patch=7):
    parts = {name: value for name, value in SMALL.items() if name != "initializer_range"}
    vision = {**parts, "image_size": side, "patch_size": patch}
    return CLIPModel(
        CLIPConfig(vision_config=vision, text_config={**parts, "vocab_size": 9})
    ).eval()


def siglip(side=32, patch=8):
    parts = {name: value for name, value in SMALL.items() if name != "initializer_range"}
    return SiglipVisionModel(SiglipVisionConfig(**parts, image_size=side, patch_size=patch)).eval()


def mae(side=32, patch=8):
    return ViTMAEModel(ViTMAEConfig(**SMALL, image_size=side, patch_size=patch)).eval()


def convnextv2():
    config = ConvNextV2Config(hidden_sizes=[4, 4], depths=[1, 1], num_stages=2)
    return ConvNextV2Model(config).eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)


def prepared(images, size, padded=None):
    """Images resized in torch, normalized, and padded below and to the right."""
    pixels = F.interpolate(images.float() / 255, (size, size), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    canvas = torch.zeros(len(images), 3, padded or size, padded or size)
    canvas[:, :, :size, :size] = (pixels - mean) / std
    return canvas


def resized(positions, side):
    """Positions `(1, n, D)` of a square, resized to another."""
    grid = int(positions.shape[1] ** 0.5)
    square = positions.transpose(1, 2).unflatten(2, (grid, grid))
    square = F.interpolate(square, (side, side), mode="bicubic", antialias=True)
    return square.flatten(2).transpose(1, 2)


def extract(model, folder, images, side, **preparation):
    model.save_pretrained(folder)
    processor(side).save_pretrained(folder)
    extractor = VisionExtractor(folder, device="cpu", preparation=Preparation(**preparation))
    return extractor(images).features


class TestPreparation:
    @pytest.fixture(autouse=True)
    def without_gradients(self):
        with torch.no_grad():
            yield

    def test_of_dinov2_images_are_padded_and_positions_resized(self, tmp_path, images):
        model = dinov2()
        found = extract(model, tmp_path, images, 35, image_size=24, padded_size=28)
        table = model.embeddings.position_embeddings
        table.data = torch.cat([table.data[:, :1], resized(table.data[:, 1:], 4)], 1)
        expected = model(prepared(images, 24, 28)).last_hidden_state[:, 0]
        torch.testing.assert_close(found, expected)

    def test_of_clip_it_is_the_image_part(self, tmp_path, images):
        model = clip()
        found = extract(model, tmp_path, images, 35, image_size=24, padded_size=28)
        vision = model.vision_model
        table = vision.embeddings.position_embedding.weight[None]
        table = torch.cat([table[:, :1], resized(table[:, 1:], 4)], 1)
        pixel_values = prepared(images, 24, 28)
        patches = vision.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([vision.embeddings.class_embedding.expand(3, 1, -1), patches], 1) + table
        hidden = vision.encoder(vision.pre_layrnorm(tokens)).last_hidden_state
        torch.testing.assert_close(found, vision.post_layernorm(hidden[:, 0]))

    def test_of_siglip_it_is_the_attention_pool(self, tmp_path, images):
        model = siglip()
        found = extract(model, tmp_path, images, 32, image_size=24)
        embeddings = model.embeddings
        patches = embeddings.patch_embedding(prepared(images, 24)).flatten(2).transpose(1, 2)
        tokens = patches + resized(embeddings.position_embedding.weight[None], 3)
        hidden = model.encoder(tokens).last_hidden_state
        hidden = model.post_layernorm(hidden)
        torch.testing.assert_close(found, model.head(hidden))

    def test_mae_sees_the_whole_image(self, tmp_path, images):
        model = mae()
        found = extract(model, tmp_path, images, 32, image_size=32)
        model.config.mask_ratio = 0.0
        expected = model(prepared(images, 32)).last_hidden_state[:, 0]
        torch.testing.assert_close(found, expected)

    def test_of_convnextv2_it_is_the_mean_before_the_last_norm(self, tmp_path, images):
        model = convnextv2()
        found = extract(model, tmp_path, images, 32, image_size=32, pooled=False)
        output = model(prepared(images, 32))
        torch.testing.assert_close(found, output.last_hidden_state.mean((2, 3)))
        assert not torch.allclose(found, output.pooler_output)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder of 40 training and 24 validation images of 32 pixels."""
    rng = np.random.default_rng(0)

    def split(count):
        pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return Dataset.from_dict({"image": list(pixels)}, features=Features(image=Image()))

    folder = tmp_path_factory.mktemp("pictures") / "data"
    DatasetDict(train=split(40), validation=split(24)).save_to_disk(folder)
    return folder


@pytest.fixture
def published(hub, tmp_path):
    """The encoders in their places on the Hub, at their sizes and with random weights."""
    torch.manual_seed(0)
    networks = {
        "convnextv2": convnextv2(),
        "dinov2": dinov2(518, 14),
        "mae": mae(224, 16),
        "siglip2": siglip(256, 16),
        "clip": clip(224, 14),
    }
    for name, network in networks.items():
        folder = tmp_path / "networks" / name
        network.save_pretrained(folder)
        processor(ENCODERS[name]["image_size"]).save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.add(ENCODERS[name]["model"], files)


@pytest.mark.slow
class TestRatios:
    SMALLER = ("image_size=32",)

    def reference(self, pictures, folder, **arguments):
        arguments = {"encoders": NO_INCEPTION, "device": "cpu"} | arguments
        return write_ratio_reference(str(pictures), folder, overrides=self.SMALLER, **arguments)

    def measure(self, source, folder, **arguments):
        arguments = {"encoders": NO_INCEPTION, "device": "cpu"} | arguments
        return evaluate_frechet_ratio(source, folder, overrides=self.SMALLER, **arguments)

    def test_real_images_have_a_ratio_of_1(self, published, pictures, tmp_path):
        constants = self.reference(pictures, tmp_path / "reference")
        assert list(constants) == NO_INCEPTION and min(constants.values()) > 0
        validation = tmp_path / "validation"
        validation.mkdir()
        for number, image in enumerate(load_from_disk(str(pictures))["validation"]["image"]):
            image.save(validation / f"{number:02}.png")
        found = self.measure(validation, tmp_path / "reference")
        assert found.metrics["frechet_ratio"].value == pytest.approx(1, rel=1e-6)
        for name in NO_INCEPTION:
            assert found.metrics[f"frechet_ratio_{name}"].value == pytest.approx(1, rel=1e-6)
            assert found.judges[name]["name"] == ENCODERS[name]["model"]
        found.save(tmp_path / "fdr6.json")
        assert Evaluation.load(tmp_path / "fdr6.json").title("frechet_ratio") == "FDr5"
        assert "titok evaluate fdr6" in found.command and "--encoder mae" in found.command
        # a run that was stopped computes what is missing
        path = tmp_path / "reference" / "validation.json"
        path.write_text(json.dumps({k: v for k, v in constants.items() if k != "mae"}))
        with pytest.raises(ValueError, match="lacks the distance of validation images by mae"):
            self.measure(validation, tmp_path / "reference")
        times = {p: p.stat().st_mtime_ns for p in (tmp_path / "reference").glob("*.npz")}
        again = self.reference(pictures, tmp_path / "reference")
        assert again == pytest.approx(constants)
        assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "reference").glob("*.npz")}

    def test_images_of_a_pipeline_are_made_once(self, published, pictures, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path / "pipeline")
        self.reference(pictures, tmp_path / "reference", encoders=["mae", "clip"])
        arguments = {"encoders": ["mae", "clip"], "num_samples": 12}
        with pytest.raises(ValueError, match="name a file for those of the pipeline by `samples`"):
            self.measure(tmp_path / "pipeline", tmp_path / "reference", **arguments)
        samples = tmp_path / "samples.npz"
        found = self.measure(
            tmp_path / "pipeline", tmp_path / "reference", samples=samples, **arguments
        )
        ratios = [found.metrics[f"frechet_ratio_{name}"].value for name in ("mae", "clip")]
        assert found.metrics["frechet_ratio"].value == pytest.approx(sum(ratios) / 2)
        assert found.generator["weights_sha256"] and found.num_images == 12
        with np.load(samples) as images:
            assert images["arr_0"].shape == (12, 32, 32, 3)

    def test_a_missing_encoder_is_said(self, published, pictures, tmp_path):
        self.reference(pictures, tmp_path / "reference", encoders=["clip"])
        (tmp_path / "reference" / "clip.npz").unlink()
        with pytest.raises(FileNotFoundError, match=r"lacks clip\.npz: `titok evaluate fdr6-ref"):
            self.measure(tmp_path, tmp_path / "reference", encoders=["clip"])


class TestPublishedDistances:
    def test_one_of_a_single_digit_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"by mae, 0\.04, has a single digit"):
            validation_distances(tmp_path, list(ENCODERS))

    def test_the_others_are_used(self, tmp_path):
        names = [name for name in ENCODERS if name != "mae"]
        assert validation_distances(tmp_path, names) == {
            "inception": 1.68,
            "convnextv2": 56.87,
            "dinov2": 14.19,
            "siglip2": 0.6,
            "clip": 5.6,
        }

    def test_an_unknown_encoder_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="did you mean 'dinov2'"):
            evaluate_frechet_ratio(tmp_path, tmp_path, encoders=["dinov3"])
        with pytest.raises(ValueError, match="did you mean 'siglip2'"):
            load_extractor("fdr6:siglip")
