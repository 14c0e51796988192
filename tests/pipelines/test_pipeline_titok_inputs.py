"""Labels are ids or names, and calls and parts that do not fit are refused."""

import numpy as np
import pytest
import torch
from titok_pipelines import LABELS, MASK, changed_config, seeded

from titok_hf import MaskGitModel, MaskGitScheduler, TiTokModel, TiTokPipeline


@pytest.mark.parametrize(
    ("class_labels", "ids"),
    [
        (3, [3]),
        ("three", [3]),
        ([0, 9], [0, 9]),
        (["nine", 0, "four"], [9, 0, 4]),
        (("one", "one"), [1, 1]),
        (torch.tensor([2, 5]), [2, 5]),
        (torch.tensor(7), [7]),
        (np.array([2, 5]), [2, 5]),
        ([np.int64(6)], [6]),
        (np.int64(6), [6]),
    ],
)
def test_labels_are_ids_or_names(pipeline, class_labels, ids):
    found = pipeline.label_ids(class_labels)

    assert found == ids
    assert all(type(label) is int for label in found)
    assert len(pipeline(class_labels, 1, output_type="codes").codes) == len(ids)


@pytest.fixture
def imagenet_like(pipeline):
    names = ["goldfish, Carassius auratus", "crane", "crane, lifting machine", "maillot, tank suit"]
    pipeline.transformer.config.id2label = dict(enumerate(names))
    return pipeline


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("goldfish, Carassius auratus", 0),
        ("goldfish", 0),
        ("Carassius auratus", 0),
        ("lifting machine", 2),
        ("tank suit", 3),
        ("crane, lifting machine", 2),
        ("crane", 1),  # a whole name wins
        ("3", 3),
    ],
)
def test_a_name_is_a_whole_entry_or_one_of_its_parts(imagenet_like, name, label):
    assert imagenet_like.label_ids(name) == [label]


def test_a_name_of_several_classes_is_refused(imagenet_like):
    imagenet_like.transformer.config.id2label[1] = "crane, bird"
    with pytest.raises(
        ValueError, match=r"'crane' names the classes \[1, 2\]: pass one of these ids"
    ):
        imagenet_like.label_ids(["goldfish", "crane"])


@pytest.mark.parametrize("name", ["gold", "Goldfish", "goldfish,", ""])
def test_an_unknown_name_is_refused(imagenet_like, name):
    with pytest.raises(
        ValueError,
        match=rf"must be ids in \[0, 4\) or names such as 'goldfish, .*; '{name}' is not among them",
    ):
        imagenet_like.label_ids(name)


