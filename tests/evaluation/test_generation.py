"""Evaluations of generated images, held against numpy and scipy on features taken directly."""

import json
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.extractors.networks import inception_weights
from forked import run, start
from PIL import Image
from scipy.stats import sem
from typer.testing import CliRunner

from titok_hf.cli import app
from titok_hf.evaluation import (
    Evaluation,
    Protocol,
    evaluate_generation,
    measure_generation,
    write_reference,
)
from titok_hf.evaluation.adm import ReferenceBatch
from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.generation import KeptImages, load_pipeline
from titok_hf.evaluation.image_sources import (
    GeneratedImages,
    ReferenceImages,
    TensorImages,
    open_source,
)
from titok_hf.evaluation.inception import InceptionExtractor
from titok_hf.evaluation.metric_networks import MetricNetworks

from . import formulas
from .distributed_evaluation import BATCH_SIZES, ON_FEATURES, ON_PAIRS, evaluate
from .generation_to_file import BATCH_SIZE, NUM_SAMPLES, generate
from .tiny_models import Colors, make_ddpm, make_dit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    return DigitsExtractor()


@pytest.fixture(scope="module")
def real():
    """The training digits as an evaluation sees them."""
    source = open_source("digits", Protocol.load("demo"), "train")
    return torch.cat([batch.images for batch in source.batches(512)])


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "titok")
    return tmp_path / "titok"


def changes(*metrics, **fields):
    return [
        f"metrics.generation=[{','.join(metrics)}]",
        *(f"{name}={value}" for name, value in fields.items()),
    ]


def generated(folder, number, seed=0, batch_size=64, **arguments):
    """The images of a pipeline for the demo's protocol."""
    source = GeneratedImages(
        load_pipeline(folder), number, Protocol.load("demo"), seed, **arguments
    )
    return torch.cat([batch.images for batch in source.batches(batch_size)])


def write_samples(path, images, **arrays):
    """Converts images as ADM's scripts do."""
    np.savez(path, np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()), **arrays)


def values_of(result):
    return {name: estimate.value for name, estimate in result.metrics.items()}


PIPELINES = {
    "titok": (None, {"num_inference_steps": 4}, "TiTokModel", "MaskGitModel"),
    "dit": (
        make_dit,
        {"num_inference_steps": 3, "guidance_scale": 1.0},
        "AutoencoderKL",
        "DiTTransformer2DModel",
    ),
    "ddpm": (make_ddpm, {"num_inference_steps": 3}, None, "UNet2DModel"),
}


