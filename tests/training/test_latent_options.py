"""Tests of the switches that make a VTP's latents easier to learn."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.parity.fill import normal
from safetensors.torch import load_file
from torch import nn
from transformers import ConvNextConfig, ConvNextModel, ViTConfig, ViTImageProcessor, ViTModel

from titok_hf import VTPModel
from titok_hf.data.opening import ImageSplits
from titok_hf.data.samples import IndexedSamples
from titok_hf.modeling.outputs import TokenizerDecoderOutput
from titok_hf.training import Recipe, RecipeRun
from titok_hf.training.alignment import Alignment, alignment_losses
from titok_hf.training.equivariance import Transformation, halved
from titok_hf.training.flops import recipe_flops

from .tiny_pretraining import batches, captioned_digits, make_pretraining

CASES = Path(__file__).parents[1] / "fixtures" / "parity" / "cases"
RECIPE = Path(__file__).parents[1] / "miniature-vtp.yaml"
ALONE = {"ssl_weight": 0.0, "clip_weight": 0.0}
SWITCHES = {
    "alignment": {"alignment_weight": 0.5},
    "equivariance": {"equivariance_probability": 1.0},
    "scale equivariance": {"scale_equivariance_weight": 0.25},
    "noise": {"latent_noise": 0.5},
}


def vit(side=16):
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": side, "patch_size": 4}
    return ViTModel(ViTConfig(hidden_size=8, intermediate_size=8, **sizes), add_pooling_layer=False)


def make(switches, **arguments):
    """The smallest objective with switches, on 4x4 latents of 4 channels."""
    if switches.get("alignment_weight"):
        arguments["alignment"] = Alignment(vit(), 4, image_size=16)
    torch.manual_seed(0)
    return make_pretraining(**switches, **arguments)


def all_switches():
    return {name: value for switch in SWITCHES.values() for name, value in switch.items()}


class TestAlignmentLosses:
    @pytest.fixture
    def pair(self):
        """Projected latents and features of the parity case."""
        first, second = (
            torch.from_numpy(normal(name, [3, 12, 4, 5]))
            for name in ("projected_latents", "foundation_features")
        )
        return first, 0.6 * first + 0.8 * second

    def test_they_are_va_vaes(self, pair):
        case = load_file(CASES / "alignment_losses.safetensors")
        plain, within = alignment_losses(*pair), alignment_losses(*pair, 0.5, 0.25)
        found = {
            "plain": sum(plain),
            "margins": sum(within),
            "cosine_alone": plain[0],
            "distances_alone": plain[1],
        }
        assert found.keys() == case.keys()
        for name, expected in case.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=0, msg=name)

    def test_features_themselves_are_aligned(self, pair):
        for loss in alignment_losses(3 * pair[0], pair[0]):
            assert loss.item() == pytest.approx(0, abs=1e-6)

    def test_within_the_margins_there_is_no_loss(self, pair):
        assert [loss.item() for loss in alignment_losses(*pair, 2.0, 2.0)] == [0, 0]


class TestAlignment:
    def test_features_of_patch_tokens_and_of_a_map(self):
        images = torch.rand(2, 3, 32, 32)
        network = vit()
        expected = network(
            (
                nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
                - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
            )
            / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        ).last_hidden_state
        found = Alignment(network, 4, image_size=16).features(images)
        assert found.shape == (2, 8, 4, 4)
        torch.testing.assert_close(found[:, :, 1, 2], expected[:, 1 + 6])
        config = ConvNextConfig(patch_size=4, num_stages=2, hidden_sizes=[4, 8], depths=[1, 1])
        found = Alignment(ConvNextModel(config), 4, image_size=32).features(images)
        assert found.shape == (2, 8, 4, 4)

    def test_other_numbers_of_places_are_resized(self):
        alignment = Alignment(vit(), 4, image_size=16)
        loss, terms = alignment(torch.randn(2, 4, 8, 8), torch.rand(2, 3, 32, 32))
        assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()))

    def test_patches_divide_the_images(self):
        with pytest.raises(
            ValueError, match="must be a multiple of the patch size 4 of the ViTModel"
        ):
            Alignment(vit(), 4, image_size=18)

    def test_only_the_projection_is_trained(self):
        alignment = Alignment(vit(), 4, image_size=16).train()
        trained = [name for name, weight in alignment.named_parameters() if weight.requires_grad]
        assert trained == ["projection.weight"] and not alignment.network.training


class TestTransformation:
    def test_a_step_has_the_same_one_everywhere(self):
        assert [Transformation.draw(step, 0.5, 0.25) for step in range(50)] == [
            Transformation.draw(step, 0.5, 0.25) for step in range(50)
        ]

    def test_shares_and_ranges(self):
        drawn = [Transformation.draw(step, 0.5, 0.25) for step in range(4000)]
        of_latents = [each for each in drawn if each is not None and each.of_latents]
        scaled = [each for each in drawn if each is not None and not each.of_latents]
        assert len(of_latents) / 4000 == pytest.approx(0.5, abs=0.03)
        assert len(scaled) / 4000 == pytest.approx(0.125, abs=0.02)
        assert {each.turns for each in of_latents} == {1, 2, 3}
        assert {each.turns for each in scaled} == {0}
        scales = sorted({each.scale for each in of_latents})
        assert scales == [number / 32 for number in range(8, 32)]

    def test_it_turns_and_resizes(self):
        maps = torch.arange(12.0).view(1, 1, 3, 4)
        turned = Transformation(True, 1.0, 1).apply(maps, (3, 4))
        assert turned.equal(maps.rot90(1, (2, 3)))
        assert Transformation(True, 0.5, 1).places(4, 8) == (2, 4)
        assert Transformation(True, 0.25, 1).apply(torch.rand(1, 2, 8, 16), (2, 4)).shape[2:] == (
            4,
            2,
        )

    def test_half_the_size(self):
        assert halved(torch.rand(2, 3, 16, 16)).shape == (2, 3, 8, 8)


class TestObjective:
    def loss(self, objective, step=0, batch=None):
        objective.train()
        batch = next(batches(objective)) if batch is None else batch
        return objective(**batch, step=step)

    @pytest.mark.parametrize("switch", SWITCHES)
    @pytest.mark.parametrize("others", [{}, ALONE], ids=["all losses", "reconstruction alone"])
    def test_every_parameter_has_a_gradient(self, switch, others):
        objective = make(SWITCHES[switch], **others)
        self.loss(objective).loss.backward()
        unused = [
            name
            for name, weight in objective.named_parameters()
            if weight.requires_grad and weight.grad is None
        ]
        assert unused == []

    @pytest.mark.parametrize("switch", SWITCHES)
    def test_each_changes_the_loss(self, switch):
        plain, switched = make({}, **ALONE), make(SWITCHES[switch], **ALONE)
        batch = next(batches(switched))
        without = {name: value for name, value in batch.items() if name != "draws"}
        assert self.loss(plain, batch=without).loss != self.loss(switched, batch=batch).loss

    def test_evaluation_has_no_transformation_and_no_noise(self):
        plain = make({}, **ALONE).eval()
        switched = make(SWITCHES["equivariance"] | SWITCHES["noise"], **ALONE).eval()
        batch = next(batches(plain))
        with torch.no_grad():
            assert plain(**batch).loss.equal(switched(**batch).loss)

    @pytest.mark.parametrize("step", range(6))
    def test_an_equivariant_autoencoder_has_no_loss(self, step):
        """If latents are the pixels themselves, every transformation is decoded without error."""
        objective = make(SWITCHES["equivariance"] | SWITCHES["scale equivariance"], **ALONE)
        images = torch.randn(2, 3, 32, 32)
        objective.model.config.patch_size = 1
        objective.model.to_latents = lambda tokens, height, width: images
        objective.model.decode = lambda latents: TokenizerDecoderOutput(reconstruction=latents)
        logged = {}
        drawn = Transformation.draw(step, 1.0, 0.0)
        loss = objective.reconstruction_loss(
            None, images, noise=None, transformation=drawn, logged=logged
        )
        assert (loss.item(), logged["scale_equivariance_loss"].item()) == (0, 0)

    def test_scaled_images_are_encoded_anew(self):
        """With prior preservation alone, the loss is that of an autoencoder of small images."""
        objective = make({"equivariance_probability": 1e-9, "prior_probability": 1.0}, **ALONE)
        batch = next(batches(objective))
        drawn = Transformation.draw(5, 1e-9, 1.0)
        found = self.loss(objective, 5, batch).logged_losses["l1_loss"]
        places = drawn.places(4, 4)
        small = drawn.apply(batch["pixel_values"], tuple(8 * count for count in places))
        expected = make({}, **ALONE).train()(pixel_values=small).logged_losses["l1_loss"]
        torch.testing.assert_close(found, expected)

    def test_the_weight_of_alignment_balances_gradients_at_the_bottleneck(self):
        """With the adaptive weight, alignment's gradient is `alignment_weight` times as long as that of
        the rest."""
        objective = make({"alignment_weight": 0.5}, **ALONE)
        plain = make({}, **ALONE)
        batch = next(batches(objective))
        gradients = []
        for each in (objective, plain):
            self.loss(each, batch=batch).loss.backward()
            gradients.append(each.model.vision_encoder.bottleneck.weight.grad)
        ratio = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
        assert ratio.item() == pytest.approx(0.5, rel=0.01)

    def test_alignment_and_its_weight_go_together(self):
        with pytest.raises(ValueError, match="`alignment` must be given if `alignment_weight`"):
            make_pretraining(alignment_weight=0.1)


@pytest.mark.slow
class TestStage:
    def recipe(self, *overrides):
        alone = [
            "stages.vtp_pretraining.objective.ssl_weight=0",
            "stages.vtp_pretraining.objective.clip_weight=0",
            *(f"stages.vtp_pretraining.objective.{n}={v}" for n, v in all_switches().items()),
        ]
        content = Recipe.load(RECIPE).to_dict()
        stage = content["stages"]["vtp_pretraining"]
        for part in ("head", "multi_crop", "masking"):
            del stage[part]
        del stage["subsets"]["self_supervision"], stage["objective"]["ssl_drop_rate"]
        del content["stages"]["vtp_decoder_finetuning"]
        path = self.folder / "recipe.yaml"
        stage["objective"] |= {"ssl_weight": 0, "clip_weight": 0}
        path.write_text(json.dumps(content))
        return Recipe.load(path, [*alone, *overrides])

    @pytest.fixture(autouse=True)
    def keep(self, tmp_path):
        self.folder = tmp_path

    def run(self, recipe):
        digits = captioned_digits(24)
        splits = ImageSplits("digits", ["train"], lambda split: IndexedSamples(digits))
        return RecipeRun(recipe, splits, self.folder / "run")

    def test_all_switches_with_the_classifier_as_foundation_model(self):
        run = self.run(self.recipe())
        assert isinstance(run.train(), VTPModel)
        log = json.loads(
            (self.folder / "run" / "work" / "logs" / "vtp_pretraining.json").read_text()
        )
        logged = {name for entry in log["history"] for name in entry}
        assert {
            "alignment_cosine_loss",
            "alignment_distance_loss",
            "scale_equivariance_loss",
        } <= logged
        state = VTPModel.from_pretrained(self.folder / "run" / "vtp").state_dict()
        assert not any("alignment" in name for name in state)

    def test_with_a_vision_model(self):
        vit().save_pretrained(self.folder / "vit")
        ViTImageProcessor(
            size={"height": 16, "width": 16}, image_mean=[0.1] * 3, image_std=[0.2] * 3
        ).save_pretrained(self.folder / "vit")
        part = f"stages.vtp_pretraining.alignment={{pretrained: {self.folder / 'vit'}, image_size: 16}}"
        recipe = self.recipe(part)
        alignment = recipe.stage("vtp_pretraining").alignment({}, 4)
        assert alignment.mean.flatten().tolist() == pytest.approx([0.1] * 3)
        assert (
            recipe_flops(recipe)["vtp_pretraining"]
            > recipe_flops(
                self.recipe(part, "stages.vtp_pretraining.objective.scale_equivariance_weight=0")
            )["vtp_pretraining"]
        )
        assert isinstance(self.run(recipe).train(), VTPModel)

    def test_a_missing_model_is_said_before_training(self):
        part = "stages.vtp_pretraining.alignment={pretrained: nowhere/vit}"
        with pytest.raises(OSError, match="foundation model of vtp_pretraining"):
            self.run(self.recipe(part)).train()

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (
                [
                    "stages.vtp_pretraining.objective.alignment_weight=0",
                    "stages.vtp_pretraining.alignment={image_size: 32}",
                ],
                "has a part `alignment` but no `alignment_weight`",
            ),
            (
                [
                    "stages.vtp_pretraining.objective.reconstruction_weight=0",
                    "stages.vtp_pretraining.objective.clip_weight=1",
                ],
                "no use for it, because `reconstruction_weight` is 0",
            ),
        ],
    )
    def test_contradictions(self, overrides, said):
        with pytest.raises(ValueError, match=said):
            self.recipe(*overrides)

    def test_other_stages_have_none_of_them(self):
        with pytest.raises(ValueError, match="Unknown key 'equivariance_probability'"):
            Recipe.load(
                "titok-l-32", ["stages.decoder_finetuning.objective.equivariance_probability=0.5"]
            )