@pytest.mark.parametrize(
    ("class_labels", "error", "sentence"),
    [
        (10, ValueError, r"`class_labels` must be in \[0, 10\), got 10"),
        ([3, -1], ValueError, r"`class_labels` must be in \[0, 10\), got -1"),
        (torch.tensor([11]), ValueError, r"`class_labels` must be in \[0, 10\), got 11"),
        ("eleven", ValueError, "names such as 'seven', .*; 'eleven' is not among them"),
        ([], ValueError, "`class_labels` must name at least one class, got none"),
        (True, TypeError, "`class_labels` must be integers or class names, got True"),
        ([1, False], TypeError, "`class_labels` must be integers or class names, got False"),
        (
            torch.tensor([True]),
            TypeError,
            "`class_labels` must be integers or class names, got True",
        ),
        ([1.0], TypeError, "`class_labels` must be integers or class names, got 1.0"),
        (torch.tensor([1.0]), TypeError, "`class_labels` must be integers or class names, got 1.0"),
        (None, TypeError, "`class_labels` must be integers or class names, got None"),
        (1.0, TypeError, "`class_labels` must be integers or class names, got 1.0"),
        ([None], TypeError, "`class_labels` must be integers or class names, got None"),
    ],
)
def test_labels_are_checked(pipeline, class_labels, error, sentence):
    with pytest.raises(error, match=sentence):
        pipeline(class_labels)


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        (
            {"num_inference_steps": 0},
            ValueError,
            "`num_inference_steps` must be an integer of at least 1, got 0",
        ),
        (
            {"guidance_schedule": "cosine"},
            ValueError,
            "must be one of constant, linear, power-cosine, got 'cosine'",
        ),
        (
            {"output_type": "latent"},
            ValueError,
            "`output_type` must be 'pil', 'np', 'pt' or 'codes', got 'latent'",
        ),
        (
            {"num_images_per_label": 0},
            ValueError,
            "`num_images_per_label` must be an integer of at least 1, got 0",
        ),
        (
            {"generator": []},
            ValueError,
            "`generator` must be one, or one for each of 4 images, got 0",
        ),
        ({"generator": [seeded(0)] * 3}, ValueError, "one for each of 4 images, got 3"),
        (
            {"codes": torch.full((4, 8), 65)},
            ValueError,
            r"`codes` must be in \[0, 65\), got values from 65 to 65",
        ),
        (
            {"codes": torch.full((4, 8), -1)},
            ValueError,
            r"`codes` must be in \[0, 65\), got values from -1 to -1",
        ),
        (
            {"codes": torch.full((3, 8), MASK)},
            ValueError,
            r"`codes` must have shape \(4, 8\), got \(3, 8\)",
        ),
        (
            {"codes": torch.full((4, 9), MASK)},
            ValueError,
            r"`codes` must have shape \(4, 8\), got \(4, 9\)",
        ),
        (
            {"codes": torch.full((4, 8), 1.0)},
            TypeError,
            "`codes` must be an int64 tensor, got torch.float32",
        ),
    ],
)
def test_calls_are_checked(pipeline, fields, error, sentence):
    with pytest.raises(error, match=sentence):
        pipeline(LABELS, **fields)


@pytest.mark.parametrize(("step", "code", "limit"), [(0, 65, 65), (3, 64, 64)])
def test_codes_of_a_callback_are_checked(pipeline, step, code, limit):
    """A mask is welcome but after the last step."""

    def put(pipeline, now, timestep, tensors):
        return {"codes": torch.full((4, 8), code)} if now == step else None

    with pytest.raises(ValueError, match=rf"`codes` must be in \[0, {limit}\), got .* {code}"):
        pipeline(LABELS, 4, callback_on_step_end=put)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"codebook_size": 32}, "must have the same `codebook_size`, got 64 and 32"),
        ({"num_tokens": 9}, "must have the same `num_tokens`, got 8 and 9"),
    ],
)
def test_generator_must_fit_the_tokenizer(titok, generator_config, fields, sentence):
    model = MaskGitModel(changed_config(generator_config, **fields))
    with pytest.raises(ValueError, match=sentence):
        TiTokPipeline(titok, model, MaskGitScheduler(model.config.mask_token_id))


def test_scheduler_must_fit_the_generator(titok, generator):
    with pytest.raises(
        ValueError, match="The scheduler's `mask_token_id` must be the generator's, 64, got 63"
    ):
        TiTokPipeline(titok, generator, MaskGitScheduler(63))


@pytest.mark.parametrize(
    "fields", [{"head": "proxy_codes"}, {"head": "vqgan_decoder", "quantizer": "kl"}]
)
def test_tokenizer_must_turn_codes_into_pixels(make_titok_config, generator, fields):
    with pytest.raises(ValueError, match=r"(?i)tokenizer"):
        TiTokPipeline(TiTokModel(make_titok_config(**fields)), generator, MaskGitScheduler(MASK))


def test_not_a_number_never_becomes_an_image(pipeline):
    pipeline.tokenizer.pixel_decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="`pixel_values` must be finite, got NaN"):
        pipeline(LABELS)


def test_unknown_guidance_schedule_is_refused_at_once(titok, generator):
    with pytest.raises(ValueError, match="`guidance_schedule` must be one of"):
        TiTokPipeline(titok, generator, MaskGitScheduler(MASK), guidance_schedule="cosine")
