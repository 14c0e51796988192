import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maskgit_schedules import (
    FORMULAS,
    MASK,
    SCHEDULES,
    count_masked,
    frequencies,
    schedules,
    seeded,
    settings_of_schedulers,
    shares,
)

from titok_hf import MaskGitScheduler
from titok_hf.pipelines.scheduling_maskgit import gumbel, mask_ratio


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_everything_is_masked_at_first_and_nothing_at_last(schedule, progress, share):
    assert mask_ratio(progress, schedule).item() == share
    assert mask_ratio(torch.full((40,), progress), schedule).tolist() == [share] * 40


@given(schedule=schedules, progress=st.lists(shares, max_size=40))
def test_mask_ratios_are_falling_shares(schedule, progress):
    ratios = mask_ratio(torch.tensor([0.0, *sorted(progress), 1.0]), schedule)

    assert ratios.dtype == torch.float32
    assert ratios.min() >= 0 and ratios.max() <= 1
    assert (ratios.diff() <= 1e-6).all()


@given(schedule=schedules, progress=shares)
def test_mask_ratios_follow_their_formula(schedule, progress):
    assert mask_ratio(progress, schedule).item() == pytest.approx(
        FORMULAS[schedule](progress), abs=1e-6
    )


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_mask_ratios_keep_the_shape_and_become_float32(shape):
    ratios = mask_ratio(torch.rand(shape, dtype=torch.float64), "arccos")
    assert (ratios.shape, ratios.dtype) == (shape, torch.float32)


@pytest.mark.parametrize(
    "call", [lambda name: mask_ratio(0.5, name), lambda name: MaskGitScheduler(MASK, name)]
)
def test_unknown_mask_schedule_is_refused(call):
    with pytest.raises(
        ValueError, match="`mask_schedule` must be one of arccos, cosine, linear, root, got 'cubic'"
    ):
        call("cubic")


@pytest.mark.parametrize("field", ["token_temperature", "choice_temperature"])
def test_negative_temperatures_are_refused(field):
    with pytest.raises(ValueError, match=r"Temperatures must not be negative, got .*-0\.5"):
        MaskGitScheduler(MASK, **{field: -0.5})


def test_unknown_confidence_is_refused():
    with pytest.raises(
        ValueError, match="`confidence` must be 'log_prob' or 'logit', got 'entropy'"
    ):
        MaskGitScheduler(MASK, confidence="entropy")


def test_timesteps_count_the_steps():
    scheduler = MaskGitScheduler(MASK)
    scheduler.set_timesteps(5)

    assert scheduler.timesteps.tolist() == [0, 1, 2, 3, 4]
    assert scheduler.num_inference_steps == 5


@pytest.mark.parametrize("steps", [0, -3, 2.5])
def test_no_steps_are_refused(steps):
    with pytest.raises(
        ValueError, match=f"`num_inference_steps` must be an integer of at least 1, got {steps}"
    ):
        MaskGitScheduler(MASK).set_timesteps(steps)


@pytest.mark.parametrize("timestep", [-1, 4])
def test_timesteps_outside_the_plan_are_refused(timestep):
    scheduler = MaskGitScheduler(MASK)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=rf"`timestep` must be in \[0, 4\), got {timestep}"):
        scheduler.step(torch.zeros(1, 8, 64), timestep, torch.full((1, 8), MASK))


@pytest.mark.parametrize("timestep", [0, 3])
@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("one_an_image", [True, False])
@pytest.mark.parametrize("confidence", ["log_prob", "logit"])
def test_step_reads_no_value(timestep, as_tensor, one_an_image, confidence):
    """A tensor of the meta device has no value that could be read; `timesteps` are never there."""
    scheduler = MaskGitScheduler(
        MASK,
        confidence=confidence,
        anneal_token_temperature=True,
        softmax_temperature_annealing=True,
    )
    scheduler.set_timesteps(4, device="meta")
    timestep = scheduler.timesteps[timestep] if as_tensor else timestep
    logits, sample = torch.empty(2, 8, 64, device="meta"), torch.full((2, 8), MASK, device="meta")
    generator = [torch.Generator(), torch.Generator()] if one_an_image else None
    for masked in (None, torch.full((2,), 8, device="meta")):
        output = scheduler.step(logits, timestep, sample, masked, generator)
        for codes in (output.prev_sample, output.pred_original_sample):
            assert (codes.shape, codes.dtype, codes.device.type) == ((2, 8), torch.int64, "meta")


