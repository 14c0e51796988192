"""A run of a recipe leaves its models in its folder, and repeats and resumes bit by bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import ConvNextForImageClassification, TrainerCallback

from titok_hf import MaskGitVQGANModel, TiTokImageProcessor, TiTokModel, TiTokPipeline
from titok_hf.data import IndexedSamples
from titok_hf.data.digits import DIGIT_NAMES
from titok_hf.data.identity import data_identity
from titok_hf.training import Recipe

from .miniature_runs import FOLDERS, MINIATURE, Stages, assert_same_weights, run, weights

pytestmark = [pytest.mark.xdist_group("run"), pytest.mark.slow]


class Interrupt(TrainerCallback):
    """Stops a stage as Ctrl-C would: after a step, or once it is trained and before it is saved."""

    def __init__(self, stage, step):
        self.stage = stage
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if (Path(args.output_dir).name, state.global_step) == (self.stage, self.step):
            raise KeyboardInterrupt

    def on_train_end(self, args, state, control, **kwargs):
        if (Path(args.output_dir).name, "end") == (self.stage, self.step):
            raise KeyboardInterrupt


def written(folder):
    """When each file was written, but for the record of the recipe."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != "recipe.yaml"
    }


class TestFolder:
    def test_every_stage_is_trained_once(self, finished):
        assert finished[1] == [
            (stage, 0)
            for stage in ("vqgan", "warmup", "classifier", "decoder_finetuning", "generator")
        ]

    def test_it_holds_the_models_and_the_work(self, finished):
        folder, _ = finished
        assert {path.name for path in folder.iterdir()} == {
            "recipe.yaml",
            "vqgan",
            "tokenizer",
            "pipeline",
            "work",
        }
        assert {path.name for path in (folder / "work").iterdir()} == {
            "classifier",
            "warmup",
            "logs",
            "checkpoints",
        }
        assert list((folder / "work" / "checkpoints").glob("*/*")) == []

    @pytest.mark.parametrize(
        ("stage", "model_class"),
        [
            ("vqgan", MaskGitVQGANModel),
            ("classifier", ConvNextForImageClassification),
            ("warmup", TiTokModel),
            ("decoder_finetuning", TiTokModel),
        ],
    )
    def test_models_load_with_their_image_processor(self, finished, stage, model_class):
        folder = finished[0] / FOLDERS[stage]
        model = model_class.from_pretrained(folder)
        assert not model.training
        assert model.config.image_size == 32
        assert TiTokImageProcessor.from_pretrained(folder).crop_size["height"] == 32

    def test_the_recipe_reaches_the_models(self, finished):
        folder = finished[0]
        vqgan = MaskGitVQGANModel.from_pretrained(folder / "vqgan")
        assert (vqgan.config.codebook_size, vqgan.config.patch_size) == (32, 8)
        tokenizer = TiTokModel.from_pretrained(folder / "tokenizer")
        assert (tokenizer.config.head, tokenizer.config.num_tokens) == ("vqgan_decoder", 4)
        assert TiTokModel.from_pretrained(folder / "work" / "warmup").config.head == "proxy_codes"

    def test_the_pipeline_generates(self, finished):
        pipeline = TiTokPipeline.from_pretrained(finished[0] / "pipeline")
        assert list(pipeline.transformer.config.id2label.values()) == DIGIT_NAMES
        assert (pipeline.config.num_inference_steps, pipeline.config.guidance_scale) == (3, 1.5)
        assert pipeline.scheduler.config.mask_schedule == "cosine"
        assert pipeline.scheduler.config.choice_temperature == 2.5
        images = pipeline(["three", 7], generator=torch.Generator().manual_seed(0)).images
        assert [image.size for image in images] == [(32, 32)] * 2

    def test_fine_tuning_leaves_encoder_and_codebook_as_they_were(self, finished):
        """They are the warm-up's, also after the moving average."""
        warm = TiTokModel.from_pretrained(finished[0] / "work" / "warmup").state_dict()
        tuned = TiTokModel.from_pretrained(finished[0] / "tokenizer").state_dict()
        frozen = [name for name in warm if name.startswith(("encoder.", "quantizer."))]
        assert all(torch.equal(warm[name], tuned[name]) for name in frozen)
        changed = [name for name in warm if not torch.equal(warm[name], tuned[name])]
        assert set(changed).isdisjoint(frozen) and len(changed) > 5

    @pytest.mark.parametrize("stage", FOLDERS)
    def test_logs_tell_time_memory_and_history(self, finished, stage):
        log = json.loads((finished[0] / "work" / "logs" / f"{stage}.json").read_text())
        assert log["seconds"] > 0 and log["peak_memory_gib"] > 0.1
        assert log["resumed_from"] is None
        assert [entry["step"] for entry in log["history"] if "loss" in entry] == [2, 4, 6]

    def test_the_record_names_recipe_seed_and_data(self, finished, dataset):
        record = yaml.safe_load((finished[0] / "recipe.yaml").read_text())
        assert record == {
            "seed": 0,
            "data": None,
            "data_sha256": data_identity(IndexedSamples(dataset["train"])),
            **Recipe.load(MINIATURE).to_dict(),
        }


