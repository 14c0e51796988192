from pathlib import Path

import pytest
import yaml

import titok_hf
from titok_hf.settings import override
from titok_hf.training import Recipe

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"
SHIPPED = sorted(path.stem for path in (Path(titok_hf.__file__).parent / "recipes").glob("*.yaml"))


@pytest.fixture
def content():
    """The miniature recipe as plain data, no part shared by two stages."""
    return Recipe.load(MINIATURE).to_dict()


def test_the_demos_recipe_ships():
    assert "digits" in SHIPPED
    assert list(Recipe.load("digits").stages) == [
        "vqgan",
        "classifier",
        "warmup",
        "decoder_finetuning",
        "generator",
    ]


@pytest.mark.parametrize("source", [MINIATURE, str(MINIATURE)])
def test_a_file_loads(source):
    recipe = Recipe.load(source)
    assert (recipe.name, recipe.image_size) == ("miniature", 32)
    assert recipe.stages["warmup"]["model"]["num_latent_tokens"] == 4
    assert recipe.sampling == {
        "num_inference_steps": 3,
        "guidance_scale": 1.5,
        "guidance_schedule": "constant",
    }


def test_a_recipe_survives_yaml(tmp_path):
    recipe = Recipe.load(MINIATURE, ["name=copy"])
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert Recipe.load(tmp_path / "copy.yaml") == recipe


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "path", "value"),
        [
            ("image_size=64", ["image_size"], 64),
            ("name=large", ["name"], "large"),
            (
                "stages.warmup.training.max_steps=100",
                ["stages", "warmup", "training", "max_steps"],
                100,
            ),
            (
                "stages.vqgan.training.learning_rate=0.5",
                ["stages", "vqgan", "training", "learning_rate"],
                0.5,
            ),
            ("stages.vqgan.training.bf16=true", ["stages", "vqgan", "training", "bf16"], True),
            (
                "stages.vqgan.training.learning_rate=1e-4",
                ["stages", "vqgan", "training", "learning_rate"],
                0.0001,
            ),
            (
                "stages.vqgan.training.learning_rate=25E-5",
                ["stages", "vqgan", "training", "learning_rate"],
                0.00025,
            ),
            (
                "stages.vqgan.training.max_steps=10_000",
                ["stages", "vqgan", "training", "max_steps"],
                10000,
            ),
            (
                "stages.vqgan.training.run_name=1e-4x",
                ["stages", "vqgan", "training", "run_name"],
                "1e-4x",
            ),
            (
                "stages.vqgan.model.channel_multipliers=[1, 2]",
                ["stages", "vqgan", "model", "channel_multipliers"],
                [1, 2],
            ),
            (
                "stages.warmup.augmentation.rotation=3",
                ["stages", "warmup", "augmentation", "rotation"],
                3,
            ),
            ("stages.vqgan.augmentation={}", ["stages", "vqgan", "augmentation"], {}),
            ("sampling.guidance_schedule=linear", ["sampling", "guidance_schedule"], "linear"),
            ("scheduler.mask_schedule=arccos", ["scheduler", "mask_schedule"], "arccos"),
        ],
    )
    def test_one_value_changes_and_nothing_else(self, content, override, path, value):
        expected = content
        for key in path[:-1]:
            expected = expected.setdefault(key, {})
        expected[path[-1]] = value
        assert Recipe.load(MINIATURE, [override]).to_dict() == content

    @pytest.mark.parametrize("key", ["augmentation.rotation", "training.max_steps"])
    def test_stages_that_share_a_part_in_the_file_keep_it(self, key):
        name = "digits"
        expected = Recipe.load(name).to_dict()
        part, leaf = key.split(".")
        for stage in expected["stages"]:
            changed = Recipe.load(name, [f"stages.{stage}.{key}=77"]).to_dict()
            assert changed["stages"][stage][part].pop(leaf) == 77
            others = {other: parts for other, parts in expected["stages"].items() if other != stage}
            assert {
                other: parts for other, parts in changed["stages"].items() if other != stage
            } == others

    def test_of_several_the_last_wins(self):
        recipe = Recipe.load(MINIATURE, ["image_size=64", "name=large", "image_size=128"])
        assert (recipe.image_size, recipe.name) == (128, "large")

    def test_a_value_may_hold_an_equals_sign(self):
        assert Recipe.load(MINIATURE, ["name=a=b"]).name == "a=b"

    @pytest.mark.parametrize(
        "override",
        [
            "stages.warmup.training.max_steps",
            "",
            "=3",
            "name.x=1",  # a value has no keys
            "stages.warmup.training.max_steps.x.y=1",
            "image_size=[1",  # not YAML
            "stages.warmup.augmentation=3",  # a part is keys and values
            "stages.warmup=null",
        ],
    )
    def test_a_malformed_one_is_an_error(self, override):
        with pytest.raises(ValueError):
            Recipe.load(MINIATURE, [override])

    def test_a_malformed_one_is_named(self):
        with pytest.raises(ValueError, match=r"`key=value`, got 'stages.warmup'"):
            Recipe.load(MINIATURE, ["stages.warmup"])