def test_adding_noise_reads_no_value():
    codes, progress = torch.zeros(2, 8, dtype=torch.int64).to("meta"), torch.rand(2).to("meta")
    assert MaskGitScheduler(MASK).add_noise(codes, progress).device.type == "meta"


def test_step_needs_timesteps():
    with pytest.raises(ValueError, match="Call `set_timesteps` before `step`"):
        MaskGitScheduler(MASK).step(torch.zeros(1, 8, 64), 0, torch.full((1, 8), MASK))


@pytest.mark.parametrize("shape", [(1, 7, 64), (2, 8, 64), (8, 64)])
def test_step_needs_logits_of_every_token(shape):
    scheduler = MaskGitScheduler(MASK)
    scheduler.set_timesteps(2)
    with pytest.raises(
        ValueError,
        match=r"`logits` must be \(B, N, codebook_size\) for a sample .* of \(1, 8\), got",
    ):
        scheduler.step(torch.zeros(shape), 0, torch.full((1, 8), MASK))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_step_needs_one_generator_or_one_for_each_image(number):
    scheduler = MaskGitScheduler(MASK)
    scheduler.set_timesteps(2)
    generators = [seeded(index) for index in range(number)]
    with pytest.raises(
        ValueError, match=f"`generator` must be one, or one for each of 2 images, got {number}"
    ):
        scheduler.step(torch.zeros(2, 8, 64), 0, torch.full((2, 8), MASK), generator=generators)


@given(
    fields=settings_of_schedulers,
    steps=st.integers(1, 20),
    masked=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 2**32),
)
def test_sampling_only_ever_fills_tokens_in(fields, steps, masked, scale, seed):
    generator, masked = seeded(seed), torch.tensor(masked)
    given_codes = torch.randint(64, masked.shape, generator=generator)
    codes = torch.where(masked, MASK, given_codes)
    num_masked_at_first = count_masked(codes)
    scheduler = MaskGitScheduler(MASK, **fields)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        logits = scale * torch.randn(*codes.shape, 64, generator=generator)
        output = scheduler.step(logits, timestep, codes, num_masked_at_first, generator)
        before, after = count_masked(codes), count_masked(output.prev_sample)
        assert (after < before)[before > 0].all()
        assert torch.equal(output.prev_sample[codes != MASK], codes[codes != MASK])
        assert torch.equal(output.pred_original_sample[codes != MASK], codes[codes != MASK])
        kept = output.prev_sample != MASK
        assert torch.equal(output.prev_sample[kept], output.pred_original_sample[kept])
        assert output.pred_original_sample.min() >= 0 and output.pred_original_sample.max() < MASK
        codes = output.prev_sample

    assert codes.dtype == torch.int64
    assert count_masked(codes).sum() == 0
    assert torch.equal(codes[~masked], given_codes[~masked])


@given(
    schedule=schedules,
    steps=st.integers(1, 20),
    num_tokens=st.integers(1, 64),
    share_masked=st.floats(0, 1),
)
def test_number_of_masked_tokens_follows_the_schedule(schedule, steps, num_tokens, share_masked):
    at_first = round(share_masked * num_tokens)
    codes = torch.where(torch.arange(num_tokens) < at_first, MASK, 0)[None]
    scheduler = MaskGitScheduler(MASK, mask_schedule=schedule)
    scheduler.set_timesteps(steps)
    for timestep in range(steps):
        before = count_masked(codes).item()
        codes = scheduler.step(
            torch.zeros(1, num_tokens, 64),
            timestep,
            codes,
            torch.tensor([at_first]),
            seeded(timestep),
        ).prev_sample
        planned = at_first * FORMULAS[schedule]((timestep + 1) / steps)
        expected = {
            max(0, min(max(1, math.floor(planned + error)), before - 1)) for error in (-1e-4, 1e-4)
        }
        if timestep == steps - 1:
            expected = {0}
        assert count_masked(codes).item() in expected


