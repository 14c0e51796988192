"""Objectives of all stages train, check, average and revive what belongs to them."""

import copy

import pytest
import torch

from titok_hf.training import ReconstructionObjective

STAGES = (
    ("vqgan", "vq"),
    ("classifier", "vq"),
    ("warmup", "vq"),
    ("warmup", "kl"),
    ("decoder_finetuning", "vq"),
    ("decoder_finetuning", "kl"),
    ("single_stage", "vq"),
    ("single_stage", "kl"),
    ("generator", "vq"),
)


def call(objective, batch, stage, step=0):
    """The objective on what its stage takes of a batch."""
    inputs = (
        batch if stage in ("classifier", "generator") else {"pixel_values": batch["pixel_values"]}
    )
    return objective(**inputs, step=step)


@pytest.mark.parametrize(("stage", "quantizer"), STAGES)
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one(
    make_objective, digit_batch, stage, quantizer
):
    objective = make_objective(stage, quantizer=quantizer, ema_decay=0.9).train()
    call(objective, digit_batch, stage).loss.backward()
    trained = {
        id(p)
        for _, network in objective.networks()
        for p in network.parameters()
        if p.requires_grad
    }
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
    assert (
        sum(float(p.grad.abs().sum()) > 0 for p in objective.parameters() if p.grad is not None)
        > 10
    )


@pytest.mark.parametrize("quantizer", ["vq", "kl"])
@pytest.mark.parametrize("stage", ["warmup", "single_stage"])
def test_training_samples_the_posterior_of_continuous_tokens(
    make_objective, pixel_values, stage, quantizer
):
    objective = make_objective(stage, quantizer=quantizer)
    for training in (True, False):
        objective.train(training)
        losses = {objective(pixel_values).loss.item() for _ in range(3)}
        assert (len(losses) == 1) == (quantizer == "vq" or not training)


def test_what_is_trained_on_is_not_what_was_measured(titok):
    titok.provenance = {
        "base_model": ["lab/titok"],
        "results": [{"metric": "rFID", "value": 2.21}],
    }
    objective = ReconstructionObjective(titok, ema_decay=0.9)
    assert objective.result.provenance == titok.provenance == {"base_model": ["lab/titok"]}


class TestBatches:
    """Values are looked at here, before a batch goes to the device."""

    @pytest.mark.parametrize(
        ("stage", "fields", "sentence"),
        [
            (
                "warmup",
                {
                    "pixel_values": torch.full((2, 3, 32, 32), 2.0).index_fill(
                        1, torch.tensor(1), -1.5
                    )
                },
                r"`pixel_values` must be in \[0, 1\], got values from -1.5 to 2; the image processor "
                "rescales and does not normalize",
            ),
            (
                "vqgan",
                {"pixel_values": torch.linspace(0, 255, 6144).flip(0).view(2, 3, 32, 32)},
                r"`pixel_values` must be in \[0, 1\], got values from 127.5 to 255",
            ),
            (
                "single_stage",
                {"pixel_values": torch.full((2, 3, 32, 32), torch.nan)},
                r"`pixel_values` must be in \[0, 1\], got values from nan",
            ),
            (
                "generator",
                {"codes": torch.tensor([[0] * 8, [64] * 8])},
                r"`codes` must be in \[0, 64\), got values from 0 to 64",
            ),
            (
                "generator",
                {"codes": torch.full((2, 8), -1)},
                r"`codes` must be in \[0, 64\), got values from -1 to -1",
            ),
            (
                "generator",
                {"class_labels": torch.tensor([0, 1, 11])},
                r"`class_labels` must be in \[0, 11\), got values from 0 to 11",
            ),
            (
                "generator",
                {"class_labels": torch.tensor([-1, 1, 2])},
                r"`class_labels` must be in \[0, 11\), got values from -1 to 2",
            ),
            (
                "classifier",
                {"class_labels": torch.tensor([3, 10])},
                r"`class_labels` must be in \[0, 10\), got values from 3 to 10",
            ),
        ],
    )
    def test_bad_values_are_refused(self, make_objective, stage, fields, sentence):
        with pytest.raises(ValueError, match=sentence):
            make_objective(stage).check_batch(fields)

    def test_images_may_overshoot_a_little(self, make_objective, pixel_values):
        make_objective("warmup").check_batch({"pixel_values": 1.18 * pixel_values - 0.09})

    def test_ends_of_the_range_pass(self, make_objective):
        make_objective("generator").check_batch(
            {"codes": torch.tensor([[0, 63]]), "class_labels": torch.tensor([0, 9, 10])}
        )