class TestPipelines:
    @pytest.mark.parametrize("name", PIPELINES)
    def test_all_kinds_are_measured_alike(self, name, pipeline, tmp_path, digits, real):
        make, sampler, tokenizer, generator = PIPELINES[name]
        (make() if make else pipeline).save_pretrained(tmp_path / "pipeline")
        metrics = [
            "frechet_distance",
            "precision",
            "recall",
            "density",
            "coverage",
            "inception_score",
        ]
        metrics += [] if name == "ddpm" else ["accuracy"]
        result = evaluate_generation(
            tmp_path / "pipeline",
            "demo",
            changes(*metrics, inception_score_splits=2),
            reference="digits",
            num_samples=70,
            sampler=sampler,
            device="cpu",
        )
        seen = digits(generated(tmp_path / "pipeline", 70, **sampler))
        x, y = seen.features.numpy(), digits(real).features.numpy()
        kept, kept_reference = (
            x.astype(np.float32).astype(float),
            y.astype(np.float32).astype(float),
        )
        expected = {
            "frechet_distance": pytest.approx(formulas.frechet_distance(x, y), rel=1e-7),
            "precision": formulas.precision(kept, kept_reference, 3),
            "recall": formulas.precision(kept_reference, kept, 3),
            "density": pytest.approx(formulas.density(kept, kept_reference, 5)),
            "coverage": formulas.coverage(kept, kept_reference, 5),
            "inception_score": pytest.approx(
                formulas.inception_score(seen.logits.numpy(), 2), rel=1e-9
            ),
        }
        if name != "ddpm":
            classes = np.arange(70) % 10
            expected["accuracy"] = pytest.approx((seen.logits.argmax(1).numpy() == classes).mean())
        assert values_of(result) == expected
        assert (
            result.num_images == 70 and result.seeds == [0] and result.reference["split"] == "train"
        )
        assert (result.tokenizer and result.tokenizer["class"], result.generator["class"]) == (
            tokenizer,
            generator,
        )
        assert result.sampler["arguments"].items() >= sampler.items()

    @pytest.mark.parametrize("name", PIPELINES)
    def test_batches_do_not_matter(self, name, pipeline, tmp_path):
        make, sampler, *_ = PIPELINES[name]
        (make() if make else pipeline).save_pretrained(tmp_path / "pipeline")
        whole = generated(tmp_path / "pipeline", 23, batch_size=23, **sampler)
        for batch_size in (1, 7):
            difference = (
                generated(tmp_path / "pipeline", 23, batch_size=batch_size, **sampler).int() - whole
            ).abs()
            assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3
        assert len({bytes(image.flatten().tolist()) for image in whole}) == 23

    def test_several_seeds_give_the_mean_of_as_many_sets(self, saved, digits, real):
        result = evaluate_generation(
            saved,
            "demo",
            changes("frechet_distance", "accuracy"),
            reference="digits",
            num_samples=70,
            seeds=[3, 4, 8],
        )
        seen = [digits(generated(saved, 70, seed)) for seed in (3, 4, 8)]
        reference = digits(real).features.numpy()
        distances = [formulas.frechet_distance(each.features.numpy(), reference) for each in seen]
        shares = [(each.logits.argmax(1).numpy() == np.arange(70) % 10).mean() for each in seen]
        for name, expected in (("frechet_distance", distances), ("accuracy", shares)):
            estimate = result.metrics[name]
            assert estimate.value == pytest.approx(np.mean(expected), rel=1e-9)
            assert estimate.standard_error == pytest.approx(sem(expected), rel=1e-6)
            assert estimate.method == "over 3 seeds"
        assert result.seeds == [3, 4, 8]
        assert "--seed 3 --seed 4 --seed 8" in result.command

    def test_the_command_repeats_it(self, saved, tmp_path):
        result = evaluate_generation(
            saved,
            "demo",
            changes("inception_score", inception_score_splits=2),
            num_samples=12,
            seeds=[3, 4],
            sampler={"num_inference_steps": 3, "guidance_schedule": "constant"},
            batch_size=5,
            device="cpu",
        )
        words = shlex.split(result.command)
        assert words[0] == "titok"
        again = CliRunner().invoke(app, [*words[1:], "--output", str(tmp_path / "again.json")])
        assert again.exit_code == 0, again.output
        assert Evaluation.load(tmp_path / "again.json") == result

    def test_half_precision(self, saved):
        half, full = (
            evaluate_generation(
                saved, "demo", changes("inception_score"), num_samples=10, device="cpu", dtype=dtype
            )
            for dtype in ("bfloat16", "float32")
        )
        assert half.data["fingerprint"] != full.data["fingerprint"]
        assert half.dtype == "bfloat16"


