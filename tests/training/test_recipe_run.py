import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from fixtures.extractors.networks import lpips_heads, vgg16_weights
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ConvNextForImageClassification, TrainerCallback

from titok_hf import MaskGitVQGANModel, TiTokImageProcessor, TiTokModel, TiTokPipeline
from titok_hf.data import ImageCollator, IndexedSamples
from titok_hf.data.digits import DIGIT_NAMES
from titok_hf.data.identity import data_identity
from titok_hf.training import Recipe, RecipeRun

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"
FOLDERS = {
    "vqgan": "vqgan",
    "classifier": "work/classifier",
    "warmup": "work/warmup",
    "decoder_finetuning": "tokenizer",
    "generator": "pipeline",
}

pytestmark = [pytest.mark.xdist_group("run"), pytest.mark.slow]


@pytest.fixture(scope="module")
def dataset(digits):
    """18 digits to train on: with batches of 4, an epoch of 5 steps, and 6 steps end within the
    second."""
    return DatasetDict(train=digits, test=digits.select(range(2)))


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


class Stages(TrainerCallback):
    """The stages that are trained, and their first steps."""

    def __init__(self):
        self.started = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.started.append((Path(args.output_dir).name, state.global_step))


def run(dataset, folder, callbacks=(), overrides=(), **arguments):
    return RecipeRun(
        Recipe.load(MINIATURE, overrides), dataset, folder, callbacks=callbacks, **arguments
    )


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """Folder of a run of all stages, and the stages in their order."""
    folder, stages = tmp_path_factory.mktemp("runs") / "finished", Stages()
    run(dataset, folder, [stages]).train()
    return folder, stages.started


def weights(folder):
    files = {
        str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")
    }
    return {
        (file, name): tensor for file, tensors in files.items() for name, tensor in tensors.items()
    }


def assert_same_weights(folder, expected_folder):
    found, expected = weights(folder), weights(expected_folder)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


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
        (folder / "vqgan").rename(folder / "vqgan.partial")
        (folder / "vqgan.partial" / "leftover").touch()
        run(dataset, folder).result("vqgan")
        assert_same_weights(folder, expected)
        assert not (folder / "vqgan.partial").exists()
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
    assert {"perceptual_loss", "adversarial_loss"} - history[0].keys() == {f"{absent}_loss"}


def test_other_columns_may_hold_images_and_labels(dataset, tmp_path):
    renamed = dataset.rename_columns({"image": "picture", "label": "kind"})
    miniature = run(renamed, tmp_path / "run", image_column="picture", label_column="kind")
    assert isinstance(miniature.result("classifier").model, ConvNextForImageClassification)


MODEL = {
    "encoder_patch_size": 8,
    "decoder_patch_size": 8,
    "encoder_hidden_size": 16,
    "encoder_num_hidden_layers": 1,
    "encoder_num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "num_latent_tokens": 4,
    "codebook_size": 16,
    "initializer_range": 0.2,
}


def some_stages(*names):
    """The miniature with some of its stages, and a `single_stage` among those that it may have."""
    content = Recipe.load(MINIATURE).to_dict()
    single_stage = {**content["stages"]["decoder_finetuning"], "model": MODEL}
    stages = {**content["stages"], "single_stage": single_stage}
    return Recipe.from_dict({**content, "stages": {name: stages[name] for name in names}})


class TestSomeStages:
    def test_a_single_stage_and_a_generator(self, dataset, tmp_path):
        stages = Stages()
        recipe = some_stages("classifier", "single_stage", "generator")
        pipeline = RecipeRun(recipe, dataset, tmp_path / "run", callbacks=[stages]).train()
        assert stages.started == [("classifier", 0), ("single_stage", 0), ("generator", 0)]
        assert isinstance(pipeline, TiTokPipeline)

        tokenizer = TiTokModel.from_pretrained(tmp_path / "run" / "tokenizer")
        assert (tokenizer.config.head, tokenizer.config.vqgan_config) == ("pixels", None)
        log = json.loads((tmp_path / "run" / "work" / "logs" / "single_stage.json").read_text())
        losses = {
            "reconstruction_loss",
            "quantizer_loss",
            "perceptual_loss",
            "adversarial_loss",
            "codebook_usage",
        }
        assert losses <= log["history"][0].keys()

    def test_a_single_stage_trains_all_of_the_tokenizer(self, dataset, tmp_path):
        """More steps move encoder and codebook, which decoder fine-tuning would leave."""
        recipe = some_stages("classifier", "single_stage")
        tokenizers = []
        for steps in (1, 3):
            recipe.stages["single_stage"]["training"]["max_steps"] = steps
            tokenizers.append(
                RecipeRun(recipe, dataset, tmp_path / f"{steps}").train().state_dict()
            )
        for name in (
            "encoder.proj.weight",
            "quantizer.codebook.weight",
            "decoder.latent_embedding.weight",
        ):
            assert not torch.equal(tokenizers[0][name], tokenizers[1][name])

    @pytest.mark.parametrize(
        ("names", "trained"),
        [
            (("vqgan",), ["vqgan"]),
            (("classifier",), ["classifier"]),
            (("vqgan", "classifier"), ["vqgan"]),  # nothing needs the classifier
            (("vqgan", "warmup"), ["vqgan", "warmup"]),
        ],
        ids=["vqgan", "classifier", "unneeded classifier", "warmup"],
    )
    def test_what_is_there_is_trained(self, dataset, tmp_path, names, trained):
        stages = Stages()
        recipe_run = RecipeRun(some_stages(*names), dataset, tmp_path / "run", callbacks=[stages])
        result = recipe_run.train()
        assert [stage for stage, _ in stages.started] == trained
        folder = tmp_path / "run" / FOLDERS[trained[-1]]
        assert recipe_run.folder(trained[-1]) == folder
        network = result.model if trained == ["classifier"] else result
        assert {name for _, name in weights(folder)} <= set(network.state_dict())


