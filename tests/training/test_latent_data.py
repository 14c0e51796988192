"""Data sets of latents, and tokenizers of every family, for the generator of latents."""

import json

import pytest
import torch
from datasets import ClassLabel, Dataset
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file

from titok_hf import LatentDiTPipeline, LightningDiTModel, TiTokModel, VTPForImageReconstruction
from titok_hf.data import Augmentation, open_images
from titok_hf.data.digits import load_digits_dataset
from titok_hf.data.tokenize import tokenize_to_folder
from titok_hf.training import Recipe, RecipeRun
from titok_hf.training.flops import recipe_flops

from .test_latent_generator import content_of
from .tiny_pretraining import make_model

FLIP = {"horizontal_flip": True}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of digits, saved as a data set with a held-out split."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    digits = load_digits_dataset()
    digits["train"], digits["test"] = digits["train"].select(range(18)), digits["test"].select([0])
    digits.save_to_disk(folder)
    return str(folder)


@pytest.fixture(params=["vtp", "titok", "autoencoder"])
def tokenizer(request, tmp_path, make_titok_config):
    torch.manual_seed(0)
    folder = tmp_path / "tokenizer"
    if request.param == "vtp":
        make_model(has_text=False).save_pretrained(folder)
    elif request.param == "titok":
        TiTokModel(make_titok_config("pixels", quantizer="kl")).save_pretrained(folder)
    else:
        AutoencoderKL(
            block_out_channels=[8, 16],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=4,
            latent_channels=3,
        ).save_pretrained(folder)
    return str(folder)


def recipe_of(tokenizer, **changes):
    return Recipe.from_dict(content_of({"tokenizer": {"pretrained": tokenizer}}, **changes))


def weights(folder):
    return load_file(folder / "pipeline/transformer/model.safetensors")


@pytest.mark.slow
class TestAllFamilies:
    def test_latents_train_as_their_images_do(self, images, tokenizer, tmp_path):
        tokenize_to_folder(
            images, tokenizer, tmp_path / "latents", augmentation=Augmentation(**FLIP)
        )
        latents = open_images(str(tmp_path / "latents"))
        statistics = json.loads((tmp_path / "latents/latent_statistics.json").read_text())
        assert latents["train"].latent_statistics == statistics
        recipe = recipe_of(
            tokenizer,
            augmentation=FLIP,
            model={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                **{f"latent_{name}": values for name, values in statistics.items()},
            },
        )
        RecipeRun(recipe, open_images(images), tmp_path / "of_images").train()
        RecipeRun(recipe, latents, tmp_path / "of_latents").train()
        expected = weights(tmp_path / "of_images")
        for name, tensor in weights(tmp_path / "of_latents").items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)

    def test_the_statistics_of_the_data_set_are_those_of_the_pipeline(
        self, images, tokenizer, tmp_path
    ):
        tokenize_to_folder(images, tokenizer, tmp_path / "latents")
        for streaming in (False, True):
            data = open_images(str(tmp_path / "latents"), streaming=streaming)
            folder = tmp_path / f"run-{streaming}"
            RecipeRun(recipe_of(tokenizer), data, folder).train()
        pipeline = LatentDiTPipeline.from_pretrained(tmp_path / "run-True/pipeline")
        statistics = json.loads((tmp_path / "latents/latent_statistics.json").read_text())
        assert pipeline.transformer.config.latent_mean == statistics["mean"]
        assert pipeline.transformer.config.latent_std == statistics["std"]
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("three").images[0].size == (32, 32)


class TestRefused:
    @pytest.fixture
    def vtp(self, tmp_path):
        make_model(has_text=False).save_pretrained(tmp_path / "vtp")
        return str(tmp_path / "vtp")

    def train(self, tokenizer, data, tmp_path, **changes):
        RecipeRun(recipe_of(tokenizer, **changes), data, tmp_path / "run").train()

    def test_without_statistics(self, images, vtp, tmp_path):
        tokenize_to_folder(images, vtp, tmp_path / "latents")
        (tmp_path / "latents/latent_statistics.json").unlink()
        with pytest.raises(ValueError, match=r"no latent_statistics.json: .* `titok tokenize`"):
            self.train(vtp, open_images(str(tmp_path / "latents")), tmp_path)

    def test_of_another_tokenizer(self, images, vtp, tmp_path):
        tokenize_to_folder(images, vtp, tmp_path / "latents")
        make_model(has_text=False, latent_dim=6).save_pretrained(tmp_path / "other")
        with pytest.raises(
            ValueError, match=r"latents of shape \(4, 4, 4\), the tokenizer of \(6, 4"
        ):
            self.train(str(tmp_path / "other"), open_images(str(tmp_path / "latents")), tmp_path)

    def test_codes_for_latents(self, vtp, tmp_path):
        rows = {"codes": [[1, 2]] * 20, "label": [0, 1] * 10}
        Dataset.from_dict(rows).save_to_disk(tmp_path / "codes")
        data = open_images(str(tmp_path / "codes"), hold_out=False)
        with pytest.raises(ValueError, match="holds codes, which only the stage generator can"):
            self.train(vtp, data, tmp_path)

    def test_copies_for_one(self, images, vtp, tmp_path):
        tokenize_to_folder(images, vtp, tmp_path / "latents", augmentation=Augmentation(**FLIP))
        with pytest.raises(ValueError, match="makes 1 variants of each image, the tokens are of 2"):
            self.train(vtp, open_images(str(tmp_path / "latents")), tmp_path)

    def test_a_discrete_tokenizer(self, images, tmp_path):
        VQModel(block_out_channels=[8], norm_num_groups=4).save_pretrained(tmp_path / "vq")
        with pytest.raises(ValueError, match="continuous latents; this one has a codebook of 256"):
            self.train(str(tmp_path / "vq"), open_images(images), tmp_path)

    def test_a_sampled_posterior(self, images, vtp, tmp_path, make_titok_config):
        objective = {"ema_decay": 0.9, "sample_posterior": True}
        with pytest.raises(ValueError, match="a VTP's latents have none"):
            self.train(vtp, open_images(images), tmp_path, objective=objective)
        TiTokModel(make_titok_config("pixels", quantizer="kl")).save_pretrained(tmp_path / "titok")
        tokenize_to_folder(images, tmp_path / "titok", tmp_path / "latents")
        data = open_images(str(tmp_path / "latents"))
        with pytest.raises(ValueError, match="holds latents, which are means"):
            self.train(str(tmp_path / "titok"), data, tmp_path, objective=objective)

    def test_a_start_from_nowhere(self):
        tokenizer = {"tokenizer": {"pretrained": "x"}}
        with pytest.raises(
            ValueError, match=r"`stages.latent_generator.initial` must have `pretrained`"
        ):
            Recipe.from_dict(content_of(tokenizer, initial={"revision": "v2"}))

    def test_a_tokenizer_that_is_to_be_trained(self):
        content = content_of({"tokenizer": {"training": {"max_steps": 1}}})
        with pytest.raises(
            ValueError, match=r"`stages.tokenizer` must have `pretrained`, a folder"
        ):
            Recipe.from_dict(content)