class TestImagesThatAreThere:
    @pytest.fixture
    def images(self):
        return torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8)

    def test_a_folder_and_a_file_of_adm(self, tmp_path, images, digits):
        write_samples(tmp_path / "samples.npz", images)
        (tmp_path / "folder").mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(
                tmp_path / "folder" / f"{i:03d}.png"
            )
        from_file, from_folder = (
            evaluate_generation(
                tmp_path / name,
                "demo",
                changes("frechet_distance", "inception_score"),
                reference="digits",
            )
            for name in ("samples.npz", "folder")
        )
        assert from_file.data["fingerprint"] == from_folder.data["fingerprint"]
        assert values_of(from_file) == pytest.approx(values_of(from_folder), rel=1e-12)
        expected = formulas.inception_score(digits(images).logits.numpy(), 10)
        assert from_file.metrics["inception_score"].value == pytest.approx(expected, rel=1e-9)
        assert (from_file.seeds, from_file.dtype, from_file.generator) == (None, None, None)

    def test_folders_of_classes_have_labels(self, tmp_path, digits):
        source = open_source("digits", Protocol.load("demo"), "test")
        images = next(iter(source.batches(40))).images
        for i, image in enumerate(images):
            folder = tmp_path / "folder" / str(i % 10)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
        with pytest.raises(
            ValueError,
            match=r"not those of digits-8x8: it has no '0', but 'zero', .*class_matching=ids",
        ):
            evaluate_generation(tmp_path / "folder", "demo", changes("accuracy"))
        result = evaluate_generation(
            tmp_path / "folder", "demo", changes("accuracy", class_matching="ids")
        )
        read = digits(images).logits.argmax(1).numpy()
        assert result.metrics["accuracy"].value == pytest.approx(
            (read == np.arange(40) % 10).mean()
        )

    @pytest.mark.parametrize(
        ("source", "arguments", "sentence"),
        [
            (
                "samples.npz",
                {"samples": "other.npz"},
                "holds images already: .* are for a pipeline",
            ),
            ("samples.npz", {"num_samples": 70}, "holds images already"),
            ("samples.npz", {"sampler": {"eta": 1}}, "holds images already"),
            ("samples.npz", {"seeds": [1, 2]}, "holds images already"),
            ("statistics.npz", {}, r"statistics\.npz holds statistics, no images"),
            ("small.npz", {}, r"images of 32x32 pixels, .*small\.npz holds 16x16"),
            ("mixed", {}, "All images must be 32x32 pixels, .* image 1 is 40x32"),
            ("empty", {}, "empty must hold images, tar shards or Parquet files"),
            ("text.npz", {}, r"text\.npz is not a complete npz file"),
            ("samples.npz", {"overrides": changes("accuracy")}, "accuracy needs labels"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, tmp_path, monkeypatch, images, source, arguments, sentence
    ):
        monkeypatch.chdir(tmp_path)
        write_samples(tmp_path / "samples.npz", images)
        write_samples(tmp_path / "small.npz", images[..., :16, :16])
        np.savez(tmp_path / "statistics.npz", mu=np.zeros(64), sigma=np.eye(64))
        (tmp_path / "text.npz").write_text("text")
        (tmp_path / "empty").mkdir()
        (tmp_path / "mixed").mkdir()
        for i in range(2):
            Image.new("RGB", (32 + 8 * i, 32)).save(tmp_path / "mixed" / f"{i}.png")
        with pytest.raises(ValueError, match=sentence):
            evaluate_generation(
                source, "demo", **{"overrides": changes("inception_score"), **arguments}
            )


class TestAdm:
    """Against reference batches, as ADM's evaluator computes it."""

    def test_batches_of_ours_and_of_numpys_serve_alike(self, saved, tmp_path, digits, real):
        write_reference("digits", tmp_path / "ours.npz", "demo", split="train", num_kept=100)
        features = digits(real).features.numpy()
        kept = real[[i * 1437 // 100 for i in range(100)]]
        write_samples(tmp_path / "numpys.npz", kept, mu=features.mean(0), sigma=np.cov(features.T))
        results = [
            evaluate_generation(
                saved,
                "demo",
                changes("frechet_distance", "precision", "recall", "kernel_distance", kernel_subsets=1,
                        kernel_subset_size=70),
                reference=str(tmp_path / name),
                num_samples=70,
            )
            for name in ("ours.npz", "numpys.npz")
        ]  # fmt: skip
        x = digits(generated(saved, 70)).features.numpy()
        ours, theirs = (
            each.astype(np.float32).astype(float) for each in (x, digits(kept).features.numpy())
        )
        for result in results:
            found = values_of(result)
            assert found["frechet_distance"] == pytest.approx(
                formulas.frechet_distance(x, features), rel=1e-7
            )
            assert found["precision"] == formulas.precision(ours, theirs, 3)
            assert found["recall"] == formulas.precision(theirs, ours, 3)
        assert values_of(results[0]) == pytest.approx(values_of(results[1]), rel=1e-9)
        assert results[0].reference["fingerprint"] == results[1].reference["fingerprint"]
        assert results[0].reference["sha256"] != results[1].reference["sha256"]

    def test_spatial_statistics(self, tmp_path):
        """sFID, and FID, against the statistics in the file and not those of its images."""
        images = (torch.rand(50, 3, 1, 1) * torch.rand(50, 3, 8, 8) * 256).to(torch.uint8)
        others = (torch.rand(90, 3, 1, 1) * torch.rand(90, 3, 8, 8) * 256).to(torch.uint8)
        ours, theirs = Colors()(images), Colors()(others)
        mu, mu_s = theirs.features.mean(0).numpy(), theirs.spatial.mean(0).numpy()
        sigma, sigma_s = np.cov(theirs.features.numpy().T), np.cov(theirs.spatial.numpy().T)
        write_samples(
            tmp_path / "reference.npz", others[:10], mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s
        )
        metrics = changes("frechet_distance", "spatial_frechet_distance", image_size=8)
        protocol = Protocol.load("adm-256", metrics)
        reference = ReferenceImages(ReferenceBatch.load(tmp_path / "reference.npz"), protocol)
        measured = measure_generation(
            [TensorImages(images)],
            reference,
            protocol,
            MetricNetworks(Colors()),
            progress_bar=False,
        )
        for name, kind in (
            ("frechet_distance", "features"),
            ("spatial_frechet_distance", "spatial"),
        ):
            expected = formulas.frechet_distance(
                getattr(ours, kind).numpy(), getattr(theirs, kind).numpy()
            )
            assert measured.metrics[name].value == pytest.approx(expected, rel=1e-9)

    def test_inceptions_metrics_of_samples_in_a_file(self, tmp_path):
        torch.save(inception_weights(), tmp_path / "inception.pth")
        images, others = (
            torch.nn.functional.interpolate(torch.rand(number, 3, 4, 4) * 255, size=(32, 32)).to(
                torch.uint8
            )
            for number in (8, 7)
        )
        write_samples(tmp_path / "samples.npz", images)
        write_samples(tmp_path / "reference.npz", others)
        metrics = changes(
            "inception_score", "precision", "recall", image_size=32, inception_score_split_size=4
        )
        result = evaluate_generation(
            tmp_path / "samples.npz",
            "adm-256",
            metrics,
            reference=str(tmp_path / "reference.npz"),
            extractor_weights=tmp_path / "inception.pth",
            batch_size=5,
            device="cpu",
        )
        extractor = InceptionExtractor(tmp_path / "inception.pth", device="cpu")
        seen, reference = extractor(images), extractor(others).features.double().numpy()
        features = seen.features.double().numpy()
        score = formulas.inception_score(seen.logits.double().numpy(), 2) - 1
        assert score > 1e-6  # with such weights
        found = values_of(result)
        assert found.pop("inception_score") - 1 == pytest.approx(score, rel=1e-3)
        assert found == {
            "precision": pytest.approx(formulas.precision(features, reference, 3)),
            "recall": pytest.approx(formulas.precision(reference, features, 3)),
        }
        assert result.judges == {"extractor": extractor.identity()}


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

    def test_a_pipeline_that_is_not_there(self, hub):
        with pytest.raises(OSError, match="user/nothing"):
            evaluate_generation("user/nothing", "demo", reference="digits")


class TestSamples:
    def test_samples_are_written_and_measured(self, saved, tmp_path):
        path = tmp_path / "made" / "samples.npz"
        arguments = {
            "overrides": changes("inception_score", "accuracy"),
            "num_samples": 23,
            "batch_size": 8,
        }
        result = evaluate_generation(saved, "demo", samples=path, **arguments)
        images = generated(saved, 23, batch_size=8)
        with np.load(path) as written:
            assert written.files == ["arr_0"]
            assert written["arr_0"].dtype == np.uint8
            assert np.array_equal(written["arr_0"], images.permute(0, 2, 3, 1))
        assert sorted(file.name for file in path.parent.iterdir()) == [
            "samples.npz",
            "samples.npz.json",
        ]
        plain = evaluate_generation(saved, "demo", **arguments)
        assert result.metrics == plain.metrics and result.data == plain.data
        of_file = evaluate_generation(path, "demo", changes("inception_score"))
        assert of_file.metrics["inception_score"] == plain.metrics["inception_score"]
        assert of_file.data["fingerprint"] == plain.data["fingerprint"]
        parts = ("tokenizer", "generator", "sampler", "seeds", "dtype")  # the file beside it tells
        assert [getattr(of_file, part) for part in parts] == [
            getattr(plain, part) for part in parts
        ]

    def test_a_run_that_was_stopped_before_its_result_was_written(
        self, saved, tmp_path, monkeypatch
    ):
        """The samples are whole: none is made again, by whatever way the same pipeline is named."""
        path = tmp_path / "samples.npz"
        arguments = {
            "overrides": changes("inception_score", "accuracy"),
            "num_samples": 20,
            "samples": path,
        }
        result = evaluate_generation(saved, "demo", **arguments)
        monkeypatch.setattr(GeneratedImages, "make", lambda *_: pytest.fail("made again"))
        again = evaluate_generation(f"{saved}/", "demo", **arguments)
        assert again.metrics == result.metrics and again.data == result.data
        with pytest.raises(ValueError, match=r"samples\.npz holds samples with another seeds"):
            evaluate_generation(saved, "demo", **arguments, seeds=[1])

    def test_a_file_that_is_there_stays(self, saved, tmp_path):
        (tmp_path / "samples.npz").write_text("precious")
        with pytest.raises(
            FileExistsError,
            match=r"samples\.npz exists already: measure it instead, choose another",
        ):
            evaluate_generation(
                saved,
                "demo",
                changes("inception_score"),
                num_samples=20,
                samples=tmp_path / "samples.npz",
            )
        assert (tmp_path / "samples.npz").read_text() == "precious"
        assert not (tmp_path / "samples.npz.parts").exists()

    def test_a_run_that_was_stopped_makes_the_missing_ones_only(self, pipeline, tmp_path):
        source = GeneratedImages(pipeline, 20, Protocol.load("demo"))
        path, made_by = tmp_path / "samples.npz", {"seed": 0, "arguments": {"steps": (1, 2)}}
        stopped = KeptImages(source, path, made_by).batches(6)
        first, second = next(stopped), next(stopped)
        files = sorted(path.with_name("samples.npz.parts").glob("*.npy"))
        assert len(files) == 2
        np.save(
            files[0], np.zeros_like(first.images.numpy())
        )  # so that it tells if it is made again
        (files[0].parent / "000000012.npy.partial").write_bytes(b"half a batch")
        again = KeptImages(source, path, made_by)
        batches = list(again.batches(6))
        assert [batch.labels.tolist() for batch in batches][1] == [6, 7, 8, 9, 0, 1]
        again.join()
        expected = torch.cat([batch.images for batch in source.batches(6)])
        with np.load(path) as written:
            found = torch.from_numpy(written["arr_0"]).permute(0, 3, 1, 2)
        assert not found[:6].any() and first.images.any()
        assert torch.equal(found[6:], expected[6:]) and torch.equal(second.images, expected[6:12])

    def test_a_run_that_is_killed_goes_on_where_it_was(self, tmp_path):
        make_ddpm().save_pretrained(tmp_path / "ddpm")
        path, alone = tmp_path / "samples.npz", tmp_path / "alone.npz"
        parts = tmp_path / "samples.npz.parts"
        process = start(
            Path(__file__).with_name("generation_to_file.py"),
            tmp_path / "ddpm",
            path,
            outputs=[tmp_path / "printed", tmp_path / "errors"],
        )
        deadline = time.monotonic() + 90
        while len(list(parts.glob("*.npy"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kept = {file.name: file.read_bytes() for file in parts.glob("*.npy")}
        assert 2 <= len(kept) < NUM_SAMPLES // BATCH_SIZE
        assert not path.exists()

        sentence = r"samples\.npz\.parts holds samples with another seeds .*: choose another name"
        with pytest.raises(ValueError, match=sentence):
            generate(tmp_path / "ddpm", path, seed=1)
        assert {file.name: file.read_bytes() for file in parts.glob("*.npy")} == kept
        generate(tmp_path / "ddpm", path)
        assert not parts.exists()
        generate(tmp_path / "ddpm", alone)
        with np.load(path) as resumed, np.load(alone) as expected:
            assert resumed["arr_0"].shape == (NUM_SAMPLES, 32, 32, 3)
            assert np.array_equal(resumed["arr_0"], expected["arr_0"])


@pytest.mark.xdist_group("distributed")
def test_two_processes_measure_as_one(pipeline, tmp_path):
    """One batch for both is covered, too."""
    models, two, one = (tmp_path / name for name in ("models", "two", "one"))
    two.mkdir()
    one.mkdir()
    pipeline.save_pretrained(models / "pipeline")
    pipeline.tokenizer.save_pretrained(models / "tokenizer")
    run(Path(__file__).with_name("distributed_evaluation.py"), models, two, num_processes=2)
    evaluate(models, one)
    for name in BATCH_SIZES:
        for task in ("reconstruction", "generation"):
            alone = Evaluation.load(one / f"{task}-{name}-0.json")
            metrics = f"{ON_FEATURES},{ON_PAIRS}" if task == "reconstruction" else ON_FEATURES
            assert list(alone.metrics) == metrics.split(",") and alone.processes == 1
            for rank in (0, 1):
                together = Evaluation.load(two / f"{task}-{name}-{rank}.json")
                assert together.processes == 2
                assert together.data == alone.data and together.reference == alone.reference
                assert list(together.metrics) == list(alone.metrics)
                for metric, estimate in alone.metrics.items():
                    found = together.metrics[metric]
                    assert found.value == pytest.approx(estimate.value, rel=1e-9, abs=1e-12), (
                        task,
                        metric,
                    )
                    error = estimate.standard_error
                    assert found.standard_error == (
                        error and pytest.approx(error, rel=1e-6, abs=1e-9)
                    )
                    assert found.method == estimate.method
        with (
            np.load(one / f"reference-{name}.npz") as alone,
            np.load(two / f"reference-{name}.npz") as together,
        ):
            assert np.array_equal(alone["arr_0"], together["arr_0"])
            for key in ("mu", "sigma"):
                np.testing.assert_allclose(together[key], alone[key], rtol=1e-9, atol=1e-15)
    with np.load(one / "samples.npz") as alone, np.load(two / "samples.npz") as together:
        assert np.array_equal(alone["arr_0"], together["arr_0"])
    assert json.loads((two / "generation-many-1.json").read_text())["seeds"] == [0, 1]