class TestMovingAverage:
    def test_it_follows_the_formula(self, make_objective, digit_batch):
        """The weights after the first step, then `decay * average + (1 - decay) * weights`."""
        objective = make_objective("warmup", ema_decay=0.8).train()
        optimizer = torch.optim.SGD(objective.model.parameters(), lr=0.1)
        expected = None
        for step in range(1, 5):
            optimizer.zero_grad()
            objective(digit_batch["pixel_values"]).loss.backward()
            optimizer.step()
            objective.after_optimizer_step(step)
            weights = {
                name: tensor.detach().clone()
                for name, tensor in objective.model.state_dict().items()
            }
            if expected is None:
                expected = weights
            expected = {name: 0.8 * expected[name] + 0.2 * weights[name] for name in weights}
        assert objective.result is not objective.model
        for name, tensor in objective.result.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], msg=name)
        assert not torch.equal(
            objective.result.head.proj_out.weight, objective.model.head.proj_out.weight
        )

    def test_frozen_weights_stay_bit_equal(self, make_objective, pixel_values):
        objective = make_objective("decoder_finetuning", ema_decay=0.7).train()
        before = copy.deepcopy(objective.model.encoder.state_dict())
        trained = [
            parameter for parameter in objective.model.parameters() if parameter.requires_grad
        ]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for step in range(1, 4):
            objective(pixel_values).loss.backward()
            optimizer.step()
            objective.after_optimizer_step(step)
        for name, tensor in objective.result.encoder.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_it_gets_no_gradient_and_is_in_the_state(self, make_objective, pixel_values):
        objective = make_objective("warmup", ema_decay=0.8).train()
        objective(pixel_values).loss.backward()
        assert not any(parameter.requires_grad for parameter in objective.ema.parameters())
        state = objective.state_dict()
        assert {f"ema.module.{name}" for name in objective.model.state_dict()} <= state.keys()
        assert "ema.n_averaged" in state

    @pytest.mark.parametrize("ema_decay", [0.0, 0.9])
    def test_the_result_is_in_evaluation_mode(self, make_objective, ema_decay):
        objective = make_objective("warmup", ema_decay=ema_decay).train()
        assert (objective.result is objective.model) == (ema_decay == 0)
        assert not any(module.training for module in objective.result.modules())


class TestCodebook:
    @pytest.mark.parametrize("stage", ["vqgan", "warmup", "single_stage"])
    def test_stages_that_train_a_codebook_watch_it(self, make_objective, pixel_values, stage):
        objective = make_objective(stage).train()
        codes = torch.cat(
            [objective.model.encode(batch).codes for batch in (pixel_values, 1 - pixel_values)]
        )
        for batch in (pixel_values, 1 - pixel_values):
            objective(batch)
        objective.after_optimizer_step(1)
        revival, statistics = objective.codebook_revival, objective.statistics()
        shares = torch.bincount(codes.flatten(), minlength=64) / codes.numel()
        torch.testing.assert_close(
            revival.shares, (1 - revival.decay) * shares + revival.decay / 64
        )
        assert float(statistics["codebook_usage"]) == 1
        entropy = -(revival.shares * revival.shares.log()).sum()
        torch.testing.assert_close(statistics["codebook_perplexity"], entropy.exp())

    @pytest.mark.parametrize("stage", ["vqgan", "warmup", "single_stage"])
    def test_evaluation_does_not_count(self, make_objective, pixel_values, stage):
        counted, both = make_objective(stage), make_objective(stage)
        for objective in (counted, both):
            objective.train()(pixel_values)
        both.eval()(1 - pixel_values)
        for objective in (counted, both):
            objective.after_optimizer_step(1)
        assert torch.equal(counted.codebook_revival.shares, both.codebook_revival.shares)

    @pytest.mark.parametrize("stage", ["vqgan", "warmup", "single_stage"])
    def test_dead_codes_become_outputs_of_the_encoder(self, make_objective, pixel_values, stage):
        objective = make_objective(stage).train()
        revival = objective.codebook_revival
        revival.interval, revival.decay = 1, 0.0
        codebook = objective.model.quantizer.codebook.weight
        before = codebook.detach().clone()
        encoded = objective.model.encode(pixel_values)
        outputs = (
            encoded.unquantized if stage != "vqgan" else encoded.unquantized.permute(0, 2, 3, 1)
        )
        outputs = outputs.reshape(-1, codebook.shape[1])
        objective(pixel_values)
        objective.after_optimizer_step(1)
        used = torch.bincount(encoded.codes.flatten(), minlength=64) > 0
        assert 0 < used.sum() < 64
        assert torch.equal(codebook[used], before[used])
        distances = torch.cdist(
            codebook[~used], outputs, compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert distances.min(1).values.max() < 1e-5

    def test_a_continuous_tokenizer_has_none(self, make_objective, pixel_values):
        objective = make_objective("warmup", quantizer="kl").train()
        assert objective.codebook_revival is None
        assert objective(pixel_values).logged_losses.keys() == {
            "proxy_code_loss",
            "proxy_code_accuracy",
            "quantizer_loss",
        }
        objective.after_optimizer_step(1)
        assert objective.statistics() == {}
