"""Reconstructions of all tokenizers, and the codes that they use, are measured as by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from scipy.stats import sem
from torchmetrics.functional.image import structural_similarity_index_measure

from titok_hf import TiTokImageProcessor, TiTokModel
from titok_hf.data.digits import DIGIT_NAMES, load_digits_dataset
from titok_hf.evaluation import (
    Protocol,
    codebook_statistics,
    measure_generation,
    measure_reconstruction,
    reconstruct,
)
from titok_hf.evaluation.image_sources import DatasetImages, TensorImages
from titok_hf.evaluation.metric_networks import MetricNetworks
from titok_hf.evaluation.protocol import CODE_METRICS
from titok_hf.modeling.vtp import VTPForImageReconstruction, VTPImageProcessor

from . import formulas
from .reconstructing import DIGITS, decibels, digits, protocol, squared_errors, truncated
from .tiny_models import FAMILIES

pytestmark = pytest.mark.slow


@pytest.fixture
def images():
    return torch.rand(10, 3, 32, 32)


@pytest.fixture(params=["vqgan", "titok"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


class TestReconstruct:
    def test_images_are_encoded_and_decoded(self, tokenizer, images):
        reconstructions = reconstruct(tokenizer, images)
        expected = tokenizer.decode_codes(tokenizer.encode(images).codes).reconstruction
        assert expected.min() < 0 or expected.max() > 1
        torch.testing.assert_close(reconstructions, expected, atol=1e-4, rtol=1e-4)
        assert not reconstructions.requires_grad

    @pytest.mark.parametrize("batch_size", [1, 3, 10, 128])
    def test_batches_change_nothing(self, tokenizer, images, batch_size):
        torch.testing.assert_close(
            reconstruct(tokenizer, images, batch_size), reconstruct(tokenizer, images)
        )

    def test_continuous_tokenizers_reconstruct_too(self, make_titok_config, images):
        tokenizer = TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()
        torch.testing.assert_close(
            reconstruct(tokenizer, images), reconstruct(tokenizer, images, 4)
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_models_in_half_precision_take_float32_images(self, tokenizer, images, dtype):
        reconstructions = reconstruct(tokenizer.to(dtype), images)
        assert reconstructions.dtype == torch.float32 and reconstructions.isfinite().all()


class TestCodebookStatistics:
    def test_they_are_those_of_the_counted_codes(self, tokenizer, images):
        counts = Counter(tokenizer.encode(images).codes.flatten().tolist())
        assert 1 < len(counts) < 64
        total = sum(counts.values())
        entropy = -sum(count / total * math.log(count / total) for count in counts.values())
        found = codebook_statistics(tokenizer, images.split(4))
        assert found == {
            "usage": len(counts) / 64,
            "perplexity": pytest.approx(math.exp(entropy)),
            "entropy": pytest.approx(entropy / math.log(2)),
        }

    def test_one_code_in_use(self, titok, images):
        with torch.no_grad():
            titok.quantizer.codebook.weight.copy_(-titok.encode(images).unquantized[0, 0])
            titok.quantizer.codebook.weight[5] *= -1
            # all tokens alike: the head of the encoder ignores its input
            titok.encoder.proj.weight.zero_()
            titok.encoder.proj.bias.copy_(titok.quantizer.codebook.weight[5])
        found = codebook_statistics(titok, [images])
        assert found == {
            "usage": 1 / 64,
            "perplexity": pytest.approx(1),
            "entropy": pytest.approx(0),
        }

    def test_all_codes_in_use_alike(self, vqgan):
        """Four images of 16 tokens, each of which has a code of its own."""
        images = torch.rand(4, 3, 32, 32)
        with torch.no_grad():
            vectors = (
                vqgan.encode(images).unquantized.flatten(2).transpose(1, 2).flatten(0, 1)
            )  # (64, C)
            vqgan.quantizer.codebook.weight.copy_(vectors)
        found = codebook_statistics(vqgan, images.split(1))
        assert found == {"usage": 1, "perplexity": pytest.approx(64), "entropy": pytest.approx(6)}


DISCRETE = {"titok-vq", "titok-pixels", "vqgan", "diffusers-vq"}


class TestMeasureReconstruction:
    def test_all_families_are_measured_alike(self, family):
        name, tokenizer, processor = family
        source, images = digits(90)
        metrics = [
            "accuracy",
            "frechet_distance",
            "mean_squared_error",
            "psnr",
            "ssim",
            *CODE_METRICS,
        ]
        measured = measure_reconstruction(
            tokenizer,
            processor,
            source,
            protocol(*metrics),
            None,
            MetricNetworks(DIGITS),
            16,
            progress_bar=False,
        )
        found = measured.metrics
        assert list(found) == (metrics if name in DISCRETE else metrics[:5])

        ours, extractor = truncated(tokenizer, images), DIGITS
        assert ours.float().std() > 5
        errors = squared_errors(ours, images)
        ssim = structural_similarity_index_measure(
            ours / 255, images / 255, data_range=1.0, reduction="none"
        )
        seen = extractor(ours)
        labels = np.array(load_digits_dataset()["test"]["label"][:90])
        # a pixel may fall on the other side of an integer, since they are normalized in another
        # order here
        expected = {
            "accuracy": (seen.logits.argmax(1).numpy() == labels).mean(),
            "frechet_distance": formulas.frechet_distance(
                seen.features.numpy(), extractor(images).features.numpy()
            ),
            "mean_squared_error": np.mean(errors) / 255**2,
            "psnr": np.mean(decibels(errors)),
            "ssim": ssim.mean().item(),
        }
        for metric, value in expected.items():
            assert found[metric].value == pytest.approx(value, rel=1e-3, abs=1e-5), metric
        assert found["psnr"].standard_error == pytest.approx(sem(decibels(errors)), rel=1e-2)
        assert found["psnr"].method == "over images"
        if name in DISCRETE:
            codes = torch.cat([tokenizer.encode(batch / 255).codes for batch in images.split(16)])
            counts = np.bincount(codes.flatten())
            shares = counts[counts > 0] / counts.sum()
            entropy = -(shares * np.log2(shares)).sum()
            assert found["codebook_usage"].value == len(shares) / tokenizer.config.codebook_size
            assert found["codebook_entropy"].value == pytest.approx(entropy)
            assert found["codebook_perplexity"].value == pytest.approx(2**entropy)

    def test_batches_do_not_matter(self, family):
        _, tokenizer, processor = family
        source, _ = digits(70)
        metrics = protocol("psnr", "frechet_distance")
        first, second = (
            measure_reconstruction(
                tokenizer,
                processor,
                source,
                metrics,
                None,
                MetricNetworks(DIGITS),
                size,
                progress_bar=False,
            )
            for size in (70, 9)
        )
        assert first.fingerprint == second.fingerprint
        for name, estimate in first.metrics.items():
            assert second.metrics[name].value == pytest.approx(estimate.value, rel=1e-3), name

    @pytest.mark.parametrize("rounding", ["truncate", "round"])
    def test_the_protocols_rounding_is_followed(self, titok, rounding):
        source, images = digits(16)
        processor = TiTokImageProcessor.from_image_size(32)
        measured = measure_reconstruction(
            titok,
            processor,
            source,
            protocol("mean_squared_error", rounding=rounding),
            progress_bar=False,
        )
        with torch.no_grad():
            pixels = 255 * titok.decode(titok.encode(images / 255).latents).reconstruction.clamp(
                0, 1
            )
        ours = pixels.floor() if rounding == "truncate" else (pixels + 0.5).floor()
        expected = np.mean(squared_errors(ours, images)) / 255**2
        assert measured.metrics["mean_squared_error"].value == pytest.approx(expected, rel=1e-6)

    def test_a_reference_takes_the_place_of_the_originals(self, titok):
        source, images = digits(80)
        other = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8)
        arguments = (
            titok,
            TiTokImageProcessor.from_image_size(32),
            source,
            protocol("frechet_distance", "recall"),
        )
        measured = measure_reconstruction(
            *arguments, TensorImages(other), progress_bar=False, batch_size=16
        )
        ours, theirs = (DIGITS(x).features.numpy() for x in (truncated(titok, images), other))
        expected = formulas.frechet_distance(ours, theirs)
        assert measured.metrics["frechet_distance"].value == pytest.approx(expected, rel=1e-4)
        alone = measure_reconstruction(*arguments, progress_bar=False, batch_size=16)
        assert alone.reference is None and measured.fingerprint == alone.fingerprint
        assert measured.reference["fingerprint"] != measured.fingerprint
        assert alone.metrics["frechet_distance"].value != pytest.approx(expected, rel=0.1)


class TestOtherSizes:
    """A protocol's size need not be a tokenizer's own if it takes any."""

    @pytest.mark.parametrize("name", ["diffusers-kl", "diffusers-vq", "vtp"])
    def test_of_tokenizers_that_take_any(self, name, make_titok_config, make_vtp_config):
        tokenizer = FAMILIES[name](make_titok_config, make_vtp_config).eval()
        processor = (VTPImageProcessor if name == "vtp" else TiTokImageProcessor).from_image_size(
            32
        )
        larger = protocol("psnr", image_size=64)
        source = DatasetImages(load_digits_dataset()["test"], larger, num_images=5)
        images = next(iter(source.batches(5))).images
        assert images.shape == (5, 3, 64, 64)
        measured = measure_reconstruction(tokenizer, processor, source, larger, progress_bar=False)
        expected = np.mean(decibels(squared_errors(truncated(tokenizer, images), images)))
        assert measured.metrics["psnr"].value == pytest.approx(expected, rel=1e-6)

    def test_vtp_takes_multiples_of_its_patch(self, make_vtp_config):
        tokenizer, odd = (
            VTPForImageReconstruction(make_vtp_config()).eval(),
            protocol("psnr", image_size=36),
        )
        source = DatasetImages(load_digits_dataset()["test"], odd, num_images=5)
        with pytest.raises(ValueError, match="is for images of 36 pixels, the tokenizer for 32"):
            measure_reconstruction(
                tokenizer, VTPImageProcessor.from_image_size(32), source, odd, progress_bar=False
            )


class TestClasses:
    """The class ids of the data set are not the classifier's."""

    @staticmethod
    def source(names):
        dataset = load_digits_dataset()["test"]
        kept = [
            index
            for index, label in enumerate(dataset["label"])
            if DIGIT_NAMES[label] in ("three", "seven")
        ]
        ids = [names.index(DIGIT_NAMES[label]) for label in np.array(dataset["label"])[kept]]
        images = dataset.select(kept).remove_columns("label").add_column("label", ids)
        images = images.cast_column("label", ClassLabel(names=names))
        return DatasetImages(images, protocol("accuracy"), label_column="label")

    def test_they_are_found_by_name(self):
        source = self.source(["seven", "three"])
        assert (
            measure_generation(
                [source], None, generation_of("accuracy"), MetricNetworks(DIGITS)
            ).values["accuracy"]
            > 0.97
        )

    def test_unknown_ones_are_refused(self):
        source = self.source(["three", "VII", "seven"])
        with pytest.raises(
            ValueError,
            match=r"digits-8x8: it has no 'VII', but 'zero', 'one', .*class_matching=ids",
        ):
            measure_generation([source], None, generation_of("accuracy"), MetricNetworks(DIGITS))

    def test_ids_count_if_so_said(self):
        source = self.source(["seven", "three"])
        by_ids = generation_of("accuracy", class_matching="ids")
        assert (
            measure_generation([source], None, by_ids, MetricNetworks(DIGITS)).values["accuracy"]
            == 0
        )


def generation_of(metric, **fields):
    changes = [f"{name}={value}" for name, value in fields.items()]
    return Protocol.load("demo", [f"metrics.generation=[{metric}]", *changes])