class TestAgain:
    def test_a_finished_run_trains_nothing(self, finished, dataset):
        folder, _ = finished
        before, stages = written(folder), Stages()
        pipeline = run(dataset, folder, [stages]).train()
        assert stages.started == []
        assert written(folder) == before
        assert isinstance(pipeline, TiTokPipeline)

    def test_the_same_seed_gives_the_same_weights(self, finished, dataset, tmp_path):
        run(dataset, tmp_path / "again").result("vqgan")
        assert_same_weights(tmp_path / "again" / "vqgan", finished[0] / "vqgan")

    def test_another_seed_gives_others(self, finished, dataset, tmp_path):
        run(dataset, tmp_path / "other", seed=1).result("vqgan")
        found, expected = weights(tmp_path / "other" / "vqgan"), weights(finished[0] / "vqgan")
        kernels = [name for name, tensor in expected.items() if tensor.ndim == 4]
        assert not any(torch.equal(found[name], expected[name]) for name in kernels)

    def test_random_changes_of_the_images_reach_the_training(self, finished, dataset, tmp_path):
        run(dataset, tmp_path / "other", overrides=["stages.vqgan.augmentation={}"]).result("vqgan")
        found, expected = weights(tmp_path / "other" / "vqgan"), weights(finished[0] / "vqgan")
        assert not torch.equal(
            *(
                tensors["model.safetensors", "encoder.conv_in.weight"]
                for tensors in (found, expected)
            )
        )

    @pytest.mark.parametrize(
        "changes",
        [{"seed": 1}, {"overrides": ["stages.generator.training.max_steps=7"]}],
        ids=["seed", "recipe"],
    )
    def test_another_seed_or_recipe_in_its_folder_is_refused(self, finished, dataset, changes):
        folder, _ = finished
        record = (folder / "recipe.yaml").read_text()
        with pytest.raises(ValueError, match="another recipe or seed"):
            run(dataset, folder, **changes)
        assert (folder / "recipe.yaml").read_text() == record


class TestInterrupted:
    @pytest.mark.parametrize(
        ("stage", "step", "resumed_from"),
        [
            ("classifier", 1, None),  # before the first checkpoint
            ("vqgan", 3, 2),  # with random changes of the images
            ("warmup", 5, 4),
            ("decoder_finetuning", 3, 2),  # before the discriminator's moving averages have settled
            ("generator", 5, 4),  # with random masks and dropout
            ("warmup", "end", 6),  # trained, and not saved yet
        ],
    )
    def test_a_stage_goes_on_bit_by_bit(
        self, finished, dataset, tmp_path, stage, step, resumed_from
    ):
        expected, folder = finished[0], tmp_path / "interrupted"
        shutil.copytree(expected, folder)
        shutil.rmtree(folder / FOLDERS[stage])
        if stage == "classifier":  # which only what is not finished needs
            shutil.rmtree(folder / FOLDERS["decoder_finetuning"])
        with pytest.raises(KeyboardInterrupt):
            run(dataset, folder, [Interrupt(stage, step)]).train()
        assert not (folder / FOLDERS[stage]).exists()

        stages = Stages()
        run(dataset, folder, [stages]).train()
        log = json.loads((folder / "work" / "logs" / f"{stage}.json").read_text())
        assert log["resumed_from"] == (f"checkpoint-{resumed_from}" if resumed_from else None)
        assert [entry["step"] for entry in log["history"] if "loss" in entry] == [2, 4, 6]
        assert set(stages.started[:1]) <= {(stage, resumed_from or 0)}
        assert stages.started[1:] == ([("decoder_finetuning", 0)] if stage == "classifier" else [])
        assert stages.started or step == "end"
        assert_same_weights(folder, expected)
        assert list((folder / "work" / "checkpoints").glob("*/*")) == []

    def test_a_half_written_result_is_written_anew(self, finished, dataset, tmp_path):
        expected, folder = finished[0], tmp_path / "interrupted"
        shutil.copytree(expected, folder)
        (folder / "vqgan").rename(folder / ".vqgan.writing")
        (folder / ".vqgan.writing" / "leftover").touch()
        run(dataset, folder).result("vqgan")
        assert_same_weights(folder, expected)
        assert not (folder / ".vqgan.writing").exists()
        assert not (folder / "vqgan" / "leftover").exists()


