"""Tiny objectives of every stage, trainers for them, and a run of them all."""

from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from forked import run
from transformers import ConvNextConfig, ConvNextForImageClassification, PrinterCallback

from titok_hf import MaskGitScheduler, MaskGitVQGANModel, TiTokImageProcessor, TiTokModel, devices
from titok_hf.data import ImageCollator
from titok_hf.data.digits import load_digits_dataset
from titok_hf.training import (
    ClassifierObjective,
    MaskedTokenObjective,
    PatchDiscriminator,
    PerceptualLoss,
    ReconstructionObjective,
    TiTokTrainer,
    TiTokTrainingArguments,
    WarmupObjective,
)
from titok_hf.training import throughput as throughput_module

from . import miniature_runs
from .clock import Clock


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """Folder of what two processes did that ran `distributed_parts.py`; tests that use it are in
    one xdist group."""
    root = tmp_path_factory.mktemp("processes")
    run(Path(__file__).with_name("distributed_parts.py"), root, num_processes=2)
    return root


@pytest.fixture(scope="session")
def digits():
    """The first 18 training digits: with batches of 4, an epoch of 5 steps."""
    return load_digits_dataset()["train"].select(range(18))


@pytest.fixture(scope="session")
def processor():
    return TiTokImageProcessor.from_image_size(32)


@pytest.fixture(scope="session")
def digit_batch(digits, processor):
    """8 digits `(8, 3, 32, 32)` and their labels."""
    return ImageCollator(processor, label_column="label")(list(digits.select(range(8))))


@pytest.fixture
def pixel_values(digit_batch):
    return digit_batch["pixel_values"]


@pytest.fixture
def classifier():
    config = ConvNextConfig(
        image_size=32,
        patch_size=4,
        num_stages=2,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        num_labels=10,
    )
    return ConvNextForImageClassification(config)


@pytest.fixture
def perceptual(classifier):
    return PerceptualLoss(classifier, 32, ClassifierObjective.MEAN, ClassifierObjective.STD)


@pytest.fixture
def discriminator():
    return PatchDiscriminator(hidden_channels=8, num_stages=2)


@pytest.fixture
def make_objective(vqgan_config, make_titok_config, generator_config, vqgan, generator, classifier):
    """Builds the objective of a stage with fresh networks: `make_objective("warmup",
    ema_decay=0.9)`."""

    def make(stage, quantizer="vq", seed=0, **arguments):
        torch.manual_seed(seed)
        if stage == "vqgan":
            return ReconstructionObjective(MaskGitVQGANModel(vqgan_config), **arguments)
        if stage == "classifier":
            return ClassifierObjective(
                ConvNextForImageClassification(classifier.config), **arguments
            )
        if stage == "warmup":
            return WarmupObjective(
                TiTokModel(make_titok_config(quantizer=quantizer)), vqgan, **arguments
            )
        if stage == "decoder_finetuning":
            model = TiTokModel(make_titok_config("vqgan_decoder", quantizer=quantizer))
            return ReconstructionObjective(model, freeze_encoder=True, **arguments)
        if stage == "single_stage":
            return ReconstructionObjective(
                TiTokModel(make_titok_config("pixels", quantizer=quantizer)), **arguments
            )
        tokenizer = TiTokModel(make_titok_config())
        scheduler = MaskGitScheduler(generator_config.mask_token_id)
        return MaskedTokenObjective(
            type(generator)(generator_config), tokenizer, scheduler, **arguments
        )

    return make


@pytest.fixture
def make_adversarial_objective(make_objective, classifier):
    """`decoder_finetuning` with all of its losses."""

    def make(seed=0, **arguments):
        torch.manual_seed(seed)
        parts = {
            "perceptual": PerceptualLoss(ConvNextForImageClassification(classifier.config), 32),
            "discriminator": PatchDiscriminator(hidden_channels=8, num_stages=2),
            "perceptual_weight": 0.1,
            "adversarial_weight": 0.2,
            "lecam_weight": 0.05,
        }
        return make_objective("decoder_finetuning", seed=seed, **(parts | arguments))

    return make


@pytest.fixture
def make(make_objective, make_adversarial_objective):
    """Builds the objective of a stage, that of `decoder_finetuning` with all of its losses."""

    def make(stage, **arguments):
        if stage == "decoder_finetuning":
            return make_adversarial_objective(**arguments)
        return make_objective(stage, **arguments)

    return make


@pytest.fixture
def clock(monkeypatch):
    """The clock of the throughput; the machine's is used before, for what matrix products take."""
    devices.matmul_flops(torch.device("cpu"), torch.float32)
    clock = Clock()
    for module in (devices, throughput_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def make_trainer(digits, processor, tmp_path):
    """Builds a trainer, on the digits if not told otherwise, that logs every step:
    `make_trainer(objective)`."""

    def make(
        objective,
        augmentation=None,
        callbacks=(),
        train_dataset=None,
        eval_dataset=None,
        **arguments,
    ):
        defaults = {
            "output_dir": str(tmp_path / "trainer"),
            "use_cpu": True,
            "seed": 0,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        labelled = isinstance(objective, ClassifierObjective | MaskedTokenObjective)
        trainer = TiTokTrainer(
            objective,
            TiTokTrainingArguments(**(defaults | arguments)),
            train_dataset=train_dataset or digits,
            eval_dataset=eval_dataset,
            data_collator=ImageCollator(
                processor, label_column="label" if labelled else None, augmentation=augmentation
            ),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


@pytest.fixture(scope="session")
def dataset(digits):
    """18 digits to train on: with batches of 4, an epoch of 5 steps, and 6 steps end within the
    second."""
    return DatasetDict(train=digits, test=digits.select(range(2)))


@pytest.fixture(scope="session")
def finished(dataset, tmp_path_factory):
    """Folder of a run of all stages, and the stages in their order; tests that use it are in one
    xdist group."""
    folder, stages = tmp_path_factory.mktemp("runs") / "finished", miniature_runs.Stages()
    miniature_runs.run(dataset, folder, [stages]).train()
    return folder, stages.started
