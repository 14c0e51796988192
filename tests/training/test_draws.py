"""Random numbers of a sample come with it."""

import pytest
import torch
from scipy import stats

from titok_hf.training.noise import standard_normal


def test_draws_become_standard_normal():
    draws = torch.arange(2**12) / 2**12
    torch.testing.assert_close(
        standard_normal(draws[1:]), torch.from_numpy(stats.norm.ppf(draws[1:].double())).float()
    )
    most = standard_normal(
        torch.tensor([0.0, 2.0**-24, 1 - 2.0**-24])
    )  # the ends of what can be drawn
    assert most.isfinite().all() and most[0] < most[1] < -5 and most[2] > 5
    noise = standard_normal(torch.rand(100_000))
    assert stats.kstest(noise.numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("stage", ["warmup", "single_stage", "decoder_finetuning"])
def test_draws_are_the_noise_of_the_posterior(make_objective, pixel_values, stage):
    objective = make_objective(stage, quantizer="kl").train()
    assert objective.num_draws == 8 * 6
    draws = torch.rand(8, objective.num_draws)
    seen = []
    objective.model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = objective(pixel_values, draws=draws).loss
    mean, logvar = objective.model.encoder(pixel_values).chunk(2, -1)
    noise = torch.from_numpy(stats.norm.ppf(draws.double())).float().view(8, 8, 6)
    torch.testing.assert_close(seen[0], mean + (logvar / 2).exp() * noise)
    assert torch.equal(loss, objective(pixel_values, draws=draws).loss)
    assert loss != objective(pixel_values, draws=1 - draws).loss
    with torch.no_grad():
        assert torch.equal(
            *(objective.eval()(pixel_values, draws=d).loss for d in (draws, 1 - draws))
        )


@pytest.mark.parametrize("stage", ["vqgan", "warmup", "single_stage", "classifier"])
def test_stages_without_chance_take_none(make_objective, stage):
    assert make_objective(stage).num_draws == 0


@pytest.mark.parametrize(
    ("stage", "quantizer"), [("warmup", "kl"), ("single_stage", "kl"), ("generator", "vq")]
)
def test_a_batch_is_the_mean_of_its_samples(
    make_objective, generator_config, digit_batch, stage, quantizer
):
    """The random numbers of a sample affect no other sample."""
    generator_config.hidden_dropout = generator_config.attention_dropout = (
        generator_config.unmasked_weight
    ) = 0.0
    objective = make_objective(stage, quantizer=quantizer).train()
    draws = torch.rand(8, objective.num_draws)
    inputs = digit_batch | {"draws": draws}
    if stage != "generator":
        del inputs["class_labels"]
    rows = [{name: tensor[i : i + 1] for name, tensor in inputs.items()} for i in range(8)]
    weights = torch.ones(8) if stage != "generator" else objective.batch_weights(rows)
    losses = torch.stack([objective(**row).loss for row in rows])
    torch.testing.assert_close(objective(**inputs).loss, (weights * losses).sum() / weights.sum())
