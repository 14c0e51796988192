import math
import shlex
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from fixtures.extractors.networks import inception_weights, lpips_heads, vgg16_weights
from PIL import Image as PILImage
from scipy.stats import sem
from torchmetrics.functional.image import structural_similarity_index_measure
from typer.testing import CliRunner

from titok_hf import TiTokImageProcessor, TiTokModel
from titok_hf.cli import app
from titok_hf.data.digits import DIGIT_NAMES, load_digits_dataset
from titok_hf.evaluation import (
    Evaluation,
    Protocol,
    codebook_statistics,
    evaluate_reconstruction,
    measure_generation,
    measure_reconstruction,
    reconstruct,
)
from titok_hf.evaluation.adm import ReferenceBatch
from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.image_sources import (
    DatasetImages,
    ReferenceImages,
    TensorImages,
    open_source,
)
from titok_hf.evaluation.inception import InceptionExtractor
from titok_hf.evaluation.metric_networks import MetricNetworks
from titok_hf.evaluation.protocol import CODE_METRICS
from titok_hf.modeling.diffusers_tokenizer import DiffusersTokenizer
from titok_hf.modeling.vtp import VTPForImageReconstruction, VTPImageProcessor
from titok_hf.modeling.vtp.modeling_vtp import VTPPixelDecoder, VTPVisionEncoder
from titok_hf.perceptual.lpips import LPIPS

from . import formulas
from .tiny_models import Colors, CountingTiTok, make_kl, make_vq

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


DIGITS = DigitsExtractor()
FAMILIES = {
    "titok-vq": lambda make, _: TiTokModel(make("vqgan_decoder")),
    "titok-pixels": lambda make, _: TiTokModel(make("pixels")),
    "titok-kl": lambda make, _: TiTokModel(make("pixels", quantizer="kl")),
    "vtp": lambda _, make: VTPForImageReconstruction(make()),
    "diffusers-kl": lambda *_: DiffusersTokenizer(make_kl()),
    "diffusers-vq": lambda *_: DiffusersTokenizer(make_vq()),
}
DISCRETE = {"titok-vq", "titok-pixels", "vqgan", "diffusers-vq"}


@pytest.fixture(params=[*FAMILIES, "vqgan"])
def family(request, make_titok_config, make_vtp_config):
    """Name, tokenizer and image processor of each family in turn."""
    if request.param == "vqgan":
        tokenizer = request.getfixturevalue("vqgan")
    else:
        tokenizer = FAMILIES[request.param](make_titok_config, make_vtp_config).eval()
    processor = VTPImageProcessor if request.param == "vtp" else TiTokImageProcessor
    return request.param, tokenizer, processor.from_image_size(32)


def protocol(*metrics, **fields):
    """The demo's, truncated, with other metrics."""
    fields = {"rounding": "truncate", **fields}
    changes = [f"{name}={value}" for name, value in fields.items()]
    return Protocol.load("demo", [f"metrics.reconstruction=[{','.join(metrics)}]", *changes])


def digits(num_images):
    """Source and pixels of held-out digits."""
    dataset = load_digits_dataset()["test"]
    source = DatasetImages(dataset, protocol("psnr"), label_column="label", num_images=num_images)
    return source, torch.cat([batch.images for batch in source.batches(512)])


@torch.no_grad()
def truncated(tokenizer, images, batch_size=16, autocast=False):
    """Reconstructions of uint8 images, by hand."""
    vtp = isinstance(tokenizer, VTPForImageReconstruction)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if vtp else ([0] * 3, [1] * 3)
    mean, std = (torch.tensor(each)[:, None, None] for each in (mean, std))
    found = []
    for batch in images.split(batch_size):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            latents = tokenizer.encode((batch / 255 - mean) / std).latents
        pixels = tokenizer.decode(latents.float()).reconstruction * std + mean
        found.append((255 * pixels.clamp(0, 1)).floor().to(torch.uint8))
    return torch.cat(found)


def squared_errors(images, targets):
    """Returns the error of each image on the scale of 0 to 255."""
    pairs = zip(images.numpy(), targets.numpy(), strict=True)
    return [((image.astype(float) - target.astype(float)) ** 2).mean() for image, target in pairs]


def decibels(errors):
    return [10 * math.log10(255**2 / error) for error in errors]


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


@pytest.fixture
def checkpoint(family, tmp_path):
    """Folder of each family's tokenizer in turn."""
    name, tokenizer, _ = family
    (tokenizer.autoencoder if name.startswith("diffusers") else tokenizer).save_pretrained(
        tmp_path / "tokenizer"
    )
    return tmp_path / "tokenizer"


