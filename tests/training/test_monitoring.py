import logging
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback

from titok_hf.training import CodebookRevival
from titok_hf.training.monitoring import Finiteness, HealthWarnings

NAN, INF = float("nan"), float("inf")
STEPS = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 5, "max_steps": 10}


class Poison(TrainerCallback):
    """Makes a weight NaN before a step, or its gradient infinite in it."""

    def __init__(self, step, gradient=False):
        self.step = step
        self.gradient = gradient

    def on_step_begin(self, args, state, control, model, **kwargs):
        weight = model.model.decoder.conv_out.weight
        if state.global_step + 1 == self.step:
            if self.gradient:
                weight.register_hook(lambda gradient: gradient + INF)
            else:
                weight.data[0, 0, 0, 0] = NAN


def scalars(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


class TestFiniteness:
    def test_training_stops_before_a_poisoned_checkpoint_is_written(
        self, make_objective, make_trainer, tmp_path
    ):
        trainer = make_trainer(make_objective("vqgan"), callbacks=[Poison(3)], **STEPS)
        said = (
            r"^Training has failed at step 3: not finite are loss, reconstruction_loss, grad_norm_model\. The last "
            rf"good checkpoint is {tmp_path}/trainer/checkpoint-2\. An unchanged restart .* try a lower learning rate"
        )
        with pytest.raises(FloatingPointError, match=said):
            trainer.train()
        assert trainer.state.global_step == 4
        assert [path.name for path in (tmp_path / "trainer").iterdir()] == ["checkpoint-2"]

    def test_it_stops_at_the_log_where_nothing_is_saved(self, make_objective, make_trainer):
        options = STEPS | {"save_strategy": "no"}
        trainer = make_trainer(make_objective("vqgan"), callbacks=[Poison(3)], **options)
        with pytest.raises(
            FloatingPointError, match=r"at step 3: .* There is no earlier checkpoint"
        ):
            trainer.train()
        assert trainer.state.global_step == 5
        assert trainer.state.log_history == []

    def test_it_stops_at_the_end_after_the_last_log(self, make_objective, make_trainer):
        options = STEPS | {"save_strategy": "no", "max_steps": 4}
        trainer = make_trainer(make_objective("vqgan"), callbacks=[Poison(3)], **options)
        with pytest.raises(FloatingPointError, match=r"at step 3: not finite are loss"):
            trainer.train()

    def test_a_gradient_alone_is_enough(self, make_objective, make_trainer):
        trainer = make_trainer(
            make_objective("vqgan"), callbacks=[Poison(4, gradient=True)], **STEPS
        )
        with pytest.raises(
            FloatingPointError, match="at step 4: not finite are grad_norm_model, the weights"
        ):
            trainer.train()

    def test_weights_are_looked_at_before_they_are_saved(
        self, make_objective, make_trainer, tmp_path
    ):
        """Without clipping no gradient norm is known."""
        trainer = make_trainer(
            make_objective("vqgan"),
            callbacks=[Poison(4, gradient=True)],
            **STEPS,
            max_grad_norm=0.0,
        )
        with pytest.raises(FloatingPointError, match="at step 4: not finite are the weights"):
            trainer.train()
        assert [path.name for path in (tmp_path / "trainer").iterdir()] == ["checkpoint-2"]

    def test_the_first_of_several_bad_steps_is_named(self, tmp_path):
        finiteness = Finiteness(Accelerator(cpu=True))
        for step in range(1, 9):
            early, late = (NAN if step > first else 1.0 for first in (4, 6))
            finiteness.observe(step, scalars(loss=late, perceptual_loss=early))
            finiteness.observe(step, scalars(grad_norm_model=early))
        with pytest.raises(
            FloatingPointError, match="at step 5: not finite are perceptual_loss, grad_norm_model"
        ):
            finiteness.check(8, tmp_path)

    def test_other_numbers_of_the_log_need_not_be_finite(self, tmp_path):
        """Such a value is the share of right tokens among none."""
        finiteness = Finiteness(Accelerator(cpu=True))
        finiteness.check(0, tmp_path)
        finiteness.observe(1, scalars(loss=1.0, masked_token_accuracy=NAN))
        finiteness.check(1, tmp_path, nn.Linear(2, 2))

    def test_observing_waits_for_no_device(self):
        """A meta tensor has no value that could be waited for."""
        finiteness = Finiteness(Accelerator(cpu=True))
        for step in (1, 2):
            values = {name: torch.ones((), device="meta") for name in ("loss", "adversarial_loss")}
            finiteness.observe(step, values)

    @pytest.mark.xdist_group("distributed")
    def test_all_processes_stop(self, two_processes):
        for rank in range(2):
            said = (two_processes / "distributed_monitoring" / f"{rank}.txt").read_text()
            assert said.startswith("Training has failed at step 7: not finite are loss.")


@pytest.fixture
def watch():
    """Runs logs through `HealthWarnings` and keeps what it says: `{number of the log: first
    words}`."""

    def watch(logs, codebook_size=0):
        health = HealthWarnings()
        health.reset(codebook_size)
        return {
            number: [text.split(":")[0] for text in texts]
            for number, entry in enumerate(logs, 1)
            if (texts := health.warnings({"loss": 1.0} | entry))
        }

    return watch


def discriminator(loss, real, fake, gradient=1.0):
    return {
        "discriminator_loss": loss,
        "real_logit": real,
        "fake_logit": fake,
        "grad_norm_discriminator": gradient,
        "grad_norm_model": 1.0,
    }


GOOD = discriminator(0.8, 0.3, -0.3) | {
    "teacher_entropy": 0.8,
    "feature_deviation": 0.7,
    "grad_norm_head": 1.0,
}


class TestWarnings:
    def test_good_training_is_let_alone(self, watch):
        """Sizes that vary by a factor of 3, a codebook three quarters in use."""
        logs = [
            discriminator(0.8 + 0.1 * math.sin(i), 0.5 + 0.4 * math.sin(i), -0.5, 2 + math.sin(i))
            | {"codebook_usage": 0.97, "codebook_perplexity": 768.0}
            for i in range(100)
        ]
        assert watch(logs, codebook_size=1024) == {}

    @pytest.mark.parametrize(
        ("bad", "words", "patience"),
        [
            (discriminator(0.01, 4.0, -3.0), "the discriminator wins", 5),
            (discriminator(1.0, 0.01, 0.02), "the discriminator sees nothing", 20),
            (GOOD | {"grad_norm_model": 30.0}, "the model explodes", 1),
            (GOOD | {"grad_norm_discriminator": 11.0}, "the discriminator explodes", 1),
            (GOOD | {"fake_logit": -50.0}, "the discriminator explodes", 1),
            (GOOD | {"grad_norm_head": 11.0}, "the head explodes", 1),
            (GOOD | {"teacher_entropy": 0.99}, "the representation collapses", 5),
            (GOOD | {"teacher_entropy": 0.01}, "the representation collapses", 5),
            (GOOD | {"feature_deviation": 0.01}, "the representation collapses", 5),
        ],
    )
    def test_once_a_run_and_again_after_it_was_over(self, watch, bad, words, patience):
        length = patience + 3
        logs = [GOOD] * 20 + [bad] * length + [GOOD] * 25 + [bad] * patience
        expected = {20 + patience: [words], 20 + length + 25 + patience: [words]}
        assert watch(logs) == expected
        assert watch([GOOD] * 20 + [bad] * (patience - 1) + [GOOD] * 20) == {}

    @pytest.mark.parametrize(
        "harmless",
        [
            discriminator(1.0, 0.0, 0.0, gradient=0.0),  # it has not begun
            discriminator(0.05, 0.9, -0.9),
            discriminator(0.5, 4.0, -3.0),
            discriminator(1.0, 0.5, -0.5),
            GOOD | {"real_logit": 9.0},
            GOOD | {"teacher_entropy": 0.97, "feature_deviation": 0.1},
            GOOD | {"teacher_entropy": 0.03},
            GOOD | {"grad_norm_model": 9.0},
            GOOD | {"grad_norm_model": INF},  # of a step that float16's gradient scaler skips
        ],
    )
    def test_what_is_near_a_condition_is_let_pass(self, watch, harmless):
        assert watch([GOOD] * 20 + [harmless] * 30) == {}

    def test_the_first_logs_are_let_pass(self, watch):
        assert watch([GOOD] * 5 + [GOOD | {"grad_norm_model": 1e6}] * 5 + [GOOD] * 5) == {}

    @pytest.mark.parametrize(
        ("size", "codes", "warned"), [(256, 3, True), (4096, 20, True), (256, 150, False)]
    )
    def test_a_codebook_that_is_revived_in_vain(self, watch, size, codes, warned):
        """All tokens take a few codes, whatever the others become; logs every 50 steps."""
        revival = CodebookRevival(nn.Embedding(size, 4))
        logs = []
        for step in range(1, 2001):
            revival.observe(torch.randint(codes, (4, 128)), torch.randn(4, 128, 4))
            revival.after_optimizer_step(step)
            if step % 50 == 0:
                logs.append({name: float(value) for name, value in revival.statistics().items()})
        assert (
            sum(entry["codebook_usage"] for entry in logs) / len(logs) > 0.5
        )  # which does not show it
        found = watch(logs, codebook_size=size)
        assert list(found.values()) == [["the codebook collapses"]] * warned

    def test_a_codebook_out_of_use(self, watch):
        logs = [{"codebook_usage": 0.05, "codebook_perplexity": 100.0}] * 30
        assert watch(logs, codebook_size=128) == {11: ["the codebook collapses"]}

    def test_evaluation_does_not_count(self):
        health = HealthWarnings()
        assert health.warnings({"eval_loss": 1.0}) == []
        assert health.num_logs == 0

    def test_it_is_said_with_the_step_and_once_though_the_run_was_interrupted(
        self, make_objective, make_trainer, caplog, tmp_path
    ):
        """All images get one code, and dead ones are left dead."""

        def trainer(**arguments):
            objective = make_objective("vqgan")
            objective.model.quantizer.codebook.weight.data[1:] += 100.0
            objective.codebook_revival.interval, objective.codebook_revival.decay = 1000, 0.1
            return make_trainer(
                objective, max_steps=14, save_strategy="steps", save_steps=12, **arguments
            )

        def said():
            texts = [
                record.getMessage()
                for record in caplog.records
                if record.name == "titok_hf.training.monitoring"
            ]
            caplog.clear()
            return [text.split(":")[0] for text in texts]

        with caplog.at_level(logging.WARNING):
            trainer().train()
            assert said() == ["Step 11"]
            trainer().train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-12"))
            assert said() == []
