import time

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from titok_hf.training.flop_counter import FlopCounter
from titok_hf.training.flops import training_flops
from titok_hf.training.throughput import Throughput, matmul_flops


@pytest.fixture
def make(make_objective, make_adversarial_objective):
    def make(stage):
        return (
            make_adversarial_objective() if stage == "decoder_finetuning" else make_objective(stage)
        )

    return make


def steps_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class TestCounting:
    def test_products_convolutions_and_attention(self):
        """Two operations a multiplication, and twice as many backward."""
        weight = torch.rand(6, 5, requires_grad=True)
        kernel = torch.rand(8, 2, 3, 3, requires_grad=True)
        query, key, value = (
            torch.rand(2, 3, tokens, 4, requires_grad=True) for tokens in (7, 9, 9)
        )
        with FlopCounter() as counter:
            F.linear(torch.rand(4, 5), weight).sum().backward()
        assert counter.flops == 2 * (2 * 4 * 5 * 6)  # no gradient of the inputs
        with FlopCounter() as counter:
            F.conv2d(torch.rand(3, 4, 10, 10), kernel, groups=2).sum().backward()
        assert counter.flops == 2 * (2 * 3 * 8 * 8 * 8 * 2 * 9)
        with FlopCounter() as counter:
            F.scaled_dot_product_attention(query, key, value).sum().backward()
        assert counter.flops == 3 * (2 * 2 * 2 * 3 * 7 * 9 * 4)

    @pytest.mark.parametrize(
        "stage", ["vqgan", "classifier", "warmup", "decoder_finetuning", "generator"]
    )
    def test_a_step_takes_what_is_counted_without_computing(self, make, make_trainer, stage):
        trainer = make_trainer(make(stage), max_steps=1)
        trainer.train()
        batch = next(iter(trainer.get_train_dataloader()))
        objective = make(stage).train()
        assert trainer.throughput.flops_per_image == training_flops(objective, batch) / 4

    @pytest.mark.parametrize("stage", ["vqgan", "decoder_finetuning", "warmup", "generator"])
    def test_counting_does_not_change_a_bit(self, make, digit_batch, stage):
        gradients = []
        for count in (True, False):
            objective = make(stage).train()
            batch = (
                digit_batch
                if stage == "generator"
                else {"pixel_values": digit_batch["pixel_values"]}
            )
            if objective.num_draws:
                batch = batch | {
                    "draws": torch.linspace(0, 0.99, 8 * objective.num_draws).unflatten(0, (8, -1))
                }
            if count:
                with FlopCounter():
                    objective(**batch).loss.backward()
            else:
                objective(**batch).loss.backward()
            gradients.append(
                {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
            )
        assert all(
            torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items()
        )


class TestPeak:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_is_what_a_product_takes(self, dtype):
        first, second = torch.rand(2, 1024, 1024).to(dtype)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            first @ second
            times.append(time.perf_counter() - started)
        measured = matmul_flops.__wrapped__(torch.device("cpu"), dtype)
        assert measured == pytest.approx(2 * 1024**3 / min(times), rel=0.6)

    def test_measuring_leaves_the_random_numbers_alone(self):
        before = torch.get_rng_state()
        matmul_flops.__wrapped__(torch.device("cpu"), torch.float32, seconds=0.0)
        assert torch.equal(torch.get_rng_state(), before)


class Slow(TrainerCallback):
    """Sleeps in each step, in evaluation, and while checkpoints are saved."""

    def __init__(self, step=0.0, evaluation=0.0):
        self.step = step
        self.evaluation = evaluation

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(self.step)

    def on_prediction_step(self, args, state, control, **kwargs):
        time.sleep(self.evaluation)


class TestLog:
    def test_images_per_second_and_share_follow_from_the_time(self, make, make_trainer):
        """Steps of 4 images that sleep for 0.2 s and compute for much less."""
        trainer = make_trainer(
            make("classifier"), callbacks=[Slow(step=0.2)], max_steps=6, logging_steps=2
        )
        trainer.train()
        _, *entries = steps_of(trainer)
        peak = matmul_flops(torch.device("cpu"), torch.float32)
        for entry in entries:
            assert 4 / 1.0 < entry["images_per_second"] < 4 / 0.2
            of_images = entry["images_per_second"] * trainer.throughput.flops_per_image / peak
            assert entry["peak_share"] == pytest.approx(of_images, rel=1e-6)

    def test_accumulated_batches_count(self, make, make_trainer):
        slow = Slow(step=0.4)
        trainer = make_trainer(
            make("classifier"), callbacks=[slow], max_steps=3, gradient_accumulation_steps=4
        )
        trainer.train()
        for entry in steps_of(trainer)[1:]:
            assert 16 / 1.2 < entry["images_per_second"] < 16 / 0.4

    def test_evaluation_does_not_count(self, make, make_trainer, digits):
        trainer = make_trainer(
            make("classifier"),
            callbacks=[Slow(step=0.1, evaluation=0.5)],
            eval_dataset=digits.select(range(8)),
            eval_strategy="steps",
            eval_steps=1,
            max_steps=3,
        )
        trainer.train()
        assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 3
        for entry in steps_of(trainer)[1:]:
            assert entry["images_per_second"] > 4 / 0.8

    def test_saving_does_not_count(self, make, make_trainer):
        trainer = make_trainer(make("classifier"), max_steps=3, save_strategy="steps", save_steps=1)
        save_model = trainer.save_model

        def slowly(*args, **kwargs):
            time.sleep(0.7)
            save_model(*args, **kwargs)

        trainer.save_model = slowly
        trainer.train()
        for entry in steps_of(trainer)[1:]:
            assert entry["images_per_second"] > 4 / 0.6

    def test_the_learning_rate_of_every_network(self, make, make_trainer):
        trainer = make_trainer(
            make("decoder_finetuning"),
            max_steps=4,
            learning_rate=4e-3,
            discriminator_learning_rate=1e-3,
            lr_scheduler_type="linear",
        )
        trainer.train()
        for done, entry in enumerate(steps_of(trainer)):
            assert entry["learning_rate"] == pytest.approx(4e-3 * (1 - done / 4))
            assert entry["learning_rate_discriminator"] == pytest.approx(1e-3 * (1 - done / 4))

    def test_time_before_training_and_outside_of_it_does_not_count(self, make, make_trainer):
        throughput = Throughput(make_trainer(make("classifier")).accelerator)
        with throughput.paused():
            time.sleep(0.01)
        assert throughput.seconds == 0.0