def test_every_token_is_taken_to_be_masked_at_first_unless_told_otherwise():
    scheduler, codes = MaskGitScheduler(MASK, mask_schedule="linear"), torch.full((1, 8), MASK)
    codes[0, :4] = 3
    scheduler.set_timesteps(4)

    def masked_after_first_step(**kwargs):
        return count_masked(
            scheduler.step(
                torch.zeros(1, 8, 64), 0, codes, generator=seeded(0), **kwargs
            ).prev_sample
        )

    assert masked_after_first_step() == 3
    assert masked_after_first_step(num_masked_at_first=torch.tensor([8])) == 3
    assert masked_after_first_step(num_masked_at_first=torch.tensor([3])) == 2


@pytest.mark.parametrize("confidence", ["log_prob", "logit"])
def test_without_temperature_the_likeliest_codes_of_the_surest_tokens_are_kept(confidence):
    scheduler = MaskGitScheduler(
        MASK,
        mask_schedule="linear",
        token_temperature=0,
        choice_temperature=0,
        confidence=confidence,
    )
    scheduler.set_timesteps(2)
    logits = torch.randn(3, 12, 64) * torch.rand(3, 12, 1) * 5 + torch.randn(3, 12, 1) * 5
    output = scheduler.step(logits, 0, torch.full((3, 12), MASK))

    highest, likeliest = logits.max(-1)
    sureness = highest - logits.logsumexp(-1) if confidence == "log_prob" else highest
    assert torch.equal(output.pred_original_sample, likeliest)
    surest = sureness.argsort(-1, descending=True)[:, :6]
    assert torch.equal(
        (output.prev_sample != MASK).nonzero()[:, 1].view(3, 6), surest.sort(-1).values
    )


@pytest.mark.parametrize(
    "fields", [{"token_temperature": 0, "choice_temperature": 0}, {"token_temperature": 1.0}]
)
def test_noise_comes_from_the_generator_alone(fields):
    scheduler = MaskGitScheduler(MASK, **fields)
    scheduler.set_timesteps(3)
    logits, codes, state = torch.randn(2, 12, 64), torch.full((2, 12), MASK), torch.get_rng_state()
    first, again, other = (
        scheduler.step(logits, 0, codes, generator=seeded(seed)) for seed in (1, 1, 2)
    )

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.prev_sample, again.prev_sample)
    is_deterministic = torch.equal(first.prev_sample, other.prev_sample)
    assert is_deterministic == (fields["token_temperature"] == 0)


def test_each_image_depends_on_its_own_generator_alone():
    scheduler = MaskGitScheduler(MASK)
    scheduler.set_timesteps(3)
    logits, codes = torch.randn(3, 12, 64), torch.full((3, 12), MASK)
    together = scheduler.step(
        logits, 0, codes, generator=[seeded(index) for index in range(3)]
    ).prev_sample

    for index in range(3):
        row = slice(index, index + 1)
        alone = scheduler.step(logits[row], 0, codes[row], generator=[seeded(index)]).prev_sample
        assert torch.equal(together[row], alone)


@pytest.mark.parametrize("share", [1e-4, 0.1, 0.5, 0.9, 1 - 1e-4])
def test_noise_is_gumbel_noise_to_its_tails(share):
    noise = gumbel((10, 100_000), seeded(0), torch.device("cpu"))

    below = (noise < -math.log(-math.log(share))).float().mean().item()
    assert below == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 1e6))
    assert noise.isfinite().all()