class TestKeys:
    @pytest.mark.parametrize(
        ("where", "key", "nearest"),
        [
            ("", "image_sise", "image_size"),
            ("stages", "warm_up", "warmup"),
            ("stages.vqgan", "trainings", "training"),
            ("stages.vqgan.model", "hidden_channel", "hidden_channels"),
            ("stages.vqgan.objective", "ema_dekay", "ema_decay"),
            ("stages.vqgan", "pretraned", "pretrained"),
            ("stages.warmup.model", "sise", "size"),
            ("stages.decoder_finetuning.objective", "lpips_wieght", "lpips_weight"),
            ("stages.decoder_finetuning", "lpip", "lpips"),
            ("stages.warmup.training", "global_batchsize", "global_batch_size"),
            ("stages.vqgan.augmentation", "rotations", "rotation"),
            ("stages.vqgan.training", "max_step", "max_steps"),
            ("stages.classifier.model", "hidden_size", "hidden_sizes"),
            ("stages.warmup.model", "num_latent_token", "num_latent_tokens"),
            ("stages.decoder_finetuning.discriminator", "num_stage", "num_stages"),
            (
                "stages.decoder_finetuning.training",
                "discriminator_lr",
                "discriminator_learning_rate",
            ),
            ("stages.generator.model", "num_heads", "num_attention_heads"),
            ("scheduler", "mask_shedule", "mask_schedule"),
            ("sampling", "guidance", "guidance_scale"),
        ],
    )
    def test_an_unknown_one_is_an_error_that_names_the_nearest(self, content, where, key, nearest):
        part = content
        for parent in filter(None, where.split(".")):
            part = part[parent]
        part[key] = {}
        with pytest.raises(
            ValueError, match=rf"'{key}' in `{where or 'recipe'}`: did you mean '{nearest}'\?"
        ):
            Recipe.from_dict(content)

    def test_one_that_is_near_none_is_an_error_that_lists_all(self, content):
        content["sampling"]["xyz"] = 1
        with pytest.raises(
            ValueError, match="'xyz' in `sampling`: known are num_inference_steps, guidance_scale, "
        ):
            Recipe.from_dict(content)

    @pytest.mark.parametrize("stage", ["classifier", "warmup", "generator"])
    def test_parts_belong_to_their_stages(self, content, stage):
        content["stages"][stage]["discriminator"] = {"num_stages": 2}
        with pytest.raises(ValueError, match=f"'discriminator' in `stages.{stage}`"):
            Recipe.from_dict(content)

    @pytest.mark.parametrize("key", ["name", "image_size", "stages", "scheduler", "sampling"])
    def test_a_missing_one_is_named(self, content, key):
        del content[key]
        with pytest.raises(ValueError, match=f"lacks {key}"):
            Recipe.from_dict(content)

    def test_a_generator_may_be_a_unet(self):
        recipe = Recipe.load(MINIATURE, ["stages.generator.model.model_type=maskgit_uvit"])
        assert recipe.stages["generator"]["model"]["model_type"] == "maskgit_uvit"

    @pytest.mark.parametrize("key", ["model", "discriminator", "perceptual"])
    def test_what_a_run_builds_is_no_key(self, content, key):
        content["stages"]["decoder_finetuning"]["objective"][key] = {}
        with pytest.raises(ValueError, match=f"'{key}' in `stages.decoder_finetuning.objective`"):
            Recipe.from_dict(content)


