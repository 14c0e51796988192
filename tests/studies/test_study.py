import hashlib
import json

import pytest

from titok_hf.studies import Study, study_names
from titok_hf.studies.report import METRICS

NAMES = [
    "codebook",
    "latents",
    "one-against-two-d",
    "scaling",
    "schedule",
    "tokens",
    "two-stage",
]

TOKENIZERS = ("warmup", "decoder_finetuning", "single_stage")


def recipes(name, *arguments, **options):
    """Each variant's values and recipe."""
    return [
        (variant.values, variant.recipe.to_dict())
        for variant in Study.load(name, *arguments, **options).variants()
    ]


def test_seven_studies_ship():
    assert study_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestEach:
    def test_it_loads_with_three_seeds_and_known_metrics(self, name):
        study = Study.load(name)
        assert study.name == name and study.seeds == [0, 1, 2]
        assert study.x in {*study.axes, "FLOPs"}
        assert set(study.panels) <= set(study.metrics) <= set(METRICS)
        assert set(study.predictors) <= set(METRICS)

    def test_variants_are_all_combinations_under_names_of_their_own(self, name):
        study = Study.load(name)
        variants = study.variants()
        number = 1
        for choices in study.axes.values():
            number *= len(choices)
        assert len({variant.name for variant in variants}) == len(variants) == number
        assert not any(" " in variant.name or "/" in variant.name for variant in variants)

    @pytest.mark.parametrize("quick", [False, True])
    def test_what_is_shared_is_that_of_the_variant(self, name, quick):
        study = Study.load(name, quick=quick)
        for variant in study.variants():
            for stage in set(study.shared) & set(variant.recipe.stages):
                shared = study.shared_recipe(variant, stage)
                assert shared.image_size == variant.recipe.image_size
                assert set(shared.stages) == {stage, *variant.recipe.stage(stage).required()}
                own, found = variant.recipe.stages[stage], shared.stages[stage]
                if stage == study.snapshots:
                    assert own["training"]["max_steps"] in found["training"]["snapshot_steps"]
                    own, found = ({**each, "training": None} for each in (own, found))
                assert own == found, (variant.name, stage)

    def test_variants_differ(self, name):
        found = [json.dumps(recipe, sort_keys=True) for _, recipe in recipes(name)]
        same = {"one-against-two-d": 1}.get(name, 0)  # 16 tokens have 4x4 patches anyway
        assert len(set(found)) == len(found) - same

    def test_quickly_every_stage_takes_two_steps_at_most_of_one_seed(self, name):
        assert Study.load(name, quick=True).seeds == [0]
        for _, recipe in recipes(name, quick=True):
            assert max(stage["training"]["max_steps"] for stage in recipe["stages"].values()) == 2


