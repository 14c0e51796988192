"""`titok evaluate`, as a user calls it: tiny models, real digits, files in and out."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from titok_hf import TiTokImageProcessor, VTPModel
from titok_hf.data.digits import load_digits_dataset
from titok_hf.evaluation import Evaluation, evaluate_generation
from titok_hf.hub.cards import GENERATED

from .conftest import NUMBER, fingerprint

DEMO = ("--protocol", "demo")
QUICK = (*DEMO, "--set", "metrics.reconstruction=[psnr, mean_squared_error]")
GENERATED_DIGITS = (
    *DEMO,
    "--reference",
    "digits",
    "--reference-split",
    "test",
    "--num-samples",
    NUMBER,
)

pytestmark = pytest.mark.xdist_group("cli")


def values(result):
    return {name: estimate.value for name, estimate in result.metrics.items()}


def repeated(measure, result):
    """Returns the result of the recorded command."""
    program, command, task, *arguments = shlex.split(result.command)
    assert (program, command) == ("titok", "evaluate")
    return measure(task, *arguments, output="repeated.json")


def assert_same(first, second):
    """Two results agree in everything, up to rounding in the metrics."""
    assert values(first) == pytest.approx(values(second), rel=1e-9)
    first, second = (dataclasses.replace(result, metrics={}) for result in (first, second))
    assert first == second


@pytest.mark.slow
class TestReconstruction:
    def test_a_result_with_all_that_it_depends_on(self, call, tokenizer, titok):
        code, printed, errors = call(
            *(
                "evaluate",
                "reconstruction",
                tokenizer,
                "--data",
                "digits",
                *DEMO,
                "--num-images",
                NUMBER,
            )
        )
        assert code == 0, errors
        for title in ("accuracy", "Fréchet distance (digits-8x8)", "PSNR", "codebook perplexity"):
            assert title in printed
        assert "Result with its protocol: reconstruction.json" in printed
        assert (
            "demo: 70 images, 32x32, crop center (bicubic), rounded to uint8, digits-8x8 ("
            in " ".join(printed.split())
        )

        result = json.loads(Path("reconstruction.json").read_text())
        digits = load_digits_dataset()
        processor = TiTokImageProcessor.from_image_size(32)
        images = processor(digits["test"][:NUMBER]["image"], return_tensors="pt")[
            "pixel_values"
        ]  # (70, 3, 32, 32)
        with torch.no_grad():
            decoded = titok.decode(titok.encode(images).latents).reconstruction.clamp(0, 1)
        squares = ((decoded * 255).round() / 255 - images).double().square().mean((1, 2, 3))
        assert result["metrics"]["psnr"]["value"] == pytest.approx(
            float(-10 * squares.log10().mean()), rel=1e-4
        )
        assert result["metrics"]["mean_squared_error"]["value"] == pytest.approx(
            float(squares.mean()), rel=1e-4
        )
        error = float(squares.std() / NUMBER**0.5)
        assert result["metrics"]["mean_squared_error"]["standard_error"] == pytest.approx(
            error, rel=1e-3
        )
        codes = titok.encode(images).codes.unique()
        assert result["metrics"]["codebook_usage"]["value"] == len(codes) / 64

        assert result["num_images"] == NUMBER
        expected = fingerprint((images * 255).round().to(torch.uint8))
        assert result["data"] == {
            "id": "digits",
            "revision": None,
            "split": "test",
            "fingerprint": expected,
        }
        train = processor(list(digits["train"]["image"]), return_tensors="pt")["pixel_values"]
        assert result["reference"]["split"] == "train"
        assert result["reference"]["fingerprint"] == fingerprint(
            (train * 255).round().to(torch.uint8)
        )
        assert (result["protocol"]["name"], result["protocol"]["rounding"]) == ("demo", "round")
        assert {"name", "weights", "weights_sha256", "preprocessing"} <= result["judges"][
            "extractor"
        ].keys()
        assert (result["tokenizer"]["id"], result["tokenizer"]["class"]) == (
            "tokenizer",
            "TiTokModel",
        )
        assert len(result["tokenizer"]["weights_sha256"]) == 64
        assert (result["device"], result["dtype"], result["processes"]) == ("cpu", "float32", 1)
        assert result["versions"]["torch"].startswith("2.")

    def test_the_command_repeats_it(self, measure, tokenizer, folder_of_images):
        result = measure(
            *("reconstruction", tokenizer, "--data", folder_of_images, *DEMO, "--split", "train"),
            *(
                "--set",
                "metrics.reconstruction=[psnr, frechet_distance, coverage]",
                "--set",
                "rounding=truncate",
            ),
            *(
                "--reference",
                "digits",
                "--reference-split",
                "test",
                "--batch-size",
                13,
                "--dtype",
                "bfloat16",
            ),
            *("--device", "cpu", "--num-images", NUMBER - 2),
        )
        assert (result.protocol["name"], result.protocol["rounding"]) == ("demo*", "truncate")
        assert (result.num_images, result.dtype) == (NUMBER - 2, "bfloat16")
        assert (result.reference["id"], result.reference["split"]) == ("digits", "test")
        assert_same(repeated(measure, result), result)

    def test_other_columns(self, measure, tokenizer, tmp_path):
        digits = load_digits_dataset()["test"].select(range(NUMBER))
        digits.rename_columns({"image": "picture", "label": "class"}).save_to_disk(
            tmp_path / "data"
        )
        columns = ("--image-column", "picture", "--label-column", "class", "--reference", "data")
        result = measure("reconstruction", tokenizer, "--data", "data", *DEMO, *columns)
        assert values(result).keys() >= {"accuracy", "frechet_distance"}
        assert_same(repeated(measure, result), result)

    def test_a_tokenizer_on_the_hub_has_its_commit(self, measure, hub, titok):
        titok.push_to_hub("user/evaluated")
        commit = hub.repositories["model", "user/evaluated"].find("main").sha
        arguments = (
            "reconstruction",
            "user/evaluated",
            "--data",
            "digits",
            *QUICK,
            "--num-images",
            4,
        )
        result = measure(*arguments)
        assert (result.tokenizer["id"], result.tokenizer["revision"]) == ("user/evaluated", commit)

        with torch.no_grad():
            titok.encoder.latent_tokens.mul_(3)
        titok.push_to_hub("user/evaluated")
        newer, older = measure(*arguments), measure(*arguments, "--revision", commit)
        assert (
            newer.tokenizer["revision"]
            == hub.repositories["model", "user/evaluated"].find("main").sha
            != commit
        )
        assert newer.tokenizer["weights_sha256"] != result.tokenizer["weights_sha256"]
        assert (older.tokenizer, values(older)) == (result.tokenizer, values(result))
        assert_same(repeated(measure, older), older)

    def test_a_protocol_of_ones_own(self, measure, tokenizer):
        Path("mine.yaml").write_text(
            "base: demo\nrounding: truncate\nmetrics: {reconstruction: [psnr]}\n"
        )
        result = measure(
            "reconstruction",
            tokenizer,
            "--data",
            "digits",
            "--protocol",
            "mine.yaml",
            "--num-images",
            5,
        )
        assert (result.protocol["name"], result.protocol["rounding"], list(result.metrics)) == (
            "mine",
            "truncate",
            ["psnr"],
        )
        assert_same(repeated(measure, result), result)

    def test_tokenizers_of_other_families(self, measure, make_vtp_config, tmp_path):
        """Without codes, metrics of codes are left out."""
        VTPModel(make_vtp_config()).save_pretrained(tmp_path / "vtp")
        autoencoder = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, sample_size=32)
        autoencoder.save_pretrained(tmp_path / "kl")
        for name, class_name in (("vtp", "VTPForImageReconstruction"), ("kl", "AutoencoderKL")):
            changes = ("--set", "metrics.reconstruction=[psnr, codebook_usage]")
            result = measure(
                "reconstruction", name, "--data", "digits", *DEMO, *changes, "--num-images", 3
            )
            assert (list(result.metrics), result.tokenizer["class"]) == (["psnr"], class_name)

    def test_the_folder_of_the_result_is_made(self, measure, tokenizer):
        output = os.path.join("new", "folder", "result[b].json")
        result = measure(
            "reconstruction",
            tokenizer,
            "--data",
            "digits",
            *QUICK,
            "--num-images",
            3,
            output=output,
        )
        assert result.num_images == 3


@pytest.mark.slow
class TestGeneration:
    def test_a_result_with_all_that_it_depends_on(self, call, saved_pipeline):
        code, printed, errors = call("evaluate", "generation", saved_pipeline, *GENERATED_DIGITS)
        assert code == 0, errors
        for title in ("accuracy", "Fréchet distance (digits-8x8)", "precision", "coverage"):
            assert title in printed
        result = Evaluation.load("generation.json")
        assert list(result.metrics) == result.protocol["metrics"]["generation"]
        assert (result.num_images, result.seeds, result.dtype) == (NUMBER, [0], "float32")
        assert (result.tokenizer["class"], result.generator["class"]) == (
            "TiTokModel",
            "MaskGitModel",
        )
        assert (result.tokenizer["subfolder"], result.generator["subfolder"]) == (
            "tokenizer",
            "transformer",
        )
        assert result.sampler["class"] == "MaskGitScheduler"
        assert result.sampler["arguments"] == {
            "num_inference_steps": 8,
            "guidance_scale": 5.5,
            "guidance_schedule": "linear",
        }
        assert result.data["classes"] == "10 in turn"
        assert (result.reference["id"], result.reference["split"]) == ("digits", "test")

    def test_the_command_repeats_it(self, measure, saved_pipeline):
        sampler = ("num_inference_steps=2", "guidance_scale=1.5", "guidance_schedule=constant")
        result = measure(
            *(
                "generation",
                saved_pipeline,
                *GENERATED_DIGITS,
                "--seed",
                3,
                "--seed",
                5,
                "--batch-size",
                32,
            ),
            *(word for argument in sampler for word in ("--sampler", argument)),
            *("--set", "metrics.generation=[accuracy, frechet_distance]"),
        )
        assert (result.seeds, result.reference["split"]) == ([3, 5], "test")
        assert result.sampler["arguments"] == {
            "num_inference_steps": 2,
            "guidance_scale": 1.5,
            "guidance_schedule": "constant",
        }
        assert result.metrics["frechet_distance"].method == "over 2 seeds"
        assert_same(repeated(measure, result), result)

    def test_several_seeds_give_their_mean(self, measure, saved_pipeline):
        changes = ("--set", "metrics.generation=[frechet_distance]")
        arguments = ("generation", saved_pipeline, *GENERATED_DIGITS, *changes)
        singles = [
            measure(*arguments, "--seed", seed).metrics["frechet_distance"].value for seed in (1, 2)
        ]
        found = measure(*arguments, "--seed", 1, "--seed", 2).metrics["frechet_distance"]
        assert found.value == pytest.approx(np.mean(singles))
        assert found.standard_error == pytest.approx(abs(singles[0] - singles[1]) / 2)

    def test_samples_are_kept_and_measured_later(self, call, measure, saved_pipeline):
        """Against a reference batch that a command wrote: the numbers are the same."""
        code, printed, _ = call(
            "evaluate", "reference", "digits", "--split", "train", *DEMO, "--output", "train.npz"
        )
        assert code == 0 and "Reference batch: train.npz" in printed
        with np.load("train.npz") as batch:
            assert batch["arr_0"].shape == (1437, 32, 32, 3) and batch["mu"].shape == (64,)
        arguments = (
            *DEMO,
            "--reference",
            "train.npz",
            "--set",
            "metrics.generation=[frechet_distance, precision]",
        )
        made = measure(
            "generation",
            saved_pipeline,
            *arguments,
            "--num-samples",
            NUMBER,
            "--samples",
            "samples.npz",
            output="a",
        )
        with np.load("samples.npz") as batch:
            assert batch["arr_0"].shape == (NUMBER, 32, 32, 3) and batch["arr_0"].dtype == np.uint8
        later = measure("generation", "samples.npz", *arguments, output="b")
        assert values(later) == pytest.approx(values(made), rel=1e-9)
        assert later.data["fingerprint"] == made.data["fingerprint"]
        assert (later.generator, later.sampler, later.seeds) == (
            made.generator,
            made.sampler,
            made.seeds,
        )
        digits = (
            *DEMO,
            "--reference",
            "digits",
            "--num-samples",
            NUMBER,
        )  # `train`, as the protocol says
        direct = measure("generation", saved_pipeline, *digits, *arguments[-2:])
        assert direct.reference["split"] == "train"
        assert values(direct) == pytest.approx(values(made), rel=1e-6)
        assert_same(repeated(measure, later), later)
        code, printed, errors = call("evaluate", "compare", "a", "b")
        assert code == 0, errors

    def test_a_folder_of_images(self, measure, folder_of_images):
        result = measure(
            *(
                "generation",
                folder_of_images,
                *DEMO,
                "--reference",
                "digits",
                "--reference-split",
                "test",
            ),
            *("--set", "metrics.generation=[recall, coverage]"),
        )
        assert (result.num_images, result.data["id"], result.dtype) == (NUMBER, "images", None)
        assert_same(repeated(measure, result), result)

    def test_a_pipeline_on_the_hub_has_its_commit(self, measure, hub, pipeline):
        pipeline.push_to_hub("user/generating")
        commit = hub.repositories["model", "user/generating"].find("main").sha
        result = measure("generation", "user/generating", *GENERATED_DIGITS, "--revision", commit)
        assert result.tokenizer["revision"] == result.generator["revision"] == commit
        assert_same(repeated(measure, result), result)

    def test_it_is_what_python_gives(self, measure, saved_pipeline):
        result = measure(
            "generation", saved_pipeline, *GENERATED_DIGITS, "--sampler", "num_inference_steps=1"
        )
        sampler = {"num_inference_steps": 1}
        other = evaluate_generation(
            saved_pipeline,
            "demo",
            reference="digits",
            reference_split="test",
            num_samples=NUMBER,
            sampler=sampler,
        )
        assert_same(other, result)


@pytest.mark.slow
class TestCompare:
    @pytest.fixture
    def results(self, measure, tokenizer):
        """Results of the same protocol, of another number of images, and of another rounding."""
        arguments = ("reconstruction", tokenizer, "--data", "digits", *QUICK)
        measure(*arguments, "--num-images", 4, output="a[b].json")
        measure(*arguments, "--num-images", 4, "--batch-size", 3, output="[/b].json")
        measure(*arguments, "--num-images", 5, "--set", "rounding=truncate", output="other.json")

    def test_of_one_protocol(self, results, call):
        code, printed, _ = call("evaluate", "compare", "a[b].json", "[/b].json")
        assert code == 0
        header = next(line for line in printed.splitlines() if "metric" in line)
        assert header.index("a[b].json") < header.index("[/b].json")
        for path in ("a[b].json", "[/b].json"):
            value = Evaluation.load(path).metrics["psnr"].value
            assert f"{value:.5g} ± " in next(
                line for line in printed.splitlines() if "PSNR" in line
            )
        assert "different" not in printed

    def test_of_different_protocols(self, results, refused):
        error = refused("compare", "a[b].json", "other.json")
        assert "not measured by one protocol" in error and "--different-protocols" in error
        assert "num_images: 4 | 5" in error and "protocol.rounding: round | truncate" in error
        assert "data: " in error and "crop" not in error

    def test_of_different_protocols_if_so_wanted(self, results, call):
        code, printed, _ = call(
            "evaluate", "compare", "a[b].json", "other.json", "--different-protocols"
        )
        assert code == 0 and "PSNR" in printed
        assert "different num_images: 4 | 5" in printed
        assert "different protocol.rounding: round | truncate" in printed

    def test_of_different_metrics(self, results, call, measure, tokenizer):
        """A metric that one lacks leaves its cell empty; those of another network have a row of
        their own."""
        arguments = ("reconstruction", tokenizer, "--data", "digits", *DEMO, "--num-images", NUMBER)
        measure(*arguments, "--set", "metrics.reconstruction=[psnr]", output="pairs.json")
        sets = measure(
            *arguments,
            "--set",
            "metrics.reconstruction=[frechet_distance, psnr]",
            output="sets.json",
        )
        other = dataclasses.replace(
            sets, judges={"extractor": {**sets.judges["extractor"], "name": "other"}}
        )
        other.save("network.json")
        code, printed, errors = call(
            "evaluate",
            "compare",
            "pairs.json",
            "network.json",
            "sets.json",
            "--different-protocols",
        )
        assert code == 0, errors
        rows = {
            line.split("│")[1].strip(): line.split("│")[2:-1]
            for line in printed.splitlines()
            if "│" in line
        }
        assert [bool(cell.strip()) for cell in rows["Fréchet distance (other)"]] == [
            False,
            True,
            False,
        ]
        assert [bool(cell.strip()) for cell in rows["Fréchet distance (digits-8x8)"]] == [
            False,
            False,
            True,
        ]
        assert all(cell.strip() for cell in rows["PSNR"])

    def test_what_is_no_result(self, refused, tmp_path):
        (tmp_path / "other.json").write_text("{}")
        assert "other.json is not a result of `titok evaluate`" in refused("compare", "other.json")


def test_a_result_is_published_with_the_model(call, measure, hub, tokenizer, titok):
    measure(
        "reconstruction",
        tokenizer,
        "--data",
        "digits",
        *QUICK,
        "--num-images",
        5,
        output="one.json",
    )
    code, printed, errors = call("push", tokenizer, "user/measured", "--result", "one.json")
    assert code == 0 and "Published: user/measured" in printed, errors
    card = hub.files("user/measured")["README.md"].decode()
    assert "PSNR" in card and "demo*: 5 images" in card and GENERATED in card

    with torch.no_grad():
        titok.encoder.latent_tokens.mul_(3)
    titok.save_pretrained(tokenizer)
    code, _, errors = call("push", tokenizer, "user/measured", "--result", "one.json")
    assert (
        code == 1 and "one.json is a result of another tokenizer, tokenizer (TiTokModel)" in errors
    )
    assert hub.files("user/measured")["README.md"].decode() == card