class TestFiles:
    @pytest.mark.parametrize("source", ["no-such-recipe", "missing.yaml", "/nowhere/digits.yaml"])
    def test_an_unknown_recipe_is_an_error_that_lists_what_ships(self, source):
        with pytest.raises(
            FileNotFoundError, match=rf"got '{source}': known are {', '.join(SHIPPED)}"
        ):
            Recipe.load(source)

    def test_the_nearest_name_is_suggested(self):
        with pytest.raises(FileNotFoundError, match="'vtp-emojy': did you mean 'vtp-emoji'"):
            Recipe.load("vtp-emojy")

    @pytest.mark.parametrize("text", ["name: [1", "- a\n- b\n", "", "digits"])
    def test_a_file_that_holds_no_recipe_is_an_error(self, tmp_path, text):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError):
            Recipe.load(tmp_path / "bad.yaml")


SINGLE_STAGE = (
    "stages.single_stage={model: {num_latent_tokens: 4}, objective: {perceptual_weight: 0.1}, "
    "discriminator: {num_stages: 2}, training: {max_steps: 2}}"
)


def with_stages(*names):
    """The miniature with some of its stages, and `single_stage` among those that it may have."""
    content = Recipe.load(MINIATURE).to_dict()
    override(content, [SINGLE_STAGE])
    return content | {"stages": {name: content["stages"][name] for name in names}}


class TestStages:
    @pytest.mark.parametrize("stage", ["vqgan", "classifier", "warmup", "decoder_finetuning"])
    def test_one_that_is_needed_must_be_there(self, stage):
        content = Recipe.load("digits").to_dict()
        del content["stages"][stage]
        with pytest.raises(ValueError, match=stage):
            Recipe.from_dict(content)

    @pytest.mark.parametrize(
        "names",
        [
            ("vqgan",),
            ("classifier",),
            ("vqgan", "warmup"),
            ("vqgan", "classifier", "warmup", "decoder_finetuning"),
            ("classifier", "single_stage"),
            ("classifier", "single_stage", "generator"),
            ("vqgan", "classifier", "single_stage"),
        ],
        ids="-".join,
    )
    def test_some_are_enough(self, names):
        assert list(Recipe.from_dict(with_stages(*names)).stages) == list(names)

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            ((), "at least one of the stages .*classifier, .*vqgan, .*warmup"),
            (("warmup",), "stage warmup needs the stage vqgan"),
            (
                ("vqgan", "classifier", "decoder_finetuning"),
                "stage decoder_finetuning needs the stage warmup",
            ),
            (
                ("vqgan", "warmup", "decoder_finetuning"),
                "decoder_finetuning has a `perceptual_weight`.*classifier",
            ),
            (("single_stage",), "single_stage has a `perceptual_weight`.*classifier"),
            (
                ("vqgan", "warmup", "generator"),
                "generator needs the stage decoder_finetuning or single_stage",
            ),
            (
                ("vqgan", "classifier", "warmup", "decoder_finetuning", "single_stage"),
                "one of .* got both",
            ),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
    )
    def test_one_without_what_it_needs_is_an_error(self, names, sentence):
        with pytest.raises(ValueError, match=sentence):
            Recipe.from_dict(with_stages(*names))

    def test_without_a_perceptual_loss_a_single_stage_stands_alone(self):
        content = with_stages("single_stage")
        content["stages"]["single_stage"]["objective"]["perceptual_weight"] = 0
        assert list(Recipe.from_dict(content).stages) == ["single_stage"]

    @pytest.mark.parametrize("key", ["scheduler", "sampling"])
    def test_sampling_belongs_to_the_generator(self, key):
        content = with_stages("vqgan", "warmup")
        del content[key]
        assert getattr(Recipe.from_dict(content), key) == {}
        content["stages"] = Recipe.load(MINIATURE).stages
        with pytest.raises(ValueError, match=f"lacks {key}, which its stage generator needs"):
            Recipe.from_dict(content)

    def test_a_single_stage_has_a_model(self):
        content = with_stages("classifier", "single_stage")
        content["stages"]["single_stage"]["model"]["num_latent_token"] = 8
        with pytest.raises(
            ValueError, match=r"'num_latent_token' in `stages.single_stage.model`: did you mean"
        ):
            Recipe.from_dict(content)


PRETRAINED = {"pretrained": "user/model"}


def with_pretrained(*names, trained=()):
    """The miniature with some of its stages trained, and others pretrained."""
    content = with_stages(*names, *trained)
    content["stages"] |= dict.fromkeys(names, PRETRAINED)
    return content


