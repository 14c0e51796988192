"""A training that goes on from a checkpoint ends bit by bit as one that was never stopped."""

import pytest
import torch

from titok_hf.data import Augmentation

from .trainer_logs import STAGES, differing, steps_of, without_speed

pytestmark = pytest.mark.slow


class TestResuming:
    """Batches of 4 of 18 digits: an epoch has five steps."""

    @pytest.fixture
    def resumed(self, make, make_trainer, tmp_path):
        """States after an uninterrupted run, and after going on from a checkpoint with other
        weights at the start."""

        def run(stage, checkpoint, max_steps=8, augmentation=None, trainer=None, **arguments):
            arguments = {"ema_decay": 0.9} | arguments
            options = {
                "max_steps": max_steps,
                "save_strategy": "steps",
                "save_steps": checkpoint,
            } | (trainer or {})
            whole = make_trainer(make(stage, **arguments), augmentation=augmentation, **options)
            whole.train()
            folder = tmp_path / "trainer" / f"checkpoint-{checkpoint}"
            torch.rand(7)  # another process would not be at the same random number either
            again = make_trainer(
                make(stage, seed=1, **arguments), augmentation=augmentation, **options
            )
            assert differing(whole.model.state_dict(), again.model.state_dict())
            again.train(resume_from_checkpoint=str(folder))
            return whole, again

        return run

    @pytest.mark.parametrize("stage", STAGES)
    def test_every_stage_goes_on_bit_by_bit(self, resumed, stage):
        """Twelve steps, so that dead codes are revived at the tenth; within an epoch, dropout
        included."""
        arguments = {"discriminator_start": 2} if stage == "decoder_finetuning" else {}
        whole, again = resumed(stage, 6, 12, **arguments)
        state = whole.model.state_dict()
        assert int(state["ema.n_averaged"]) == 12
        assert differing(state, again.model.state_dict()) == []
        assert without_speed(steps_of(again)) == without_speed(steps_of(whole))
        optimizers = [trainer.optimizer.state_dict()["state"] for trainer in (whole, again)]
        assert optimizers[0].keys() == optimizers[1].keys()
        for number, moments in optimizers[0].items():
            assert differing(moments, optimizers[1][number]) == []
        if stage == "decoder_finetuning":
            assert float(state["real_average"]) != 0

    def test_a_checkpoint_before_the_discriminators_start_will_do(self, resumed):
        whole, again = resumed("decoder_finetuning", 3, 8, discriminator_start=5)
        assert float(whole.model.real_average) != 0
        assert differing(whole.model.state_dict(), again.model.state_dict()) == []
        assert without_speed(steps_of(again)) == without_speed(steps_of(whole))

    def test_within_accumulated_batches_of_two_epochs(self, resumed):
        """The checkpoint is after 24 of 18 digits, in the middle of a batch of the second epoch."""
        whole, again = resumed("generator", 3, 6, trainer={"gradient_accumulation_steps": 2})
        assert differing(whole.model.state_dict(), again.model.state_dict()) == []

    def test_with_workers_too(self, resumed):
        whole, again = resumed("generator", 3, 5, trainer={"dataloader_num_workers": 2})
        assert differing(whole.model.state_dict(), again.model.state_dict()) == []

    def test_with_another_learning_rate_it_goes_on_at_that(self, make, make_trainer, tmp_path):
        """Weight decay and betas are the new ones, too; the schedule continues."""
        options = {
            "max_steps": 8,
            "save_strategy": "steps",
            "save_steps": 4,
            "lr_scheduler_type": "linear",
        }
        make_trainer(make("decoder_finetuning"), **options).train()
        changes = {
            "learning_rate": 5e-4,
            "discriminator_learning_rate": 2e-4,
            "adam_beta2": 0.9,
            "weight_decay": 0.3,
        }
        again = make_trainer(make("decoder_finetuning"), **options, **changes)
        again.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-4"))
        for entry in steps_of(again)[4:]:
            share = 1 - (entry["step"] - 1) / 8
            assert entry["learning_rate"] == pytest.approx(5e-4 * share)
            assert entry["learning_rate_discriminator"] == pytest.approx(2e-4 * share)
        assert {group["betas"] for group in again.optimizer.param_groups} == {(0.9, 0.9)}
        assert {group["weight_decay"] for group in again.optimizer.param_groups} == {0.0, 0.3}

    def test_random_changes_of_the_images_go_on_bit_by_bit(self, resumed):
        augmentation = Augmentation(horizontal_flip=True, rotation=10, translation=0.1)
        whole, again = resumed("vqgan", 4, augmentation=augmentation)
        assert differing(whole.model.state_dict(), again.model.state_dict()) == []