@pytest.mark.slow
class TestInitial:
    """Fine-tuning of a generator on other classes."""

    @pytest.fixture
    def start(self, images, tmp_path):
        make_model(has_text=False).save_pretrained(tmp_path / "vtp")
        recipe = recipe_of(str(tmp_path / "vtp"))
        RecipeRun(recipe, open_images(images), tmp_path / "start").train()
        return tmp_path / "start/pipeline"

    def finetune(self, start, data, folder, **changes):
        initial = {"pretrained": str(start)}
        changes = {"model": {}, "initial": initial, **changes}
        recipe = recipe_of(str(start / "tokenizer"), **changes)
        RecipeRun(recipe, data, folder).train()
        return LatentDiTPipeline.from_pretrained(folder / "pipeline").transformer

    def test_it_starts_from_the_weights_and_statistics(self, start, images, tmp_path):
        data = open_images(images)
        training = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.0}
        tuned = self.finetune(start, data, tmp_path / "tuned", training=training)
        before = LatentDiTPipeline.from_pretrained(start).transformer
        configs = [{**each.config.to_dict(), "_name_or_path": ""} for each in (tuned, before)]
        assert configs[0] == configs[1]
        for name, tensor in before.state_dict().items():
            assert torch.equal(tuned.state_dict()[name], tensor), name

    def test_classes_are_matched_by_name(self, start, tmp_path):
        digits = load_digits_dataset()["train"].select(range(20))
        names = ["new", "three"]
        features = digits.features.copy()
        features["label"] = ClassLabel(names=names)
        rows = {"image": digits["image"][:], "label": [0, 1] * 10}
        Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "own")
        training = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.0}
        data = open_images(str(tmp_path / "own"))
        tuned = self.finetune(start, data, tmp_path / "tuned", training=training)
        before = LatentDiTPipeline.from_pretrained(start).transformer
        assert list(tuned.config.id2label.values()) == names
        assert tuned.config.latent_mean == before.config.latent_mean
        rows = before.label_embedding.weight
        three = list(before.config.id2label.values()).index("three")
        expected = torch.stack([rows[-1], rows[three], rows[-1]])
        assert torch.equal(tuned.label_embedding.weight, expected)

    def test_classes_of_one_name_are_matched_in_their_order(self, start, tmp_path):
        """ImageNet has two classes "crane"."""
        before = LatentDiTPipeline.from_pretrained(start).transformer
        before.provenance = {"license": "mit", "results": [{"value": 1}]}
        before.config.id2label = {**before.config.id2label, 1: "crane", 5: "crane"}
        before.save_pretrained(tmp_path / "cranes")
        initial = {"pretrained": str(tmp_path / "cranes")}
        stage = recipe_of(str(start / "tokenizer"), model={}, initial=initial).stage(
            "latent_generator"
        )
        tuned = LightningDiTModel(before.config)
        stage.initialize(tuned)
        assert torch.equal(tuned.label_embedding.weight, before.label_embedding.weight)
        assert tuned.provenance == before.provenance

    def test_other_sizes_are_refused(self, start, images, tmp_path):
        model = {"hidden_size": 32}
        with pytest.raises(ValueError, match="These are not the weights of LightningDiTModel"):
            self.finetune(start, open_images(images), tmp_path / "tuned", model=model)

    def test_a_missing_one_is_missed_before_training(self, images, tmp_path):
        make_model(has_text=False).save_pretrained(tmp_path / "vtp")
        recipe = recipe_of(str(tmp_path / "vtp"), initial={"pretrained": str(tmp_path / "nowhere")})
        with pytest.raises(OSError, match="Nothing has been trained"):
            RecipeRun(recipe, open_images(images), tmp_path / "run").train()


def test_no_image_is_encoded_for_latents(tmp_path):
    make_model(has_text=False).save_pretrained(tmp_path / "vtp")
    VTPForImageReconstruction.from_pretrained(tmp_path / "vtp")
    content = content_of({"vtp_pretraining": {"pretrained": str(tmp_path / "vtp")}})
    of_images = recipe_flops(Recipe.from_dict(content))
    of_latents = recipe_flops(Recipe.from_dict(content), tokens=True)
    assert 0 < of_latents["latent_generator"] < of_images["latent_generator"]
