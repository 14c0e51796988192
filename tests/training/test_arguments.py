"""Arguments of the trainer that cannot work are refused in one sentence."""

import numpy as np
import pytest

from titok_hf.training import Recipe, TiTokTrainingArguments


@pytest.mark.parametrize(
    ("name", "number", "least"),
    [
        ("per_device_train_batch_size", 0, 1),
        ("per_device_eval_batch_size", -1, 1),
        ("gradient_accumulation_steps", 0, 1),
        ("shuffle_buffer", 0, 1),
        ("preview_steps", -1, 0),
        ("dataloader_num_workers", -1, 0),
    ],
)
def test_numbers_have_a_least(tmp_path, name, number, least):
    with pytest.raises(ValueError, match=f"`{name}` must be at least {least}, got {number}"):
        TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: number})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_steps", "many", "an integer"),
        ("max_steps", 2.5, "an integer"),
        ("max_grad_norm", "abc", "a number"),
        ("learning_rate", True, "a number"),
        ("bf16", "yes", "true or false"),
        ("eval_steps", "often", "a number or null"),
        ("snapshot_steps", 5, "a list of numbers of steps"),
    ],
)
def test_values_of_another_type_are_named(tmp_path, name, value, expected):
    with pytest.raises(ValueError, match=f"`{name}` must be {expected}.*, got {value!r}"):
        TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_numbers_of_numpy_are_numbers(tmp_path):
    numbers = {"max_steps": np.int64(3), "learning_rate": np.float32(0.5), "max_grad_norm": 1}
    args = TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **numbers)
    assert {name: getattr(args, name) for name in numbers} == numbers


def test_training_lasts(tmp_path):
    with pytest.raises(ValueError, match="`max_steps` or `num_train_epochs` must be above 0, got"):
        TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, num_train_epochs=0)


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