@pytest.fixture
def pictures(tmp_path, caches):
    """Folder of four images of 40x36 pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 10, 3), np.uint8)
        PILImage.fromarray(pixels).resize((40, 36), PILImage.Resampling.BICUBIC).save(
            folder / f"{i}.png"
        )
    return folder


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


class TestEvaluateReconstruction:
    def test_all_families_come_from_their_folders(self, family, checkpoint):
        name, tokenizer, processor = family
        changes = ["rounding=truncate", "metrics.reconstruction=[psnr,accuracy]"]
        result = evaluate_reconstruction(
            checkpoint, "digits", "demo", changes, num_images=20, device="cpu"
        )
        source, images = digits(20)
        expected = measure_reconstruction(
            tokenizer, processor, source, protocol("psnr", "accuracy"), progress_bar=False
        )
        assert result.metrics["psnr"].value == pytest.approx(
            expected.metrics["psnr"].value, rel=1e-6
        )
        assert result.metrics["accuracy"] == expected.metrics["accuracy"]
        psnr = decibels(squared_errors(truncated(tokenizer, images, 64), images))
        assert result.metrics["psnr"].value == pytest.approx(np.mean(psnr), rel=1e-4)
        assert result.data == {
            "id": "digits",
            "revision": None,
            "split": "test",
            "fingerprint": expected.fingerprint,
        }
        assert (result.num_images, result.device, result.dtype, result.processes) == (
            20,
            "cpu",
            "float32",
            1,
        )
        wrapped = tokenizer.autoencoder if name.startswith("diffusers") else tokenizer
        assert result.tokenizer["class"] == type(wrapped).__name__

    def test_vtps_protocol(self, make_vtp_config, pictures, torch_cache, tmp_path):
        """ADM's crop, the encoder in bfloat16 and the decoder in float32, pytorch-fid's Inception,
        and LPIPS."""
        vtp = VTPForImageReconstruction(make_vtp_config()).eval()
        vtp.save_pretrained(tmp_path / "vtp")
        torch.save(vgg16_weights(), torch_cache / "vgg16-397923af.pth")
        torch.save(lpips_heads(), torch_cache / "lpips-v0.1-vgg-a78928a0.pth")
        torch.save(inception_weights(), tmp_path / "inception.pth")
        changes = [
            "image_size=32",
            "metrics.reconstruction=[kernel_distance,psnr,lpips]",
            "kernel_subsets=1",
        ]
        changes += ["kernel_subset_size=4"]
        autocast = {}  # how much it changes the images is for the processor to say

        def look(module, _inputs):
            if isinstance(module, VTPVisionEncoder | VTPPixelDecoder):
                autocast[type(module)] = torch.is_autocast_enabled(
                    "cpu"
                ) and torch.get_autocast_dtype("cpu")

        hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
        result = evaluate_reconstruction(
            tmp_path / "vtp",
            str(pictures),
            "vtp-rfid",
            changes,
            extractor_weights=tmp_path / "inception.pth",
            device="cpu",
        )
        hook.remove()
        assert autocast == {VTPVisionEncoder: torch.bfloat16, VTPPixelDecoder: False}
        crops = [
            PILImage.open(pictures / f"{i}.png")
            .resize((36, 32), PILImage.Resampling.BICUBIC)
            .crop((2, 0, 34, 32))
            for i in range(4)
        ]
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        ours, exact = truncated(vtp, images, autocast=True), truncated(vtp, images)
        assert (ours != exact).float().mean() > 0.05
        psnr = np.mean(decibels(squared_errors(ours, images)))
        assert result.metrics["psnr"].value == pytest.approx(psnr, abs=1e-3)
        lpips = LPIPS.from_state_dicts(vgg16_weights(), lpips_heads())
        distances = lpips(ours / 127.5 - 1, images / 127.5 - 1)
        assert result.metrics["lpips"].value == pytest.approx(distances.mean().item(), rel=1e-3)
        extractor = InceptionExtractor(tmp_path / "inception.pth", "pytorch-fid", "cpu")
        features = [extractor(x).features.double().numpy() for x in (ours, images)]
        expected = formulas.kernel_distance(*features)
        assert result.metrics["kernel_distance"].value == pytest.approx(expected, rel=1e-2)
        assert set(result.judges) == {"extractor", "lpips"}
        assert result.judges["extractor"] == extractor.identity()

    def test_the_command_repeats_it(self, titok, pictures, tmp_path):
        titok.save_pretrained(tmp_path / "my titok")
        result = evaluate_reconstruction(
            tmp_path / "my titok",
            str(pictures),
            "titok-rfid",
            ["image_size=32", "crop=squash", "metrics.reconstruction=[psnr,codebook_usage]"],
            split="train",
            num_images=3,
            batch_size=2,
            device="cpu",
            dtype="bfloat16",
        )
        words = shlex.split(result.command)
        again = CliRunner().invoke(app, [*words[1:], "--output", str(tmp_path / "again.json")])
        assert again.exit_code == 0, again.output
        assert Evaluation.load(tmp_path / "again.json") == result

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision(self, titok, tmp_path, dtype):
        titok.save_pretrained(tmp_path)
        changes = ["metrics.reconstruction=[psnr]"]
        half, full = (
            evaluate_reconstruction(
                tmp_path, "digits", "demo", changes, num_images=8, device="cpu", dtype=each
            )
            for each in (dtype, "float32")
        )
        assert half.dtype == dtype
        assert half.metrics["psnr"].value != full.metrics["psnr"].value
        assert half.metrics["psnr"].value == pytest.approx(full.metrics["psnr"].value, rel=0.1)

    def test_the_demos_protocol_compares_with_the_training_digits(self, titok, tmp_path):
        titok.save_pretrained(tmp_path)
        result = evaluate_reconstruction(tmp_path, "digits", "demo", num_images=70, device="cpu")
        assert (result.reference["id"], result.reference["split"]) == ("digits", "train")
        _, images = digits(70)
        with torch.no_grad():
            pixels = 255 * titok.decode(titok.encode(images / 255).latents).reconstruction.clamp(
                0, 1
            )
        train = torch.cat(
            [
                batch.images
                for batch in open_source("digits", Protocol.load("demo"), "train").batches(500)
            ]
        )
        ours, theirs = (DIGITS(x).features.numpy() for x in (pixels.round().to(torch.uint8), train))
        expected = formulas.frechet_distance(ours, theirs)
        assert result.metrics["frechet_distance"].value == pytest.approx(expected, rel=1e-4)


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