@pytest.mark.parametrize(
    ("absent", "trained"),
    [("perceptual", ["decoder_finetuning"]), ("adversarial", ["classifier", "decoder_finetuning"])],
)
def test_a_loss_of_weight_0_needs_no_network(finished, dataset, tmp_path, absent, trained):
    folder, stages = tmp_path / "run", Stages()
    for stage in ("vqgan", "warmup"):
        shutil.copytree(finished[0] / FOLDERS[stage], folder / FOLDERS[stage])
    overrides = [f"stages.decoder_finetuning.objective.{absent}_weight=0"]
    miniature = run(dataset, folder, [stages], overrides)
    miniature.result("decoder_finetuning")
    assert [stage for stage, _ in stages.started] == trained
    history = json.loads((folder / "work" / "logs" / "decoder_finetuning.json").read_text())[
        "history"
    ]
    assert {"perceptual_loss", "adversarial_loss"} - history[-2].keys() == {f"{absent}_loss"}


def test_other_columns_may_hold_images_and_labels(dataset, tmp_path):
    renamed = dataset.rename_columns({"image": "picture", "label": "kind"})
    miniature = run(renamed, tmp_path / "run", image_column="picture", label_column="kind")
    assert isinstance(miniature.result("classifier").model, ConvNextForImageClassification)


class TestGlobalBatch:
    def test_it_is_reached_by_accumulating(self, finished, dataset, tmp_path):
        """8 images at once, or 4 and 4: the same steps."""
        folders = []
        for at_once in (8, 4):
            folders.append(tmp_path / str(at_once))
            training = f"stages.vqgan.training.per_device_train_batch_size={at_once}"
            miniature = run(
                dataset,
                folders[-1],
                overrides=[training, "stages.vqgan.training.global_batch_size=8"],
            )
            assert (
                miniature.training_arguments(
                    miniature.recipe.stage("vqgan")
                ).gradient_accumulation_steps
                == 8 // at_once
            )
            miniature.result("vqgan")
        found, expected = (weights(folder / "vqgan") for folder in folders)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)

    def test_one_that_cannot_be_reached_is_said_before_anything_trains(self, dataset, tmp_path):
        stages = Stages()
        wrong = run(
            dataset, tmp_path / "run", [stages], ["stages.generator.training.global_batch_size=10"]
        )
        with pytest.raises(
            ValueError, match=r"generator.*global_batch_size` 10 must be a multiple of the 4 images"
        ):
            wrong.train()
        assert stages.started == []


def test_two_processes_train_one_run(finished, dataset, tmp_path):
    """Two processes with half the batch each end near one process's result, and only one writes."""
    script = Path(__file__).parent / "distributed_run.py"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "run")], env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found, expected = weights(tmp_path / "run"), weights(finished[0])
    assert found.keys() == {
        name for name in expected if name[0].startswith(("vqgan", "work/warmup"))
    }
    vqgan = [name for name in found if name[0].startswith("vqgan")]
    assert max(float((found[name] - expected[name]).abs().max()) for name in vqgan) < 1e-4
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["seed"] == 0
