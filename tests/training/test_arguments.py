"""Arguments of the trainer that cannot work are refused in one sentence."""

import pytest

from titok_hf.training import Recipe, TiTokTrainingArguments


@pytest.mark.parametrize(
    "name",
    ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"],
)
@pytest.mark.parametrize("number", [0, -1, "many"])
def test_numbers_of_images_are_positive(tmp_path, name, number):
    with pytest.raises(
        ValueError, match=f"`{name}` must be an integer of at least 1, got {number!r}"
    ):
        TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: number})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neftune_noise_alpha", 5.0),
        ("label_smoothing_factor", 0.1),
        ("train_sampling_strategy", "group_by_length"),
        ("auto_find_batch_size", True),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be left at .*, because .*; got {value!r}"):
        TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("seed", 3, "--seed"),
        ("output_dir", "elsewhere", "--output-dir"),
        ("resume_from_checkpoint", "checkpoint-5", "by itself"),
    ],
)
def test_what_a_run_sets_itself_is_refused_in_a_recipe(key, value, instead):
    with pytest.raises(
        ValueError, match=rf"`stages.vqgan.training.{key}` cannot be set in a recipe: .*{instead}"
    ):
        Recipe.load("digits", [f"stages.vqgan.training.{key}={value}"])