def with_results(folder, *pretrained, trained=()):
    """The miniature with the results of a run in place of some stages, training others."""
    content = Recipe.load(MINIATURE).to_dict()
    stages = {stage: content["stages"][stage] for stage in trained}
    stages |= {stage: {"pretrained": str(folder / FOLDERS[stage])} for stage in pretrained}
    return Recipe.from_dict({**content, "stages": stages})


class TestPretrained:
    """A stage starts from the seed, so that with what a run has left it ends as in that run."""

    @pytest.mark.parametrize(
        ("pretrained", "trained"),
        [
            (["vqgan"], ["warmup"]),
            (["vqgan", "classifier", "warmup"], ["decoder_finetuning"]),
            (["decoder_finetuning"], ["generator"]),
        ],
        ids=lambda stages: "-".join(stages),
    )
    def test_it_takes_the_place_of_a_stage(self, finished, dataset, tmp_path, pretrained, trained):
        stages = Stages()
        recipe = with_results(finished[0], *pretrained, trained=trained)
        RecipeRun(recipe, dataset, tmp_path / "run", callbacks=[stages]).train()
        assert stages.started == [(stage, 0) for stage in trained]
        folder = FOLDERS[trained[-1]]
        assert_same_weights(tmp_path / "run" / folder, finished[0] / folder)
        assert {path.name for path in (tmp_path / "run").iterdir()} == {
            "recipe.yaml",
            "work",
            folder.split("/")[0],
        }

    def test_it_may_come_from_the_hub(self, finished, dataset, tmp_path, hub):
        folder = finished[0] / "vqgan"
        hub.add("user/vqgan", {path.name: path.read_bytes() for path in folder.iterdir()})
        recipe = with_results(finished[0], "vqgan", trained=["warmup"])
        recipe.stages["vqgan"]["pretrained"] = "user/vqgan"
        RecipeRun(recipe, dataset, tmp_path / "run").train()
        assert_same_weights(tmp_path / "run" / "work" / "warmup", finished[0] / "work" / "warmup")

    def test_a_vqgan_takes_the_images_of_the_recipe(self, finished, dataset, tmp_path):
        """It is convolutional: for 64 pixels its codes are those of another grid."""
        recipe = with_results(finished[0], "vqgan", trained=["warmup"])
        content = {**recipe.to_dict(), "image_size": 64}
        content["stages"]["warmup"]["training"]["max_steps"] = 1
        warm = RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run").train()
        assert warm.config.vqgan_config.image_size == 64

    def test_a_classifier_says_what_images_it_expects(self, finished):
        processor = AutoImageProcessor.from_pretrained(finished[0] / "work" / "classifier")
        assert processor.do_normalize
        assert (list(processor.image_mean), list(processor.image_std)) == ([0.5] * 3, [0.5] * 3)

    def test_a_finished_run_needs_none(self, finished, dataset, tmp_path):
        recipe = with_results(
            finished[0], "classifier", "vqgan", trained=["warmup", "decoder_finetuning"]
        )
        RecipeRun(recipe, dataset, tmp_path / "run").train()
        loaded = RecipeRun(recipe, dataset, tmp_path / "run")
        loaded.result("decoder_finetuning")
        assert loaded.results.keys() == {"decoder_finetuning"}

    def test_all_that_is_missing_is_said_before_anything_trains(
        self, finished, dataset, tmp_path, hub
    ):
        stages = Stages()
        recipe = with_results(
            finished[0], "vqgan", trained=["warmup", "classifier", "decoder_finetuning"]
        )
        recipe.stages["vqgan"]["pretrained"] = "user/nothing"
        recipe.stages["decoder_finetuning"]["objective"]["lpips_weight"] = 1.0
        recipe.stages["decoder_finetuning"]["lpips"] = {"backbone": "missing.pth"}
        run = RecipeRun(recipe, dataset, tmp_path / "run", callbacks=[stages])
        with pytest.raises(
            OSError,
            match=r"Nothing has been trained.*vqgan: .*user/nothing.*LPIPS of .*missing\.pth",
        ):
            run.train()
        assert stages.started == []

    @pytest.mark.parametrize(
        ("stage", "result", "trained", "sentence"),
        [
            (
                "warmup",
                "tokenizer",
                "decoder_finetuning",
                "must be a tokenizer that ends in proxy codes",
            ),
            (
                "warmup",
                "vqgan",
                "decoder_finetuning",
                "expects a model of type 'titok', got one of 'maskgit_vqgan'",
            ),
            ("decoder_finetuning", "work/warmup", "generator", "codes that decode to pixels"),
            ("classifier", "vqgan", "decoder_finetuning", "classifier: "),
        ],
    )
    def test_what_does_not_fit_is_said_before_anything_trains(
        self, finished, dataset, tmp_path, stage, result, trained, sentence
    ):
        needed = {
            "decoder_finetuning": ["vqgan", "classifier", "warmup"],
            "generator": ["decoder_finetuning"],
        }[trained]
        recipe = with_results(finished[0], *needed, trained=[trained])
        recipe.stages[stage]["pretrained"] = str(finished[0] / result)
        with pytest.raises((OSError, ValueError), match=rf"Nothing has been trained.*{sentence}"):
            RecipeRun(recipe, dataset, tmp_path / "run").train()

    def test_a_tokenizer_has_images_of_the_recipes_size(self, finished, dataset, tmp_path):
        recipe = with_results(finished[0], "decoder_finetuning", trained=["generator"])
        recipe = Recipe.from_dict({**recipe.to_dict(), "image_size": 64})
        with pytest.raises(
            ValueError, match="a tokenizer of images of 32 pixels, the recipe's have 64"
        ):
            RecipeRun(recipe, dataset, tmp_path / "run").train()


