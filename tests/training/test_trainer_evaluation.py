"""The trainer evaluates losses and metrics without a trace in the training."""

import pytest
import torch

from titok_hf.data import ImageCollator
from titok_hf.data.digits import load_digits_dataset
from titok_hf.evaluation import (
    MetricNetworks,
    Protocol,
    ReconstructionMetrics,
    load_extractor,
    measure_reconstruction,
)
from titok_hf.evaluation.image_sources import DatasetImages
from titok_hf.training import TiTokTrainer, TiTokTrainingArguments

from .trainer_logs import STAGES, differing, steps_of, without_speed

pytestmark = pytest.mark.slow


class TestEvaluation:
    @pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "generator"])
    def test_the_loss_is_the_mean_over_the_batches(self, make, make_trainer, digits, stage):
        objective = make(stage)
        trainer = make_trainer(
            objective, eval_dataset=digits.select(range(8)), per_device_eval_batch_size=4
        )
        metrics = trainer.evaluate()
        losses = []
        with torch.no_grad():
            for rows in (range(4), range(4, 8)):
                losses.append(
                    objective.eval()(**trainer.data_collator([digits[i] for i in rows])).loss
                )
        assert metrics["eval_loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-5)

    def test_the_generators_random_masks_are_the_same_each_time(self, make, make_trainer, digits):
        losses = []
        for seed, state in ((0, 1), (0, 2), (3, 1)):
            trainer = make_trainer(make("generator"), eval_dataset=digits, seed=seed)
            torch.manual_seed(state)
            expected = torch.rand(4)
            torch.manual_seed(state)
            losses.append(trainer.evaluate()["eval_loss"])
            assert torch.equal(torch.rand(4), expected)  # none are taken from the training
        assert losses[0] == losses[1] != losses[2]

    def test_evaluating_in_between_changes_no_weight(self, make, make_trainer, digits):
        states, logs = [], []
        for arguments in ({}, {"eval_strategy": "steps", "eval_steps": 2}):
            trainer = make_trainer(
                make("warmup"), eval_dataset=digits.select(range(8)), max_steps=4, **arguments
            )
            trainer.train()
            revival = trainer.model.codebook_revival
            states.append(trainer.model.model.state_dict() | {"shares": revival.shares})
            logs.append(steps_of(trainer))
            evaluated = [
                entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry
            ]
            assert evaluated == ([2, 4] if arguments else [])
        assert differing(*states) == []
        assert without_speed(logs[0]) == without_speed(logs[1])


class TestMetrics:
    """`compute_metrics` gives what `measure_reconstruction` does, of the tokenizer that the stage
    is to keep."""

    NAMES = [
        "mean_squared_error",
        "psnr",
        "ssim",
        "frechet_distance",
        "precision",
        "coverage",
        "kernel_distance",
    ]

    @pytest.fixture
    def extractor(self):
        return load_extractor("digits")

    @pytest.fixture
    def evaluate(self, processor, extractor, tmp_path):
        """Measures an objective's reconstructions of 100 digits, after some steps."""

        def evaluate(objective, max_steps=0, **arguments):
            trainer = TiTokTrainer(
                objective,
                TiTokTrainingArguments(
                    output_dir=str(tmp_path),
                    use_cpu=True,
                    report_to="none",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                    per_device_train_batch_size=4,
                    per_device_eval_batch_size=16,
                    max_steps=max_steps,
                    learning_rate=1e-2,
                    save_strategy="no",
                    **arguments,
                ),
                train_dataset=self.digits(),
                eval_dataset=self.digits(),
                data_collator=ImageCollator(processor),
                compute_metrics=ReconstructionMetrics(
                    processor, self.NAMES, extractor, kernel_subset_size=50
                ),
            )
            if max_steps:
                trainer.train()
            metrics = trainer.evaluate()
            return {name: metrics[f"eval_{name}"] for name in self.NAMES}

        return evaluate

    @pytest.fixture
    def measure(self, processor, extractor):
        def measure(tokenizer):
            changes = [
                f"metrics.reconstruction={self.NAMES}",
                "rounding=truncate",
                "kernel_subset_size=50",
            ]
            protocol = Protocol.load("demo", changes)
            images = DatasetImages(self.digits(), protocol)
            measured = measure_reconstruction(
                tokenizer.eval(),
                processor,
                images,
                protocol,
                judges=MetricNetworks(extractor),
                progress_bar=False,
            )
            return {name: estimate.value for name, estimate in measured.metrics.items()}

        return measure

    @staticmethod
    def digits():
        return load_digits_dataset()["test"].select(range(100))

    @pytest.mark.parametrize("batchwise", [False, True])
    @pytest.mark.parametrize("stage", ["vqgan", "single_stage", "decoder_finetuning"])
    def test_they_are_those_of_the_evaluation(self, make, evaluate, measure, stage, batchwise):
        objective = make(stage)
        metrics = evaluate(objective, batch_eval_metrics=batchwise)
        assert metrics == pytest.approx(measure(objective.model), rel=1e-5, abs=1e-7)

    @pytest.mark.parametrize("batchwise", [False, True])
    def test_the_averaged_tokenizer_is_measured(self, make, evaluate, measure, batchwise):
        objective = make("vqgan", ema_decay=0.95)
        metrics = evaluate(objective, max_steps=5, batch_eval_metrics=batchwise)
        assert metrics == pytest.approx(measure(objective.ema.module), rel=1e-5, abs=1e-7)
        assert abs(metrics["psnr"] - measure(objective.model)["psnr"]) > 0.01

    def test_measuring_in_between_changes_no_weight(self, make, evaluate):
        states = []
        for arguments in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
            objective = make("vqgan", ema_decay=0.95)
            evaluate(objective, max_steps=3, **arguments)
            states.append(objective.model.state_dict() | objective.ema.state_dict())
        assert differing(*states) == []

    def test_a_stage_that_makes_no_pixels_is_refused(self, make, evaluate):
        with pytest.raises(TypeError, match=r"compute_metrics.*MaskedTokenObjective"):
            evaluate(make("generator"))
