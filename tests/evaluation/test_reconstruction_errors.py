"""An evaluation that cannot be made is refused in one sentence before any image is encoded."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from titok_hf import TiTokImageProcessor
from titok_hf.evaluation import evaluate_reconstruction, measure_reconstruction
from titok_hf.evaluation.adm import ReferenceBatch
from titok_hf.evaluation.files import reconstruct_files
from titok_hf.evaluation.image_sources import ReferenceImages, TensorImages
from titok_hf.evaluation.metric_networks import MetricNetworks

from .reconstructing import digits, protocol
from .tiny_models import Colors, CountingTiTok

pytestmark = pytest.mark.slow


class TestBadInput:
    """One sentence each, before any image is encoded."""

    @pytest.fixture
    def counting(self, make_titok_config):
        return CountingTiTok(make_titok_config("vqgan_decoder")).eval()

    @pytest.fixture
    def refuse(self, counting):
        """Asserts that measuring is refused with a sentence before anything is encoded."""

        def refuse(sentence, source, *metrics, reference=None, judges=None, **fields):
            with pytest.raises(ValueError, match=sentence):
                measure_reconstruction(
                    counting,
                    TiTokImageProcessor.from_image_size(32),
                    source,
                    protocol(*metrics, **fields),
                    reference,
                    judges,
                    progress_bar=False,
                )
            assert counting.num_encoded == 0

        return refuse

    def test_encoded_images_are_counted(self, counting):
        processor = TiTokImageProcessor.from_image_size(32)
        measure_reconstruction(
            counting, processor, digits(5)[0], protocol("psnr"), progress_bar=False
        )
        assert counting.num_encoded == 5

    def test_a_tokenizer_that_ends_in_proxy_codes(self, make_titok_config, tmp_path):
        warm = CountingTiTok(make_titok_config("proxy_codes")).eval()
        sentence = "must decode to pixels, but ends in proxy codes"
        with pytest.raises(ValueError, match=sentence):
            measure_reconstruction(
                warm, TiTokImageProcessor.from_image_size(32), digits(5)[0], protocol("psnr")
            )
        assert warm.num_encoded == 0
        warm.save_pretrained(tmp_path / "warm")
        PILImage.new("RGB", (32, 32)).save(tmp_path / "image.png")
        with pytest.raises(ValueError, match=sentence):
            reconstruct_files(
                tmp_path / "warm", [tmp_path / "image.png"], tmp_path / "pairs.png", device="cpu"
            )

    def test_fewer_images_than_features(self, refuse):
        refuse("frechet_distance with digits-8x8 needs at least 65 judged images, got 64", digits(64)[0], "psnr",
               "frechet_distance")  # fmt: skip

    def test_a_reference_of_fewer_images_than_features(self, refuse):
        reference = TensorImages(torch.zeros(64, 3, 32, 32, dtype=torch.uint8))
        sentence = "frechet_distance with digits-8x8 needs at least 65 reference images, got 64"
        refuse(sentence, digits(90)[0], "frechet_distance", reference=reference)

    def test_no_labels(self, refuse):
        source = TensorImages(torch.zeros(9, 3, 32, 32, dtype=torch.uint8))
        refuse(
            "accuracy needs labels: name their column, or leave the metric out", source, "accuracy"
        )

    def test_another_image_size(self, refuse):
        sentence = r"'demo\*' is for images of 64 pixels, the tokenizer for 32\. .* `image_size=32`"
        refuse(sentence, digits(9)[0], "psnr", image_size=64)

    def test_a_reference_of_another_extractor(self, refuse, tmp_path):
        np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
        reference = ReferenceImages(
            ReferenceBatch.load(tmp_path / "inception.npz"), protocol("psnr")
        )
        sentence = "The reference holds statistics of 2048 features, and digits-8x8 has 64: they are of another"
        refuse(sentence, digits(90)[0], "frechet_distance", reference=reference)

    def test_metrics_that_the_extractor_does_not_serve(self, refuse):
        refuse(
            "spatial_frechet_distance needs spatial features",
            digits(90)[0],
            "spatial_frechet_distance",
        )
        judges = MetricNetworks(Colors())
        judges.extractor.num_classes = None
        refuse(
            "inception_score needs an extractor that cl",
            digits(90)[0],
            "inception_score",
            judges=judges,
        )

    def test_nan_from_the_tokenizer(self, counting):
        """Known as soon as the first images are decoded."""
        for parameter in counting.parameters():
            torch.nn.init.constant_(parameter, torch.nan)
        with pytest.raises(ValueError, match="NaN"):
            measure_reconstruction(
                counting,
                TiTokImageProcessor.from_image_size(32),
                digits(90)[0],
                protocol("psnr"),
                batch_size=10,
                progress_bar=False,
            )
        assert counting.num_encoded <= 10

    @pytest.mark.parametrize(
        ("data", "arguments", "sentence"),
        [
            (
                "digits",
                {"split": "all"},
                "'digits' has no split 'all' but train, test; name one of these",
            ),
            ("digits", {"image_column": "picture"}, "no column 'picture' but image, label"),
            ("digits", {"num_images": 361}, "There are 360 images, and 361 were asked for"),
            ("empty", {}, "empty must hold images, tar shards or Parquet files"),
            (
                "mixed",
                {"overrides": ["crop=none"]},
                "All images must be 32x32 pixels, .* image 1 is 40x36",
            ),
            (
                "digits",
                {"reference": "large.npz"},
                r"images of 32x32 pixels, .*large\.npz holds 64x64",
            ),
            (
                "digits",
                {"reference": "float.npz"},
                r"float\.npz must be uint8 in \[0, 255\], got float32",
            ),
            ("digits", {"reference": "empty"}, "empty must hold images"),
            ("digits", {"reference": "digits", "reference_split": "all"}, "no split 'all'"),
        ],
        ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value)),
    )
    def test_data_are_looked_at_before_the_tokenizer_is(
        self, tmp_path, caches, monkeypatch, data, arguments, sentence
    ):
        """A tokenizer that is not there would be another error."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "mixed").mkdir()
        PILImage.new("RGB", (32, 32)).save(tmp_path / "mixed" / "0.png")
        PILImage.new("RGB", (40, 36)).save(tmp_path / "mixed" / "1.png")
        np.savez(tmp_path / "large.npz", np.zeros((2, 64, 64, 3), np.uint8))
        np.savez(tmp_path / "float.npz", np.zeros((2, 32, 32, 3), np.float32))
        with pytest.raises(ValueError, match=sentence):
            evaluate_reconstruction(tmp_path / "nowhere", data, "demo", **arguments)

    def test_weights_are_looked_for_before_the_tokenizer_is(self, tmp_path, torch_cache):
        with pytest.raises(FileNotFoundError) as refusal:
            evaluate_reconstruction(tmp_path / "nowhere", "digits", "titok-rfid")
        place = torch_cache / "weights-inception-2015-12-05-6726825d.pth"
        assert f"put it at {place}." in str(refusal.value)
        with pytest.raises(FileNotFoundError) as refusal:
            evaluate_reconstruction(
                tmp_path / "nowhere",
                "digits",
                "vtp-rfid",
                ["metrics.reconstruction=[lpips]"],
                device="cpu",
            )
        assert f"put it at {torch_cache / 'vgg16-397923af.pth'}" in str(refusal.value)

    def test_a_tokenizer_that_is_not_there(self, tmp_path):
        with pytest.raises(OSError, match="nowhere"):
            evaluate_reconstruction(tmp_path / "nowhere", "digits", "demo")

    def test_a_data_set_without_labels(self, titok, tmp_path):
        titok.save_pretrained(tmp_path / "titok")
        images = Dataset.from_dict(
            {"image": [PILImage.new("L", (32, 32))] * 70}, features=Features({"image": Image()})
        )
        images.save_to_disk(tmp_path / "images")
        with pytest.raises(ValueError, match="accuracy needs labels: name their column"):
            evaluate_reconstruction(
                tmp_path / "titok", str(tmp_path / "images"), "demo", reference="digits"
            )

    def test_a_corrupt_image(self, titok, pictures, tmp_path):
        titok.save_pretrained(tmp_path / "titok")
        content = (pictures / "2.png").read_bytes()
        (pictures / "2.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(
            ValueError, match=r"Image 2 \(.*2\.png\) cannot be read\. .*image file is truncated"
        ):
            evaluate_reconstruction(
                tmp_path / "titok", str(pictures), "demo", ["metrics.reconstruction=[psnr]"]
            )