@pytest.mark.parametrize("token_temperature", [0.5, 1.0, 2.0])
def test_codes_are_drawn_from_the_softmax_at_the_token_temperature(token_temperature):
    scheduler = MaskGitScheduler(mask_token_id=5, token_temperature=token_temperature)
    scheduler.set_timesteps(1)
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    codes = scheduler.step(
        logits.expand(1, 40_000, 5), 0, torch.full((1, 40_000), 5), generator=seeded(0)
    )[0]

    torch.testing.assert_close(
        frequencies(codes, 5), (logits / token_temperature).softmax(-1), atol=0.01, rtol=0
    )


@pytest.mark.parametrize(("timestep", "temperature"), [(0, 0.75), (1, 0.5), (3, 0.0)])
def test_annealed_token_temperature_fades_linearly_to_zero(timestep, temperature):
    scheduler = MaskGitScheduler(mask_token_id=5, anneal_token_temperature=True)
    scheduler.set_timesteps(4)
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    output = scheduler.step(
        logits.expand(1, 40_000, 5), timestep, torch.full((1, 40_000), 5), generator=seeded(0)
    )

    expected = (
        (logits / temperature).softmax(-1)
        if temperature
        else torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    )
    torch.testing.assert_close(
        frequencies(output.pred_original_sample, 5), expected, atol=0.01, rtol=0
    )


