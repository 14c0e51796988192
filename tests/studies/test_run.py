import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback, ViTConfig, ViTImageProcessor, ViTModel

from titok_hf import MaskGitVQGANModel, TiTokModel
from titok_hf.data.digits import load_digits_dataset
from titok_hf.evaluation import emoji
from titok_hf.studies import run_study, study_names

pytestmark = [pytest.mark.xdist_group("studies"), pytest.mark.slow]

METRICS = {"mean_squared_error", "psnr", "codebook_usage", "codebook_perplexity"}


class Started(TrainerCallback):
    """The stages that are trained; with `stop`, trains so many and stops in the next as Ctrl-C
    would."""

    def __init__(self, stop=None):
        self.stages = []
        self.stop = stop

    def on_train_begin(self, args, state, control, **kwargs):
        if len(self.stages) == self.stop:
            raise KeyboardInterrupt
        self.stages.append(Path(args.output_dir).name)


@pytest.fixture(scope="module", autouse=True)
def quick_judge():
    """The judge of emoji is trained for a moment: its values are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "NUM_STEPS", 10)
        yield


def quick(name, folder, callback=None, **arguments):
    return run_study(name, folder, quick=True, callbacks=[callback or Started()], **arguments)


def measured(results):
    """Variant, seed and values of each run."""
    return [(run["variant"], run["seed"], run["values"]) for run in results["runs"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, results and trained stages of a quick study."""
    folder, started = tmp_path_factory.mktemp("studies") / "codebook", Started()
    return folder, quick("codebook", folder, started), started.stages


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Six images in each of two classes."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(256, size=(2, 6, 20, 24, 3), dtype=np.uint8)
    for label, images in zip(("left", "right"), pixels, strict=True):
        (folder / label).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture
def make_vision_model(tmp_path):
    """Folder of a ViT of so many features."""

    def make(num_features):
        sizes = {
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 16,
            "patch_size": 8,
        }
        ViTModel(ViTConfig(hidden_size=num_features, intermediate_size=4, **sizes)).save_pretrained(
            tmp_path / "vit"
        )
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
        return str(tmp_path / "vit")

    return make


@pytest.mark.parametrize("name", sorted({*study_names()} - {"codebook", "latents", "scaling"}))
def test_every_study_runs(name, tmp_path):
    results = quick(name, tmp_path / name)
    names = [run["variant"] for run in results["runs"]]
    assert len(names) == len(results["configuration"]["recipes"])
    expected = {"accuracy", "frechet_distance"}
    expected |= {"precision", "recall"} if name == "schedule" else METRICS
    for run in results["runs"]:
        assert run["values"].keys() == expected, name
        assert all(math.isfinite(value) for value in run["values"].values())
        assert run["seconds"] > 0
    assert len((tmp_path / name / "table.md").read_text().splitlines()) == 2 + len(names)
    assert (tmp_path / name / "plot.png").exists()


class TestResults:
    def test_the_folder_holds_them_and_a_run_for_each_variant(self, finished):
        folder, results, _ = finished
        assert {path.name for path in folder.iterdir()} == {
            "results.json",
            "table.md",
            "plot.png",
            "seed-0",
        }
        assert {path.name for path in (folder / "seed-0").iterdir()} == {
            "shared",
            "64",
            "256",
            "1024",
        }
        assert json.loads((folder / "results.json").read_text()) == results

    def test_the_shared_stage_is_trained_once(self, finished):
        folder, _, stages = finished
        assert stages == ["vqgan", "warmup", "warmup", "warmup"]
        [shared] = (folder / "seed-0" / "shared").glob("vqgan-*/vqgan")
        assert all(
            (folder / "seed-0" / name / "vqgan").resolve() == shared.resolve()
            for name in ("64", "256", "1024")
        )
        assert not any(
            (folder / "seed-0" / name / "work" / "logs" / "vqgan.json").exists()
            for name in ("64", "256")
        )

    def test_seconds_are_those_of_the_own_stages(self, finished):
        folder, results, _ = finished
        for run in results["runs"]:
            logs = folder / "seed-0" / str(run["variant"]["codebook size"]) / "work" / "logs"
            assert run["seconds"] == json.loads((logs / "warmup.json").read_text())["seconds"]

    def test_values_are_of_the_held_out_digits(self, finished):
        """Computed again, an image at a time, from the folders."""
        folder, results, _ = finished
        run = results["runs"][0]
        assert (run["variant"], run["seed"]) == ({"codebook size": 64}, 0)
        folder = folder / "seed-0" / "64"
        vqgan = MaskGitVQGANModel.from_pretrained(folder / "vqgan")
        tokenizer = (
            TiTokModel.from_pretrained(folder / "work" / "warmup").with_pixel_decoder(vqgan).eval()
        )
        errors, codes = [], []
        for row in load_digits_dataset()["test"]:
            image = row["image"].convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                output = tokenizer(pixels)
            errors.append(float((output.reconstruction.clamp(0, 1) - pixels).square().mean()))
            codes += output.codes.flatten().tolist()
        counts = np.bincount(codes, minlength=64)
        shares = counts[counts > 0] / counts.sum()
        # the evaluation rounds to uint8
        assert run["values"]["mean_squared_error"] == pytest.approx(np.mean(errors), rel=1e-3)
        assert run["values"]["psnr"] == pytest.approx(
            np.mean([-10 * math.log10(error) for error in errors]), rel=1e-3
        )
        assert run["values"]["codebook_usage"] == (counts > 0).mean()
        assert run["values"]["codebook_perplexity"] == pytest.approx(
            math.exp(-(shares * np.log(shares)).sum())
        )


