"""Samples of a TiTok pipeline follow from its generator, given codes, guidance and callback."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from titok_pipelines import LABELS, MASK, codes_of, make_quiet, seeded

from titok_hf import MaskGitScheduler
from titok_hf.pipelines.pipeline_titok import guidance_scale_at

NULL_LABEL = 10


@pytest.fixture
def partly_masked():
    codes = torch.randint(64, (4, 8), generator=seeded(0))
    codes[0, 2:5] = codes[1, :] = codes[2, 7] = MASK
    return codes


def test_images_are_the_decoded_codes(pipeline):
    output = pipeline(LABELS, generator=seeded(0), output_type="pt")

    assert output.codes.shape == (4, 8)
    assert output.codes.dtype == torch.int64
    assert output.codes.min() >= 0 and output.codes.max() < MASK
    expected = pipeline.tokenizer.decode_codes(output.codes).reconstruction.clamp(0, 1)
    assert torch.equal(output.images, expected)


def test_output_types_show_the_same_images(pipeline):
    kinds = ("pt", "np", "pil", "codes")
    tensor, array, images, codes = (
        pipeline(LABELS, generator=seeded(0), output_type=kind).images for kind in kinds
    )

    assert tensor.shape == (4, 3, 32, 32) and tensor.dtype == torch.float32
    assert array.shape == (4, 32, 32, 3) and array.dtype == np.float32
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, Image.Image) and image.size == (32, 32) for image in images)
    assert np.array_equal(
        np.stack([np.asarray(image) for image in images]), np.rint(array * 255).astype(np.uint8)
    )
    assert torch.equal(codes, codes_of(pipeline, LABELS, generator=seeded(0)))


def test_pil_images_are_the_default_and_a_tuple_comes_on_request(pipeline):
    (images,) = pipeline(LABELS, generator=seeded(0), return_dict=False)
    assert images == pipeline(LABELS, generator=seeded(0)).images
    assert isinstance(images[0], Image.Image)


@pytest.mark.parametrize("sampling", [{}, {"guidance_scale": 1.0}, {"num_inference_steps": 3}])
def test_images_from_one_generator_do_not_depend_on_the_size_of_the_batch(pipeline, sampling):
    together = pipeline(LABELS, generator=seeded(0), output_type="pt", **sampling)
    generator = seeded(0)
    alone = [pipeline(label, generator=generator, output_type="pt", **sampling) for label in LABELS]

    assert torch.equal(together.codes, torch.cat([output.codes for output in alone]))
    torch.testing.assert_close(together.images, torch.cat([output.images for output in alone]))
    assert len(together.codes.unique(dim=0)) == 4


def test_images_from_generators_of_their_own_do_not_depend_on_their_batch(pipeline):
    together = pipeline(LABELS, generator=[seeded(index) for index in range(4)], output_type="pt")

    for index, label in enumerate(LABELS):
        alone = pipeline(label, generator=[seeded(index)], output_type="pt")
        assert torch.equal(together.codes[index : index + 1], alone.codes)
        torch.testing.assert_close(together.images[index : index + 1], alone.images)


def test_generator_decides_alone(pipeline):
    state = torch.get_rng_state()
    first, again, other = (codes_of(pipeline, LABELS, generator=seeded(seed)) for seed in (1, 1, 2))

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_generator_the_global_one_decides(pipeline):
    torch.manual_seed(1)
    first, second = codes_of(pipeline, LABELS), codes_of(pipeline, LABELS)
    torch.manual_seed(1)

    assert torch.equal(codes_of(pipeline, LABELS), first)
    assert not torch.equal(first, second)


def test_zero_temperatures_leave_nothing_to_chance(titok, generator):
    scheduler = MaskGitScheduler(MASK, token_temperature=0, choice_temperature=0)
    pipeline = make_quiet(titok, generator, scheduler)
    assert torch.equal(codes_of(pipeline, LABELS, generator=seeded(1)), codes_of(pipeline, LABELS))


@settings(max_examples=25)
@given(
    steps=st.integers(1, 10),
    guidance_scale=st.floats(0, 20),
    guidance_schedule=st.sampled_from(["constant", "linear", "power-cosine"]),
    masked=st.lists(st.booleans(), min_size=8, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_sampling_only_ever_fills_tokens_in(
    pipeline, steps, guidance_scale, guidance_schedule, masked, seed
):
    given_codes = torch.randint(64, (2, 8), generator=seeded(seed))
    given_codes[0, masked] = MASK
    seen = [given_codes]

    def watch(pipeline, step, timestep, tensors):
        seen.append(tensors["codes"])

    pipeline(
        [2, 7],
        steps,
        guidance_scale,
        guidance_schedule,
        seeded(seed),
        codes=given_codes,
        output_type="codes",
        callback_on_step_end=watch,
    )
    assert len(seen) == steps + 1
    for before, after in itertools.pairwise(seen):
        assert torch.equal(after[before != MASK], before[before != MASK])
        left_before, left_after = ((codes == MASK).sum(-1) for codes in (before, after))
        assert (left_after < left_before)[left_before > 0].all()
    assert seen[-1].max() < MASK


def test_given_codes_are_completed(pipeline, partly_masked):
    before = partly_masked.clone()
    output = pipeline(LABELS, codes=partly_masked, generator=seeded(0), output_type="pt")

    fixed = before != MASK
    assert torch.equal(output.codes[fixed], before[fixed])
    assert output.codes.max() < MASK
    assert torch.equal(partly_masked, before)


def test_all_tokens_masked_is_generation_from_nothing(pipeline):
    codes = codes_of(pipeline, LABELS, codes=torch.full((4, 8), MASK), generator=seeded(0))
    assert torch.equal(codes, codes_of(pipeline, LABELS, generator=seeded(0)))


def test_complete_codes_stay_as_they_are(pipeline):
    codes = torch.randint(64, (4, 8))
    output = pipeline(LABELS, codes=codes, output_type="pt")

    assert torch.equal(output.codes, codes)
    assert torch.equal(
        output.images, pipeline.tokenizer.decode_codes(codes).reconstruction.clamp(0, 1)
    )


def test_given_codes_may_be_int32(pipeline, partly_masked):
    expected = codes_of(pipeline, LABELS, codes=partly_masked, generator=seeded(0))
    completed = codes_of(pipeline, LABELS, codes=partly_masked.int(), generator=seeded(0))

    assert completed.dtype == torch.int64
    assert torch.equal(completed, expected)


def test_given_codes_are_completed_evenly_over_the_steps(titok, generator):
    left = []
    pipeline = make_quiet(titok, generator, MaskGitScheduler(MASK, mask_schedule="linear"))
    codes = torch.tensor([[MASK] * 4 + [1] * 4, [MASK] * 8])
    pipeline(
        [3, 1],
        2,
        codes=codes,
        callback_on_step_end=lambda _, step, timestep, tensors: left.append(
            (tensors["codes"] == MASK).sum(-1).tolist()
        ),
    )
    assert left == [[2, 4], [0, 0]]


def test_each_label_is_repeated_in_place(pipeline):
    repeated = codes_of(pipeline, [3, 1], num_images_per_label=2, generator=seeded(0))
    assert torch.equal(repeated, codes_of(pipeline, [3, 3, 1, 1], generator=seeded(0)))


@pytest.mark.parametrize(
    ("guidance_schedule", "formula"),
    [
        ("constant", lambda scale, q: scale),
        ("linear", lambda scale, q: 1 + (scale - 1) * q),
        (
            "power-cosine",
            lambda scale, q: 1 + (scale - 1) * 0.5 * (1 - math.cos(math.pi * q * q * q)),
        ),
    ],
)
@given(steps=st.integers(1, 64), guidance_scale=st.floats(0, 20), data=st.data())
def test_guidance_schedules_follow_their_formulas(
    guidance_schedule, formula, steps, guidance_scale, data
):
    step = data.draw(st.integers(0, steps - 1))
    scale = guidance_scale_at(step, steps, guidance_scale, guidance_schedule)

    assert scale == pytest.approx(formula(guidance_scale, step / steps), abs=1e-9)
    assert guidance_scale_at(step, steps, 1.0, guidance_schedule) == 1
    assert guidance_scale_at(0, steps, guidance_scale, guidance_schedule) in (1, guidance_scale)


@pytest.mark.parametrize("guidance_schedule", ["constant", "linear", "power-cosine"])
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 5.5])
def test_guidance_moves_from_unconditional_to_conditional_logits(
    pipeline, guidance_schedule, guidance_scale
):
    codes, labels, generators = (
        torch.full((2, 8), MASK),
        torch.tensor([3, 1]),
        [seeded(0), seeded(1)],
    )
    scheduler = MaskGitScheduler(MASK)
    scheduler.set_timesteps(4)
    for step in range(4):
        scale = guidance_scale_at(step, 4, guidance_scale, guidance_schedule)
        with torch.no_grad():
            conditional = pipeline.transformer(codes, labels).logits
            unconditional = pipeline.transformer(codes, torch.full((2,), NULL_LABEL)).logits
        guided = (1 - scale) * unconditional + scale * conditional
        codes = scheduler.step(guided, step, codes, generator=generators).prev_sample

    sampled = codes_of(
        pipeline, [3, 1], 4, guidance_scale, guidance_schedule, generator=[seeded(0), seeded(1)]
    )
    assert torch.equal(sampled, codes)


def test_a_scale_of_one_never_asks_for_no_class(pipeline):
    asked = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, inputs: asked.append(inputs[1].tolist())
    )
    pipeline([3, 1], 4, guidance_scale=1.0)
    assert asked == [[3, 1]] * 4

    asked.clear()
    pipeline([3, 1], 4, guidance_scale=2.0, guidance_schedule="constant")
    assert asked == [[3, 1, NULL_LABEL, NULL_LABEL]] * 4


def test_defaults_of_a_call_are_those_of_the_pipeline(titok, generator):
    defaults = {
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "guidance_schedule": "power-cosine",
    }
    configured, plain = make_quiet(titok, generator, **defaults), make_quiet(titok, generator)
    expected = codes_of(plain, LABELS, generator=seeded(0), **defaults)

    assert torch.equal(codes_of(configured, LABELS, generator=seeded(0)), expected)
    assert not torch.equal(codes_of(plain, LABELS, generator=seeded(0)), expected)


def test_a_scale_of_zero_ignores_the_label(pipeline):
    def sample(label, guidance_scale):
        return codes_of(pipeline, label, 4, guidance_scale, "constant", generator=seeded(0))

    assert torch.equal(sample(3, 0.0), sample(8, 0.0))
    assert not torch.equal(sample(3, 5.5), sample(8, 5.5))


def test_callback_sees_every_step(pipeline):
    seen = []

    def watch(caller, step, timestep, tensors):
        assert caller is pipeline
        assert tensors.keys() == {"codes", "predicted_codes"}
        seen.append((step, int(timestep), tensors["codes"], tensors["predicted_codes"]))

    output = pipeline(
        LABELS, 4, generator=seeded(0), output_type="codes", callback_on_step_end=watch
    )

    assert [step for step, *_ in seen] == [timestep for _, timestep, *_ in seen] == [0, 1, 2, 3]
    for _, _, codes, predicted_codes in seen:
        kept = codes != MASK
        assert torch.equal(codes[kept], predicted_codes[kept])
        assert predicted_codes.max() < MASK
    assert torch.equal(seen[-1][2], output.codes)
    assert torch.equal(output.codes, codes_of(pipeline, LABELS, 4, generator=seeded(0)))


def test_callback_can_change_the_codes(pipeline):
    def put_a_five_first(pipeline, step, timestep, tensors):
        codes = tensors["codes"].clone()
        codes[:, 0] = 5
        return {"codes": codes}

    output = pipeline(
        LABELS, 4, generator=seeded(0), output_type="pt", callback_on_step_end=put_a_five_first
    )

    assert (output.codes[:, 0] == 5).all()
    assert output.codes.max() < MASK
    assert torch.equal(
        output.images, pipeline.tokenizer.decode_codes(output.codes).reconstruction.clamp(0, 1)
    )


def test_nothing_is_left_for_a_backward_pass(pipeline):
    assert not pipeline(LABELS, output_type="pt").images.requires_grad
