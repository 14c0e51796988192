"""Tests of the networks that recipes load from the Hub."""

import json

import pytest
import torch

from titok_hf import MaskGitVQGANModel
from titok_hf.training import Recipe

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def load(stage, source, image_size=32):
    """The result of a stage whose recipe says that it is pretrained."""
    stages = {"vqgan": {"pretrained": source}, "classifier": {"pretrained": source}}
    content = {"name": "x", "image_size": image_size, "stages": {**stages, "single_stage": {}}}
    return Recipe.from_dict(content).stage(stage).load(source)


@pytest.fixture
def make_folder(classifier, tmp_path):
    """Saves the classifier with an image processor:
    `make_folder(image_processor_type="ViTImageProcessor", …)`."""

    def make(**processor):
        classifier.save_pretrained(tmp_path / "classifier")
        (tmp_path / "classifier" / "preprocessor_config.json").write_text(json.dumps(processor))
        return str(tmp_path / "classifier")

    return make


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        # as of facebook/convnext-small-224, from before processors had a type
        (
            {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 224},
            224,
        ),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}, 384),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 96}}, 96),
        (
            {
                "image_processor_type": "CLIPImageProcessor",
                "do_center_crop": True,
                "size": 256,
                "crop_size": 224,
            },
            224,
        ),
    ],
)
def test_a_classifier_sees_images_as_its_processor_makes_them(
    make_folder, processor, size, classifier
):
    loaded = load("classifier", make_folder(**processor, **IMAGENET, do_normalize=True))
    assert loaded.image_size == size
    assert (list(loaded.image_mean), list(loaded.image_std)) == tuple(IMAGENET.values())
    assert not loaded.model.training
    expected = classifier.state_dict()
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items()
    )


def test_a_processor_may_leave_images_as_they_are(make_folder):
    folder = make_folder(
        image_processor_type="ViTImageProcessor",
        size={"height": 32, "width": 32},
        do_normalize=False,
    )
    loaded = load("classifier", folder)
    assert (loaded.image_mean, loaded.image_std) == ((0.0,) * 3, (1.0,) * 3)


def test_a_backbone_without_a_head_is_no_classifier(classifier, make_folder, tmp_path):
    folder = make_folder(image_processor_type="ViTImageProcessor", size={"height": 32, "width": 32})
    classifier.convnext.save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        ValueError, match=r"no image classifier, .* 2 weights are missing, classifier\.bias"
    ):
        load("classifier", folder)


def test_a_vqgan_takes_images_of_any_size(vqgan, tmp_path):
    vqgan.save_pretrained(tmp_path / "vqgan")
    images = torch.rand(1, 3, 64, 64)
    loaded = load("vqgan", str(tmp_path / "vqgan"), image_size=64)
    config = type(vqgan.config)(**{**vqgan.config.to_dict(), "image_size": 64})
    expected = MaskGitVQGANModel(config).eval()
    expected.load_state_dict(vqgan.state_dict())
    assert loaded.config.num_tokens == 64
    assert torch.equal(loaded.encode(images).codes, expected.encode(images).codes)