class TestAgain:
    def test_a_finished_study_trains_nothing(self, finished):
        folder, results, _ = finished
        before = (folder / "table.md").read_text()
        started = Started()
        assert quick("codebook", folder, started) == results
        assert started.stages == []
        assert (folder / "table.md").read_text() == before

    def test_a_stopped_study_goes_on(self, finished, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            quick("codebook", tmp_path, Started(stop=2))  # in the second variant
        found = json.loads((tmp_path / "results.json").read_text())
        assert measured(found) == measured(finished[1])[:1]
        started = Started()
        results = quick("codebook", tmp_path, started)
        assert started.stages == ["warmup", "warmup"]
        assert measured(results) == measured(finished[1])

    def test_what_was_trained_and_not_measured_is_measured(self, finished, tmp_path):
        folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
        (folder / "results.json").unlink()
        started = Started()
        assert measured(quick("codebook", folder, started)) == measured(finished[1])
        assert started.stages == []

    def test_results_of_an_earlier_version_are_kept(self, finished, tmp_path):
        folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
        results = json.loads((folder / "results.json").read_text())
        del results["tuning"]
        for run in results["runs"]:
            del run["tuned"], run["flops"]
        (folder / "results.json").write_text(json.dumps(results))
        started = Started()
        assert quick("codebook", folder, started)["runs"] == results["runs"]
        assert started.stages == []

    def test_other_seeds_are_added(self, finished, tmp_path):
        folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
        started = Started()
        both = quick("codebook", folder, started, seeds=[0, 4])
        assert started.stages == ["vqgan", "warmup", "warmup", "warmup"]
        assert both["runs"][:3] == finished[1]["runs"]
        assert [run["seed"] for run in both["runs"]] == [0, 0, 0, 4, 4, 4]
        assert "±" in (folder / "table.md").read_text()
        values = [run["values"]["mean_squared_error"] for run in both["runs"]]
        assert len(set(values)) == 6

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("tokens", {}),
            ("codebook", {"overrides": ["stages.warmup.training.learning_rate=0.1"]}),
            ("codebook", {"data": "elsewhere"}),
        ],
        ids=["study", "recipe", "data"],
    )
    def test_another_configuration_in_its_folder_is_refused(self, finished, name, changes):
        folder, results, _ = finished
        with pytest.raises(
            ValueError, match=r"holds another study, or .* choose another folder, or delete it"
        ):
            quick(name, folder, **changes)
        assert json.loads((folder / "results.json").read_text()) == results


class TestOtherData:
    def test_other_data_of_the_same_name_are_refused(self, image_folder, tmp_path):
        """This holds if all runs are finished, too."""
        folder = shutil.copytree(image_folder, tmp_path / "images")
        results = quick("codebook", tmp_path / "study", data=str(folder))
        Image.new("RGB", (20, 24)).save(folder / "left" / "6.png")
        with pytest.raises(ValueError, match="holds a study on other data of the name"):
            quick("codebook", tmp_path / "study", data=str(folder))
        assert json.loads((tmp_path / "study" / "results.json").read_text()) == results

    def test_what_needs_no_judge_is_measured(self, image_folder, tmp_path):
        results = quick("codebook", tmp_path / "study", data=str(image_folder))
        assert [run["values"].keys() for run in results["runs"]] == [METRICS] * 3
        header = (tmp_path / "study" / "table.md").read_text().splitlines()[0]
        assert "mean squared error" in header and "Fréchet" not in header and "digit" not in header

    def test_generated_images_need_an_extractor(self, image_folder, tmp_path):
        with pytest.raises(
            ValueError, match="needs an extractor: name one, such as 'inception', or take 'digits'"
        ):
            quick("schedule", tmp_path / "study", data=str(image_folder))
        assert not (tmp_path / "study").exists()

    def test_an_extractor_gives_the_frechet_distance(
        self, image_folder, make_vision_model, tmp_path
    ):
        model = make_vision_model(2)  # features; three images are held out
        results = quick("schedule", tmp_path / "study", data=str(image_folder), extractor=model)
        assert results["configuration"]["extractor"] == model
        values = [run["values"] for run in results["runs"]]
        assert [of.keys() for of in values] == [{"frechet_distance", "precision", "recall"}] * 4
        assert all(0 < of["frechet_distance"] < float("inf") for of in values)

    def test_too_few_images_are_refused_before_training(
        self, image_folder, make_vision_model, tmp_path
    ):
        with pytest.raises(
            ValueError, match="frechet_distance with vit needs at least 9 judged images, got 3"
        ):
            quick(
                "codebook",
                tmp_path / "study",
                data=str(image_folder),
                extractor=make_vision_model(8),
            )
        assert not (tmp_path / "study").exists()
