"""A run trains the stages of its recipe on images or codes, and takes other results as they are."""

import json

import pytest
import torch
from datasets import Dataset
from fixtures.extractors.networks import lpips_heads, vgg16_weights
from safetensors.torch import save_file
from transformers import AutoImageProcessor

from titok_hf import TiTokImageProcessor, TiTokModel, TiTokPipeline
from titok_hf.data import ImageCollator, IndexedSamples
from titok_hf.training import Recipe, RecipeRun

from .miniature_runs import FOLDERS, MINIATURE, Stages, assert_same_weights, weights

pytestmark = [pytest.mark.xdist_group("run"), pytest.mark.slow]

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
        assert losses <= log["history"][-2].keys()

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