def test_lpips_alone_needs_no_classifier(dataset, tmp_path):
    for name, weights_of in (("backbone", vgg16_weights()), ("heads", lpips_heads())):
        save_file(weights_of, tmp_path / f"{name}.safetensors")
    content = some_stages("single_stage", "classifier").to_dict()
    del content["stages"]["classifier"]
    content["stages"]["single_stage"]["objective"] |= {"lpips_weight": 1.0, "classifier_weight": 0}
    content["stages"]["single_stage"]["lpips"] = {
        name: str(tmp_path / f"{name}.safetensors") for name in ("backbone", "heads")
    }
    RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run").train()
    log = json.loads((tmp_path / "run" / "work" / "logs" / "single_stage.json").read_text())
    assert log["history"][0]["perceptual_loss"] > 0


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


@pytest.fixture(scope="module")
def tokens(finished, dataset):
    """The digits as codes of the finished run's tokenizer."""
    tokenizer = TiTokModel.from_pretrained(finished[0] / "tokenizer")
    images = ImageCollator(TiTokImageProcessor.from_image_size(32))(list(dataset["train"]))
    codes = tokenizer.encode(images["pixel_values"]).codes
    rows = {"codes": codes.tolist(), "label": dataset["train"]["label"]}
    return Dataset.from_dict(rows).cast_column("label", dataset["train"].features["label"])


class TestRows:
    def test_rows_of_images_are_what_a_data_set_is(self, finished, dataset, tmp_path):
        RecipeRun(some_stages("vqgan"), IndexedSamples(dataset["train"]), tmp_path / "run").train()
        assert_same_weights(tmp_path / "run" / "vqgan", finished[0] / "vqgan")

    def test_codes_train_the_same_generator_as_images(self, finished, dataset, tokens, tmp_path):
        recipe = with_results(finished[0], "decoder_finetuning", trained=["generator"])
        RecipeRun(recipe, IndexedSamples(tokens), tmp_path / "run").train()
        assert_same_weights(tmp_path / "run" / "pipeline", finished[0] / "pipeline")

    @pytest.mark.parametrize("codes", [[0, 1, 2], [0, 1, 2, 16]], ids=["fewer", "others"])
    def test_codes_of_another_tokenizer_are_refused(self, finished, tokens, tmp_path, codes):
        rows = {"codes": [codes] * len(tokens), "label": tokens["label"]}
        others = Dataset.from_dict(rows).cast_column("label", tokens.features["label"])
        recipe = with_results(finished[0], "decoder_finetuning", trained=["generator"])
        with pytest.raises(
            ValueError, match="the tokenizer 4 tokens of 16 codes: tokenize the images with it"
        ):
            RecipeRun(recipe, IndexedSamples(others), tmp_path / "run").train()

    def test_codes_train_nothing_else(self, tokens, tmp_path):
        recipe_run = RecipeRun(
            some_stages("vqgan", "warmup"), IndexedSamples(tokens), tmp_path / "run"
        )
        with pytest.raises(
            ValueError, match=r"holds codes, .* and the recipe also trains vqgan, warmup"
        ):
            recipe_run.train()

    def test_a_generator_needs_labels(self, finished, dataset, tmp_path):
        recipe = with_results(finished[0], "decoder_finetuning", trained=["generator"])
        rows = IndexedSamples(dataset["train"].remove_columns("label"), label_column=None)
        with pytest.raises(ValueError, match="The stage generator trains on class labels"):
            RecipeRun(recipe, rows, tmp_path / "run").train()


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
