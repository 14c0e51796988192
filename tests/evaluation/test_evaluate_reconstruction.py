"""`evaluate_reconstruction` measures the tokenizer of a folder as its protocol says."""

import shlex

import numpy as np
import pytest
import torch
from fixtures.extractors.networks import inception_weights, lpips_heads, vgg16_weights
from PIL import Image as PILImage
from typer.testing import CliRunner

from titok_hf.cli import app
from titok_hf.evaluation import (
    Evaluation,
    Protocol,
    evaluate_reconstruction,
    measure_reconstruction,
)
from titok_hf.evaluation.image_sources import open_source
from titok_hf.evaluation.inception import InceptionExtractor
from titok_hf.modeling.vtp import VTPForImageReconstruction
from titok_hf.modeling.vtp.modeling_vtp import VTPPixelDecoder, VTPVisionEncoder
from titok_hf.perceptual.lpips import LPIPS

from . import formulas
from .reconstructing import DIGITS, decibels, digits, protocol, squared_errors, truncated

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoint(family, tmp_path):
    """Folder of each family's tokenizer in turn."""
    name, tokenizer, _ = family
    (tokenizer.autoencoder if name.startswith("diffusers") else tokenizer).save_pretrained(
        tmp_path / "tokenizer"
    )
    return tmp_path / "tokenizer"


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
