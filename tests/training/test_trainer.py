"""The trainer optimizes and logs each network of a stage on its own."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from titok_hf.data import ImageCollator
from titok_hf.training import TiTokTrainer, TiTokTrainingArguments

from .trainer_logs import SPEED, STAGES, steps_of

pytestmark = pytest.mark.slow

OF_TRAINER = {"loss", "grad_norm", "grad_norm_model", "learning_rate", "epoch", "step", *SPEED}


class Gradients(TrainerCallback):
    """Keeps the gradients as the optimizer sees them."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        norms = {}
        for name, network in model.networks():
            gradients = [
                parameter.grad for parameter in network.parameters() if parameter.grad is not None
            ]
            norms[name] = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        self.norms.append(norms)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_and_logs_its_parts(make, make_trainer, stage):
    falling, others = STAGES[stage]
    trainer = make_trainer(make(stage, ema_decay=0.9), max_steps=30, learning_rate=3e-3)
    trainer.train()
    log = steps_of(trainer)
    assert [entry["step"] for entry in log] == list(range(1, 31))
    assert all(entry.keys() == OF_TRAINER | {falling} | others for entry in log)
    first, last = (sum(entry[falling] for entry in part) / 5 for part in (log[:5], log[-5:]))
    assert last < 0.95 * first


def test_logged_parts_are_means_since_the_last_log(make, make_trainer):
    logs = {}
    for logging_steps in (1, 3):
        trainer = make_trainer(make("warmup"), max_steps=6, logging_steps=logging_steps)
        trainer.train()
        logs[logging_steps] = steps_of(trainer)
    for i, entry in enumerate(logs[3]):
        for name in ("codebook_usage", "codebook_perplexity"):  # these are averages already
            assert entry[name] == logs[1][3 * i + 2][name]
        for name in ("proxy_code_loss", "quantizer_loss", "proxy_code_accuracy", "grad_norm_model"):
            mean = sum(single[name] for single in logs[1][3 * i : 3 * i + 3]) / 3
            assert entry[name] == pytest.approx(mean, rel=1e-5), name
        assert entry["loss"] == pytest.approx(
            entry["proxy_code_loss"] + entry["quantizer_loss"], rel=1e-4
        )