class TestPretrained:
    @pytest.mark.parametrize(
        ("pretrained", "trained"),
        [
            (("vqgan",), ("warmup",)),
            (("vqgan", "classifier"), ("warmup", "decoder_finetuning")),
            (("vqgan", "classifier", "warmup"), ("decoder_finetuning",)),
            (("classifier",), ("single_stage",)),
            (("decoder_finetuning",), ("generator",)),
            (("single_stage",), ("generator",)),
        ],
    )
    def test_some_are_enough(self, pretrained, trained):
        recipe = Recipe.from_dict(with_pretrained(*pretrained, trained=trained))
        assert [stage.name for stage in recipe.trained_stages()] == list(trained)
        assert all(recipe.stage(stage).is_pretrained for stage in pretrained)

    def test_a_classifier_that_none_needs_is_not_trained(self, content):
        stages = {name: content["stages"][name] for name in ("vqgan", "classifier")}
        stages["vqgan"]["objective"] = {"perceptual_weight": 0}
        recipe = Recipe.from_dict(content | {"stages": stages})
        assert [stage.name for stage in recipe.trained_stages()] == ["vqgan"]

    def test_it_may_have_a_revision(self):
        content = with_pretrained("vqgan", trained=["warmup"])
        content["stages"]["vqgan"] = {"pretrained": "user/model", "revision": "v2"}
        assert Recipe.from_dict(content).stages["vqgan"]["revision"] == "v2"

    @pytest.mark.parametrize(
        ("stage", "value"),
        [
            ("vqgan", {"pretrained": "user/model", "training": {"max_steps": 3}}),
            ("vqgan", {"revision": "v2"}),
            ("vqgan", {"pretrained": None}),
            ("vqgan", {"pretrained": ""}),
            ("vqgan", {"pretrained": ["user/model"]}),
            ("generator", {"pretrained": "user/model"}),
        ],
    )
    def test_one_that_is_not_just_that_is_an_error(self, content, stage, value):
        content["stages"][stage] = value
        with pytest.raises(
            ValueError, match=rf"`stages.{stage}` must either be trained, by model, .* or"
        ):
            Recipe.from_dict(content)

    @pytest.mark.parametrize(
        ("pretrained", "trained", "sentence"),
        [
            (("vqgan", "warmup"), (), "needs at least one of the stages .* to train"),
            (("warmup",), ("decoder_finetuning",), "decoder_finetuning needs the stage vqgan"),
            (("vqgan",), ("decoder_finetuning",), "decoder_finetuning needs the stage warmup"),
            (
                ("vqgan", "warmup"),
                ("generator",),
                "generator needs the stage decoder_finetuning or single_stage",
            ),
        ],
    )
    def test_one_without_what_it_needs_is_an_error(self, pretrained, trained, sentence):
        with pytest.raises(ValueError, match=sentence):
            Recipe.from_dict(with_pretrained(*pretrained, trained=trained))


class TestPerceptualWeights:
    @staticmethod
    def load(stages=("vqgan", "warmup", "decoder_finetuning"), **objective):
        content = with_stages(*stages)
        content["stages"]["decoder_finetuning"]["objective"] = objective
        return Recipe.from_dict(content)

    def test_lpips_alone_needs_no_classifier(self):
        recipe = self.load(perceptual_weight=1.0, lpips_weight=1.0, classifier_weight=0)
        assert "classifier" not in recipe.stages

    def test_both_need_one(self):
        with pytest.raises(ValueError, match="lacks the stage classifier; for LPIPS alone"):
            self.load(perceptual_weight=1.0, lpips_weight=1.0)

    def test_no_network_is_an_error(self):
        with pytest.raises(ValueError, match="no network for it"):
            self.load(perceptual_weight=1.0, classifier_weight=0)

    def test_weights_in_a_loss_that_does_not_count_are_an_error(self):
        with pytest.raises(ValueError, match="has a `lpips_weight` but no `perceptual_weight`"):
            self.load(lpips_weight=1.0)


def test_accumulation_is_given_in_one_way(content):
    content["stages"]["vqgan"]["training"] |= {
        "global_batch_size": 8,
        "gradient_accumulation_steps": 2,
    }
    with pytest.raises(
        ValueError, match="one of `global_batch_size` and `gradient_accumulation_steps`, got both"
    ):
        Recipe.from_dict(content)


def test_stages_come_in_their_order(content):
    content["stages"] = dict(reversed(content["stages"].items()))
    expected = ["vqgan", "warmup", "classifier", "decoder_finetuning", "generator"]
    assert list(Recipe.from_dict(content).stages) == expected  # each behind what it requires
