import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from titok_hf.devices import matmul_flops
from titok_hf.training.flop_counter import FlopCounter
from titok_hf.training.flops import training_flops
from titok_hf.training.throughput import Throughput

from .clock import Slow


@pytest.fixture
def make(make_objective, make_adversarial_objective):
    def make(stage):
        return (
            make_adversarial_objective() if stage == "decoder_finetuning" else make_objective(stage)
        )

    return make


def steps_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def rates_of(trainer):
    return [entry["images_per_second"] for entry in steps_of(trainer)]


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


class Products(TorchDispatchMode):
    """Keeps what matrix products are made of, and lets each take its time."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock = clock
        self.seconds = iter(seconds)
        self.made = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.mm.default:
            first, second = arguments
            assert first.dtype == second.dtype
            self.made.append((first.dtype, tuple(first.shape), tuple(second.shape)))
            self.clock.now += next(self.seconds)
        return function(*arguments, **(keywords or {}))


class TestPeak:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_is_what_the_fastest_product_takes(self, clock, dtype):
        """Products are made until 0.2 seconds are over."""
        with Products(clock, [0.05, 0.03, 0.2, 0.01]) as products:
            measured = matmul_flops.__wrapped__(torch.device("cpu"), dtype, clock=lambda: clock.now)
        assert measured == pytest.approx(2 * 1024**3 / 0.03)
        assert products.made == [(dtype, (1024, 1024), (1024, 1024))] * 3

    def test_measuring_leaves_the_random_numbers_alone(self):
        before = torch.get_rng_state()
        matmul_flops.__wrapped__(torch.device("cpu"), torch.float32, seconds=0.0)
        assert torch.equal(torch.get_rng_state(), before)


class TestLog:
    def test_images_per_second_and_share_follow_from_the_time(self, make, make_trainer, clock):
        """Steps of 4 images that take 0.2 s."""
        trainer = make_trainer(
            make("classifier"), callbacks=[Slow(clock, step=0.2)], max_steps=6, logging_steps=2
        )
        trainer.train()
        entries = steps_of(trainer)
        assert len(entries) == 3
        peak = matmul_flops(torch.device("cpu"), torch.float32)
        for entry in entries:
            assert entry["images_per_second"] == pytest.approx(4 / 0.2)
            of_images = entry["images_per_second"] * trainer.throughput.flops_per_image / peak
            assert entry["peak_share"] == pytest.approx(of_images, rel=1e-6)

    def test_accumulated_batches_count(self, make, make_trainer, clock):
        slow = Slow(clock, step=0.4)
        trainer = make_trainer(
            make("classifier"), callbacks=[slow], max_steps=3, gradient_accumulation_steps=4
        )
        trainer.train()
        assert rates_of(trainer) == pytest.approx([16 / 0.4] * 3)

    def test_evaluation_does_not_count(self, make, make_trainer, digits, clock):
        trainer = make_trainer(
            make("classifier"),
            callbacks=[Slow(clock, step=0.1, evaluation=0.5)],
            eval_dataset=digits.select(range(8)),
            eval_strategy="steps",
            eval_steps=1,
            max_steps=3,
        )
        trainer.train()
        assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 3
        assert rates_of(trainer) == pytest.approx([4 / 0.1] * 3)

    def test_saving_does_not_count(self, make, make_trainer, clock):
        slow = Slow(clock, step=0.1)
        trainer = make_trainer(
            make("classifier"), callbacks=[slow], max_steps=3, save_strategy="steps", save_steps=1
        )
        save_model = trainer.save_model

        def slowly(*args, **kwargs):
            clock.now += 0.7
            save_model(*args, **kwargs)

        trainer.save_model = slowly
        trainer.train()
        assert rates_of(trainer) == pytest.approx([4 / 0.1] * 3)
        assert clock.now == pytest.approx(3 * 0.1 + 3 * 0.7)

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

    def test_time_before_training_and_outside_of_it_does_not_count(self, make, make_trainer, clock):
        throughput = Throughput(make_trainer(make("classifier")).accelerator)
        with throughput.paused():
            clock.now += 0.01
        assert throughput.seconds == 0.0
