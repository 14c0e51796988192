"""Extractors by name, and which of them a protocol needs."""

import pytest
import torch
from fixtures.extractors.networks import inception_weights, lpips_heads, vgg16_weights
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.extractors import INCEPTION, Extracted, FeatureExtractor
from titok_hf.evaluation.inception import InceptionExtractor
from titok_hf.evaluation.metric_networks import MetricNetworks, load_extractor
from titok_hf.evaluation.protocol import METRICS, Protocol
from titok_hf.evaluation.vision_extractor import VisionExtractor
from titok_hf.hub.hashes import file_sha256, state_sha256
from titok_hf.perceptual.lpips import LPIPS
from titok_hf.perceptual.published_weights import load_lpips


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_weights(), file)
    return file


@pytest.fixture
def fill_cache(torch_cache):
    """Puts LPIPS's weights where they are looked for."""
    torch.save(vgg16_weights(), torch_cache / "vgg16-397923af.pth")
    torch.save(lpips_heads(), torch_cache / "lpips-v0.1-vgg-a78928a0.pth")


@pytest.fixture
def vit(tmp_path):
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


class TestLoadExtractor:
    def test_the_digits(self):
        assert isinstance(load_extractor("digits"), DigitsExtractor)

    @pytest.mark.parametrize(
        ("name", "preprocessing"),
        [("inception", "tensorflow"), ("inception-pytorch-fid", "pytorch-fid")],
    )
    def test_inception_by_its_preprocessing(self, inception_file, name, preprocessing):
        extractor = load_extractor(name, inception_file, "cpu")
        assert isinstance(extractor, InceptionExtractor)
        identity = extractor.identity()
        assert identity == InceptionExtractor(inception_file, preprocessing, "cpu").identity()
        assert identity["weights_sha256"] == file_sha256(inception_file)

    def test_a_model_of_transformers(self, vit):
        extractor = load_extractor(str(vit), device="cpu")
        assert isinstance(extractor, VisionExtractor)
        assert (extractor.num_features, extractor.num_classes, extractor.input_size) == (
            16,
            None,
            16,
        )

    def test_an_unknown_inception_is_refused(self):
        with pytest.raises(
            ValueError,
            match="one of inception, inception-pytorch-fid, digits, emoji or a model, got",
        ):
            load_extractor("inception-clean")

    def test_missing_weights_are_named_with_their_place(self, torch_cache):
        place = torch_cache / "weights-inception-2015-12-05-6726825d.pth"
        with pytest.raises(FileNotFoundError) as refusal:
            load_extractor("inception")
        assert "https://github.com/toshas/torch-fidelity/releases/download" in str(refusal.value)
        assert f"put it at {place}." in str(refusal.value)
        torch.save(inception_weights(), place)
        assert load_extractor("inception").identity()["weights_sha256"] == file_sha256(place)

    def test_a_given_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"There is no file {tmp_path / 'none.pth'}"):
            load_extractor("inception", tmp_path / "none.pth")

    def test_a_model_that_is_not_there_is_named(self, hub):
        with pytest.raises(OSError, match="user/nothing"):
            load_extractor("user/nothing")


def test_an_extractor_must_say_who_it_is():
    class Nameless(FeatureExtractor):
        def __call__(self, images):
            return Extracted(images.float().flatten(1))

    with pytest.raises(TypeError, match="identity"):
        Nameless()


class TestMetricNetworks:
    def load(self, *metrics, **fields):
        protocol = Protocol.load("demo", [f"{name}={value}" for name, value in fields.items()])
        return MetricNetworks.load(protocol, metrics, device="cpu")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "metric", sorted({name for names in METRICS.values() for name in names})
    )
    def test_a_metric_loads_what_it_needs_and_no_more(self, torch_cache, fill_cache, metric):
        judges = self.load(metric)
        of_pairs_or_codes = metric in (
            "mean_squared_error",
            "psnr",
            "ssim",
            "lpips",
        ) or metric.startswith("codebook")
        assert (judges.extractor is None) == of_pairs_or_codes
        assert judges.classifier is None
        assert isinstance(judges.lpips, LPIPS) == (metric == "lpips")

    def test_a_classifier_beside_the_extractor(self, vit):
        judges = self.load("accuracy", "frechet_distance", extractor=vit, classifier="digits")
        assert isinstance(judges.extractor, VisionExtractor) and isinstance(
            judges.classifier, DigitsExtractor
        )
        assert self.load("accuracy", extractor=vit, classifier="digits").extractor is None
        assert self.load("frechet_distance", extractor=vit, classifier="digits").classifier is None

    def test_weights_are_the_extractors(self, inception_file):
        protocol = Protocol.load("titok-rfid")
        judges = MetricNetworks.load(protocol, ["frechet_distance"], inception_file, "cpu")
        assert judges.identities()["extractor"]["weights_sha256"] == file_sha256(inception_file)
        assert judges.extractor.name == INCEPTION

    def test_missing_weights_of_lpips_are_named_with_their_place(self, torch_cache):
        with pytest.raises(FileNotFoundError) as refusal:
            self.load("lpips")
        assert f"put it at {torch_cache / 'vgg16-397923af.pth'}" in str(refusal.value)
        torch.save(vgg16_weights(), torch_cache / "vgg16-397923af.pth")
        with pytest.raises(FileNotFoundError) as refusal:
            self.load("lpips")
        assert f"put it at {torch_cache / 'lpips-v0.1-vgg-a78928a0.pth'}" in str(refusal.value)

    def test_identities_are_of_those_that_are_there(self, torch_cache, fill_cache):
        assert self.load("psnr").identities() == {}
        identities = self.load(
            "accuracy", "lpips", extractor="inception", classifier="digits"
        ).identities()
        assert identities == {
            "classifier": DigitsExtractor().identity(),
            "lpips": {"name": "LPIPS 0.1, VGG16", "weights_sha256": state_sha256(load_lpips())},
        }
        assert list(self.load("frechet_distance").identities()) == ["extractor"]