class TestOptimizer:
    def groups(self, trainer):
        optimizer = trainer.create_optimizer()
        return {
            (group["network"], group["weight_decay"] > 0): group for group in optimizer.param_groups
        }

    def test_each_network_has_its_own_learning_rate_on_one_schedule(self, make, make_trainer):
        trainer = make_trainer(
            make("decoder_finetuning"),
            max_steps=4,
            learning_rate=4e-3,
            discriminator_learning_rate=1e-3,
            lr_scheduler_type="linear",
        )
        rates = {"model": 4e-3, "discriminator": 1e-3}
        groups = self.groups(trainer)
        assert {network: group["lr"] for (network, _), group in groups.items()} == rates
        trainer.create_scheduler(4, trainer.optimizer)
        for step in range(4):
            for (network, _), group in groups.items():
                assert group["lr"] == pytest.approx(rates[network] * (1 - step / 4))
            trainer.optimizer.step()
            trainer.lr_scheduler.step()

    @pytest.mark.parametrize(
        ("options", "schedule"),
        [
            (
                {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
                lambda n, total: min(1, n / 3),
            ),
            ({"lr_scheduler_type": "linear"}, lambda n, total: 1 - n / total),
            (
                {
                    "lr_scheduler_type": "cosine_with_min_lr",
                    "warmup_steps": 2,
                    "lr_scheduler_kwargs": {"min_lr": 1e-4},
                },
                lambda n, total: (
                    n / 2 if n < 2 else (1 + math.cos(math.pi * (n - 2) / (total - 2))) / 2
                ),
            ),
        ],
        ids=["constant", "linear", "cosine"],
    )
    def test_the_discriminators_schedule_begins_at_its_start(
        self, make, make_trainer, options, schedule
    ):
        """A schedule of its own over the steps that are left, warm-up included."""
        start, max_steps, rates = 4, 12, {"model": 4e-3, "discriminator": 1e-3}
        seen = []

        class Rates(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
                seen.append({group["network"]: group["lr"] for group in optimizer.param_groups})

        make_trainer(
            make("decoder_finetuning", discriminator_start=start),
            callbacks=[Rates()],
            max_steps=max_steps,
            learning_rate=rates["model"],
            discriminator_learning_rate=rates["discriminator"],
            **options,
        ).train()
        floor = options.get("lr_scheduler_kwargs", {}).get("min_lr", 0)
        for step in range(max_steps):
            for network, total, n in (
                ("model", max_steps, step),
                ("discriminator", max_steps - start, max(step - start, 0)),
            ):
                warm = n < options.get("warmup_steps", 0)
                low = 0 if warm else floor
                expected = low + (rates[network] - low) * schedule(n, total)
                assert seen[step][network] == pytest.approx(expected, rel=1e-6, abs=1e-12), (
                    network,
                    step,
                )

    @pytest.mark.parametrize("stage", STAGES)
    def test_every_trained_parameter_is_in_one_group_and_frozen_ones_in_none(
        self, make, make_trainer, stage
    ):
        objective = make(stage, ema_decay=0.9)
        groups = self.groups(make_trainer(objective, weight_decay=0.1))
        for name, network in objective.networks():
            grouped = [*groups[name, True]["params"], *groups[name, False]["params"]]
            trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
            assert sorted(map(id, grouped)) == sorted(map(id, trained))
        assert {name for name, _ in groups} == dict(objective.networks()).keys()

    @pytest.mark.parametrize("stage", STAGES)
    def test_gains_biases_embeddings_and_tokens_do_not_decay(self, make, make_trainer, stage):
        objective = make(stage)
        groups = self.groups(make_trainer(objective, weight_decay=0.1))
        decayed = {
            id(parameter)
            for (_, decay), group in groups.items()
            if decay
            for parameter in group["params"]
        }
        undecayed = {
            id(parameter)
            for (_, decay), group in groups.items()
            if not decay
            for parameter in group["params"]
        }
        for module in (
            module for _, network in objective.networks() for module in network.modules()
        ):
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad or (
                    name == "weight" and isinstance(module, nn.Linear | nn.Conv2d)
                ):
                    continue
                assert id(parameter) in undecayed, (type(module), name)
        kernels = {
            id(module.weight)
            for _, network in objective.networks()
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
            and "embedding" not in name
            and module.weight.requires_grad
        }
        assert kernels == decayed

    def test_the_defaults_are_the_references(self, tmp_path):
        arguments = TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        assert (arguments.discriminator_learning_rate, arguments.adam_beta2) == (1e-4, 0.99)

    def test_the_given_betas_are_used(self, make, make_trainer):
        trainer = make_trainer(make("warmup"), adam_beta1=0.8, adam_beta2=0.96)
        assert {group["betas"] for group in self.groups(trainer).values()} == {(0.8, 0.96)}


class TestClipping:
    def test_each_network_is_clipped_to_the_norm_on_its_own(self, make, make_trainer):
        seen = Gradients()
        trainer = make_trainer(
            make("decoder_finetuning"), callbacks=[seen], max_steps=3, max_grad_norm=0.01
        )
        trainer.train()
        for norms, entry in zip(seen.norms, steps_of(trainer), strict=True):
            assert norms == {
                "model": pytest.approx(0.01, rel=1e-3),
                "discriminator": pytest.approx(0.01, rel=1e-3),
            }
            before = [entry[f"grad_norm_{name}"] for name in norms]
            assert min(before) > 0.01
            assert entry["grad_norm"] == pytest.approx(torch.tensor(before).norm().item(), rel=1e-5)

    def test_small_gradients_stay_as_they_are(self, make, make_trainer):
        seen = Gradients()
        trainer = make_trainer(
            make("decoder_finetuning"), callbacks=[seen], max_steps=2, max_grad_norm=1e6
        )
        trainer.train()
        for norms, entry in zip(seen.norms, steps_of(trainer), strict=True):
            assert norms == pytest.approx(
                {name: entry[f"grad_norm_{name}"] for name in norms}, rel=1e-4
            )


class TestSteps:
    def test_adversarial_losses_start_at_their_step(self, make, make_trainer):
        seen = Gradients()
        trainer = make_trainer(
            make("decoder_finetuning", discriminator_start=2), callbacks=[seen], max_steps=4
        )
        trainer.train()
        assert [norms["discriminator"] > 0 for norms in seen.norms] == [False, False, True, True]

    def test_before_its_start_the_optimizer_leaves_the_discriminator_alone(
        self, make, make_trainer
    ):
        """Neither weight decay nor momentum: its first step is AdamW's first, of the size of the
        learning rate."""
        objective = make("decoder_finetuning", discriminator_start=2)
        first = {name: p.detach().clone() for name, p in objective.discriminator.named_parameters()}
        changes, steps = [], []

        class Changes(TrainerCallback):
            def on_step_end(self, args, state, control, model, optimizer, **kwargs):
                current = dict(model.discriminator.named_parameters())
                changes.append(
                    max(float((p - first[n]).detach().abs().max()) for n, p in current.items())
                )
                states = [optimizer.state.get(parameter) for parameter in current.values()]
                steps.append({int(each["step"]) if each else 0 for each in states})

        make_trainer(
            objective,
            callbacks=[Changes()],
            max_steps=4,
            weight_decay=0.5,
            discriminator_learning_rate=0.01,
            lr_scheduler_type="constant",
        ).train()
        assert changes[:2] == [0, 0]
        assert steps == [{0}, {0}, {1}, {2}]
        assert changes[2] == pytest.approx(0.01, rel=0.3)  # and a decay of 0.5 percent

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_the_moving_average_is_updated_once_an_optimizer_step(
        self, make, make_trainer, accumulation
    ):
        objective = make("warmup", ema_decay=0.5)
        weights = []

        class Weights(TrainerCallback):
            def on_optimizer_step(self, args, state, control, model, **kwargs):
                weights.append(model.model.head.proj_out.weight.detach().clone())

        make_trainer(
            objective, callbacks=[Weights()], max_steps=3, gradient_accumulation_steps=accumulation
        ).train()
        first, second, third = weights
        expected = 0.5 * (0.5 * first + 0.5 * second) + 0.5 * third
        torch.testing.assert_close(objective.result.head.proj_out.weight, expected)
        assert int(objective.ema.n_averaged) == 3

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_codes_are_counted_once_an_optimizer_step(self, make, make_trainer, accumulation):
        objective = make("warmup")
        revival = objective.codebook_revival
        seen, shares = [], [revival.shares.clone()]

        class Counts(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
                codes = torch.cat([codes for codes, _ in revival.seen])
                assert len(codes) == 4 * accumulation * 8  # images and tokens
                seen.append(torch.bincount(codes, minlength=64) / len(codes))

            def on_step_end(self, args, state, control, model, **kwargs):
                shares.append(revival.shares.clone())

        make_trainer(
            objective, callbacks=[Counts()], max_steps=3, gradient_accumulation_steps=accumulation
        ).train()
        for step in range(3):
            torch.testing.assert_close(shares[step + 1], 0.98 * shares[step] + 0.02 * seen[step])

    def test_frozen_weights_do_not_change(self, make, make_trainer):
        objective = make("decoder_finetuning")
        frozen = {
            n: p.detach().clone() for n, p in objective.named_parameters() if not p.requires_grad
        }
        assert (
            any(n.startswith("perceptual.") for n in frozen)
            and "model.encoder.latent_tokens" in frozen
        )
        make_trainer(objective, max_steps=3, weight_decay=0.1).train()
        assert all(
            torch.equal(objective.get_parameter(name), weight) for name, weight in frozen.items()
        )


def test_the_collator_gets_all_columns(digits, make, tmp_path, processor):
    trainer = TiTokTrainer(
        make("generator"),
        TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        train_dataset=digits,
        data_collator=ImageCollator(processor, label_column="label"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape[1:] == (3, 32, 32)
    assert batch["class_labels"].shape == (8,)


def test_the_callers_arguments_stay_as_they_are(make_objective, digits, processor, tmp_path):
    args = TiTokTrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        num_train_epochs=1,
        save_steps=2,
        save_total_limit=1,
        per_device_train_batch_size=9,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    before = copy.deepcopy(args.to_dict())
    trainer = TiTokTrainer(
        make_objective("vqgan"), args, train_dataset=digits, data_collator=ImageCollator(processor)
    )
    trainer.train()
    assert (trainer.state.global_step, args.max_steps) == (2, -1)
    assert args.to_dict() == before