class TestWhatIsCompared:
    def test_tokens(self):
        found = [
            (values["size"], values["tokens"], recipe["stages"]["single_stage"]["model"])
            for values, recipe in recipes("tokens")
        ]
        assert [(size, tokens) for size, tokens, _ in found] == [
            (s, k) for s in "SB" for k in (4, 8, 16)
        ]
        for size, tokens, model in found:
            width = {"S": 32, "B": 64}[size]
            assert (model["encoder_hidden_size"], model["decoder_hidden_size"]) == (width, width)
            assert model["num_latent_tokens"] == tokens

    @pytest.mark.parametrize(
        ("name", "stages"),
        [
            ("tokens", ("single_stage",)),
            ("one-against-two-d", ("single_stage",)),
            ("codebook", ("vqgan", "warmup")),
        ],
    )
    def test_reconstructions_are_compared_without_fine_tuning(self, name, stages):
        assert {tuple(recipe["stages"]) for _, recipe in recipes(name)} == {stages}

    def test_one_against_two_dimensions_at_equal_budgets(self):
        for values, recipe in recipes("one-against-two-d"):
            model = recipe["stages"]["single_stage"]["model"]
            patches = (recipe["image_size"] // model["encoder_patch_size"]) ** 2
            assert model["num_latent_tokens"] == values["tokens"]
            if values["representation"] == "latent tokens of 4x4 patches":
                assert patches == 16
            else:
                assert patches == values["tokens"]
            is_2d = values["representation"] == "patch tokens"
            assert (model.get("representation") == "patch_tokens") == is_2d

    def test_two_stages_and_one_take_equal_steps(self):
        found = {}
        for values, recipe in recipes("two-stage"):
            stages = [stage for stage in TOKENIZERS if stage in recipe["stages"]]
            steps = sum(recipe["stages"][stage]["training"]["max_steps"] for stage in stages)
            found[values["training"]] = (stages, steps)
        assert found == {
            "proxy codes": (["warmup"], 3000),
            "two stages": (["warmup", "decoder_finetuning"], 3000),
            "single stage": (["single_stage"], 3000),
        }

    def test_one_and_two_stages_have_the_same_network_and_losses(self):
        stages = Study.load("two-stage").recipe["stages"]
        assert stages["single_stage"]["model"] == stages["warmup"]["model"]
        one, two = (
            dict(stages[stage]["objective"]) for stage in ("single_stage", "decoder_finetuning")
        )
        one.pop("discriminator_start"), two.pop("discriminator_start")
        assert one == two

    def test_schedules_differ_in_the_schedule_alone(self):
        found = recipes("schedule")
        assert [recipe["scheduler"].pop("mask_schedule") for _, recipe in found] == [
            values["schedule"] for values, _ in found
        ]
        assert all(recipe == found[0][1] for _, recipe in found)

    def test_codebooks_differ_in_their_size_alone(self):
        found = recipes("codebook")
        models = [recipe["stages"]["warmup"]["model"] for _, recipe in found]
        assert [model.pop("codebook_size") for model in models] == [64, 256, 1024]
        assert all(recipe == found[0][1] for _, recipe in found)


class TestOverrides:
    def test_they_count_more_than_the_axes_and_the_quick_ones(self):
        changes = [
            "stages.single_stage.model.num_latent_tokens=3",
            "stages.single_stage.training.max_steps=5",
        ]
        for _, recipe in recipes("tokens", changes, quick=True):
            assert recipe["stages"]["single_stage"]["model"]["num_latent_tokens"] == 3
            assert recipe["stages"]["single_stage"]["training"]["max_steps"] == 5

    def test_they_reach_the_shared_stages(self):
        study = Study.load("schedule", ["stages.vqgan.model.codebook_size=17", "image_size=32"])
        shared = study.shared_recipe(study.variants()[0], "vqgan")
        assert (shared.stages["vqgan"]["model"]["codebook_size"], shared.image_size) == (17, 32)

    @pytest.mark.parametrize(
        "key", ["augmentation.rotation", "training.lr_scheduler_kwargs.min_lr_rate"]
    )
    def test_stages_that_share_a_part_in_the_file_keep_it(self, key):
        expected = Study.load("schedule").variants()[0].recipe.to_dict()
        changed = Study.load("schedule", [f"stages.warmup.{key}=77"]).variants()[0].recipe.to_dict()
        for stage in changed["stages"]:
            assert (changed["stages"][stage] == expected["stages"][stage]) == (stage != "warmup")

    @pytest.mark.parametrize(
        ("override", "sentence"),
        [
            ("stages.warmup", "`key=value`"),
            ("stages.warmup.training.max_step=3", "did you mean 'max_steps'"),
            ("stages.warm_up.training.max_steps=3", "did you mean 'warmup'"),
            ("image_sise=32", "did you mean 'image_size'"),
        ],
    )
    def test_wrong_ones_are_errors(self, override, sentence):
        with pytest.raises(ValueError, match=sentence):
            Study.load("codebook", [override]).variants()

    def test_a_stage_that_the_study_does_not_train_is_an_error(self):
        with pytest.raises(ValueError, match=r"'warmup' in `stages`: known are single_stage"):
            Study.load("tokens", ["stages.warmup.training.max_steps=3"]).variants()


def test_ways_of_training_latents_differ_in_one_setting_each():
    found = {
        values["latents"]: recipe["stages"]["vtp_pretraining"]
        for values, recipe in recipes("latents")
    }
    plain = found.pop("reconstruction")
    keys = {
        "aligned": "alignment_weight",
        "equivariant": "equivariance_probability",
        "scale-equivariant": "scale_equivariance_weight",
        "noisy": "latent_noise",
    }
    assert found.keys() == keys.keys()
    for name, stage in found.items():
        assert stage["objective"].pop(keys[name]) > 0
        assert stage == plain


class TestScaling:
    def test_objectives_differ_in_what_belongs_to_them(self):
        found = {
            values["objective"]: recipe["stages"]["vtp_pretraining"]
            for values, recipe in recipes("scaling")
        }
        assert list(found) == [
            "reconstruction",
            "reconstruction + clip",
            "reconstruction + ssl",
            "all",
        ]
        for name, stage in found.items():
            assert bool(stage["objective"]["clip_weight"]) == (
                name in ("all", "reconstruction + clip")
            )
            assert bool(stage["objective"]["ssl_weight"]) == (
                name in ("all", "reconstruction + ssl")
            )
            assert ("head" in stage) == ("multi_crop" in stage) == ("ssl" in name or name == "all")
            assert stage["model"] == found["all"]["model"]

    def test_one_tokenizer_per_seed_has_all_mask_schedules(self):
        study = Study.load("schedule")
        for stage in study.shared:
            [_] = {
                json.dumps(study.shared_recipe(each, stage).to_dict()) for each in study.variants()
            }

    def test_steps_are_snapshots_of_one_run(self):
        study = Study.load("scaling")
        shared = {
            json.dumps(study.shared_recipe(variant, "vtp_pretraining").to_dict(), sort_keys=True)
            for variant in study.variants()
        }
        assert len(shared) == len(study.axes["objective"]) and len(study.variants()) == 3 * len(
            shared
        )
        for recipe in map(json.loads, shared):
            training = recipe["stages"]["vtp_pretraining"]["training"]
            assert training["snapshot_steps"] == list(study.axes["steps"])
            assert training["max_steps"] == max(study.axes["steps"])
            # the first steps must not know how many there will be
            assert training["lr_scheduler_type"] == "constant_with_warmup"
            objective = recipe["stages"]["vtp_pretraining"]["objective"]
            momenta = ("teacher_momentum", "final_teacher_momentum")
            assert len({objective.get(name) for name in momenta}) == 1

    def test_widths_and_shares_of_the_data_are_axes(self):
        values = {"width": [64, 128], "data": [0.5, 1], "steps": [10], "objective": ["all"]}
        variants = Study.load("scaling", values=values).variants()
        assert [tuple(variant.values.values()) for variant in variants] == [
            ("all", width, share, 10) for width in (64, 128) for share in (0.5, 1)
        ]
        assert [variant.data_share for variant in variants] == [0.5, 1, 0.5, 1]
        widths = [
            variant.recipe.stages["vtp_pretraining"]["model"]["vision_hidden_size"]
            for variant in variants
        ]
        assert widths == [64, 64, 128, 128]
        assert len({variant.recipe_hash() for variant in variants}) == 4

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"widht": [64]}, "did you mean 'width'"),
            ({"objective": ["al"]}, "did you mean 'all'"),
            ({"width": ["wide"]}, "takes numbers, got 'wide'"),
            ({"data": [2]}, "takes shares of the data in .*, got 2"),
        ],
    )
    def test_wrong_values(self, values, said):
        with pytest.raises(ValueError, match=said):
            Study.load("scaling", values=values)

    def test_a_tuned_setting_is_part_of_recipe_and_name(self):
        study = Study.load("scaling")
        variant = study.variants()[0]
        tuned = variant.with_setting(study.tuning.key, 2.0)
        assert tuned.recipe.stages["latent_generator"]["objective"]["time_shift"] == 2.0
        assert tuned.name == f"{variant.name}-2.0" and tuned.values == variant.values
        assert tuned.recipe_hash() != variant.recipe_hash()


def test_an_unknown_study_is_an_error_that_lists_those_that_ship():
    for name in ("token", "base", "digits"):
        with pytest.raises(ValueError, match=f"one of {', '.join(NAMES)}, got '{name}'"):
            Study.load(name)


def test_a_recipes_hash_is_of_its_content():
    first, *others = Study.load("codebook").variants()
    text = json.dumps(first.recipe.to_dict(), sort_keys=True)
    assert first.recipe_hash() == hashlib.sha256(text.encode()).hexdigest()
    assert first.recipe_hash() == Study.load("codebook").variants()[0].recipe_hash()
    assert first.recipe_hash() not in [other.recipe_hash() for other in others]
