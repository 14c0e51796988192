"""Metrics of generated images are those that numpy and scipy compute on features taken directly."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.extractors.networks import inception_weights
from forked import run
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
from titok_hf.evaluation.image_sources import ReferenceImages, TensorImages, open_source
from titok_hf.evaluation.inception import InceptionExtractor
from titok_hf.evaluation.metric_networks import MetricNetworks

from . import formulas
from .distributed_evaluation import BATCH_SIZES, ON_FEATURES, ON_PAIRS, evaluate
from .generating import changes, generated
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


@pytest.mark.xdist_group("distributed")
def test_two_processes_measure_as_one(pipeline, tmp_path):
    """One batch for both is covered, too. Some processors round otherwise in batches of another size, so
    that a few values of the generated images change by one level."""

    def without_fingerprint(result):
        return {name: value for name, value in result.data.items() if name != "fingerprint"}

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
                assert together.reference == alone.reference
                assert without_fingerprint(together) == without_fingerprint(alone)
                exact = together.data == alone.data
                assert exact or task == "generation"
                assert list(together.metrics) == list(alone.metrics)
                for metric, estimate in alone.metrics.items():
                    found = together.metrics[metric]
                    near = {"rel": 1e-9, "abs": 1e-12} if exact else {"rel": 1e-5, "abs": 1e-6}
                    assert found.value == pytest.approx(estimate.value, **near), (task, metric)
                    near = {"rel": 1e-6, "abs": 1e-9} if exact else {"rel": 1e-4, "abs": 1e-6}
                    error = estimate.standard_error
                    assert found.standard_error == (error and pytest.approx(error, **near))
                    assert found.method == estimate.method
        with (
            np.load(one / f"reference-{name}.npz") as alone,
            np.load(two / f"reference-{name}.npz") as together,
        ):
            assert np.array_equal(alone["arr_0"], together["arr_0"])
            for key in ("mu", "sigma"):
                np.testing.assert_allclose(together[key], alone[key], rtol=1e-9, atol=1e-15)
    with np.load(one / "samples.npz") as alone, np.load(two / "samples.npz") as together:
        levels = np.abs(alone["arr_0"].astype(int) - together["arr_0"])
        assert levels.max() <= 1 and (levels > 0).mean() < 1e-4
    assert json.loads((two / "generation-many-1.json").read_text())["seeds"] == [0, 1]