@pytest.mark.parametrize(("timestep", "divisor"), [(0, 1.1), (3, 0.5)])
def test_softmax_temperature_annealing_sharpens_the_logits(timestep, divisor):
    scheduler = MaskGitScheduler(mask_token_id=5, softmax_temperature_annealing=True)
    scheduler.set_timesteps(4)
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    output = scheduler.step(
        logits.expand(1, 40_000, 5), timestep, torch.full((1, 40_000), 5), generator=seeded(0)
    )

    expected = (logits / divisor).softmax(-1)
    torch.testing.assert_close(
        frequencies(output.pred_original_sample, 5), expected, atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    ("choice_temperature", "timestep"), [(4.5, 0), (4.5, 2), (1.0, 1), (100.0, 0)]
)
def test_choice_temperature_makes_the_order_random_and_fades_linearly(choice_temperature, timestep):
    scheduler = MaskGitScheduler(
        5, token_temperature=0, choice_temperature=choice_temperature, confidence="logit"
    )
    scheduler.set_timesteps(4)
    logits = torch.tensor([[3.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]).expand(
        40_000, 2, 5
    )
    output = scheduler.step(logits, timestep, torch.full((40_000, 2), 5), generator=seeded(0))
    first_is_kept = (output.prev_sample[:, 0] != 5).float()

    fade = 1 - (timestep + 1) / 4
    expected = 1 / (1 + math.exp(-(3 - 1) / (choice_temperature * fade)))
    assert ((output.prev_sample == 5).sum(-1) == 1).all()
    assert first_is_kept.mean().item() == pytest.approx(expected, abs=0.01)


def test_step_returns_a_tuple_on_request():
    scheduler, logits, codes = (
        MaskGitScheduler(MASK),
        torch.randn(2, 12, 64),
        torch.full((2, 12), MASK),
    )
    scheduler.set_timesteps(3)
    for timestep in (0, 2):
        expected = scheduler.step(logits, timestep, codes, generator=seeded(0)).prev_sample
        output = scheduler.step(logits, timestep, codes, generator=seeded(0), return_dict=False)
        assert isinstance(output, tuple)
        assert torch.equal(output[0], expected)


def test_low_precision_logits_are_sampled_in_float32():
    scheduler, codes = MaskGitScheduler(MASK, choice_temperature=0), torch.full((2, 500), MASK)
    scheduler.set_timesteps(3)
    logits = torch.randn(2, 500, 64).bfloat16()
    expected = scheduler.step(logits.float(), 0, codes, generator=seeded(0)).prev_sample

    assert torch.equal(scheduler.step(logits, 0, codes, generator=seeded(0)).prev_sample, expected)


@given(
    schedule=schedules,
    progress=st.lists(shares, min_size=1, max_size=5),
    num_tokens=st.integers(1, 64),
)
def test_noise_masks_the_share_of_the_schedule_and_at_least_one_token(
    schedule, progress, num_tokens
):
    progress = torch.tensor(progress)
    codes = torch.randint(64, (len(progress), num_tokens))
    noisy = MaskGitScheduler(MASK, mask_schedule=schedule).add_noise(codes, progress, seeded(0))

    expected = [
        max(1, round(ratio * num_tokens)) for ratio in mask_ratio(progress, schedule).tolist()
    ]
    assert count_masked(noisy).tolist() == expected
    assert torch.equal(noisy[noisy != MASK], codes[noisy != MASK])


def test_noise_masks_every_position_alike():
    noisy = MaskGitScheduler(MASK, mask_schedule="linear").add_noise(
        torch.zeros(8000, 8, dtype=torch.int64), torch.full((8000,), 0.75), seeded(0)
    )
    torch.testing.assert_close(
        (noisy == MASK).float().mean(0), torch.full((8,), 0.25), atol=0.02, rtol=0
    )


def test_noise_of_each_image_depends_on_its_own_generator_alone():
    scheduler, codes, progress = (
        MaskGitScheduler(MASK),
        torch.randint(64, (3, 12)),
        torch.tensor([0.2, 0.5, 0.8]),
    )
    together = scheduler.add_noise(codes, progress, tuple(map(seeded, range(3))))

    for index in range(3):
        row = slice(index, index + 1)
        assert torch.equal(
            together[row], scheduler.add_noise(codes[row], progress[row], [seeded(index)])
        )


@given(schedule=schedules, progress=shares, num_tokens=st.integers(1, 300))
def test_training_masks_the_rounded_share_and_at_least_one_token(schedule, progress, num_tokens):
    scheduler = MaskGitScheduler(MASK, mask_schedule=schedule)
    count = scheduler.num_masked(torch.tensor([progress]), num_tokens).item()
    expected = FORMULAS[schedule](progress) * num_tokens
    assert count == int(count) and abs(count - max(1, expected)) <= 0.5 + 1e-4
    assert 1 <= count <= num_tokens


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_with_the_lowest_given_noise_are_masked(schedule):
    scheduler = MaskGitScheduler(MASK, mask_schedule=schedule)
    codes, progress, noise = torch.randint(64, (50, 12)), torch.rand(50), torch.rand(50, 12)
    noisy = scheduler.add_noise(codes, progress, noise=noise)
    for row, ratio, order in zip(
        range(50), mask_ratio(progress, schedule).tolist(), noise.argsort(-1), strict=True
    ):
        count = max(1, round(ratio * 12))
        assert (noisy[row, order[:count]] == MASK).all()
        assert torch.equal(noisy[row, order[count:]], codes[row, order[count:]])


def test_given_noise_takes_nothing_from_the_global_generator():
    state = torch.get_rng_state()
    MaskGitScheduler(MASK).add_noise(
        torch.zeros(2, 4).long(), torch.full((2,), 0.5), noise=torch.ones(2, 4).cumsum(1)
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_leaves_its_input_and_the_global_generator_alone():
    scheduler, codes, state = (
        MaskGitScheduler(MASK),
        torch.randint(64, (3, 12)),
        torch.get_rng_state(),
    )
    before, progress = codes.clone(), torch.full((3,), 0.5)
    first, again, other = (scheduler.add_noise(codes, progress, seeded(seed)) for seed in (1, 1, 2))

    assert torch.equal(codes, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_folder_keeps_every_setting(tmp_path):
    fields = {
        "mask_token_id": 7,
        "mask_schedule": "root",
        "token_temperature": 0.5,
        "choice_temperature": 9.5,
        "anneal_token_temperature": True,
        "confidence": "logit",
        "softmax_temperature_annealing": True,
    }
    MaskGitScheduler(**fields).save_pretrained(tmp_path)
    loaded = MaskGitScheduler.from_pretrained(tmp_path)

    assert {name: loaded.config[name] for name in fields} == fields
