"""Short runs of every stage on digits, for the tests of training in several processes: each process
runs this file."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import distributed
from transformers import ConvNextConfig, ConvNextForImageClassification, PrinterCallback

from titok_hf import (
    LightningDiTConfig,
    LightningDiTModel,
    MaskGitConfig,
    MaskGitModel,
    MaskGitScheduler,
    MaskGitVQGANConfig,
    MaskGitVQGANModel,
    TiTokConfig,
    TiTokImageProcessor,
    TiTokModel,
)
from titok_hf.data import ImageCollator
from titok_hf.data.digits import load_digits_dataset
from titok_hf.training import (
    ClassifierObjective,
    MaskedTokenObjective,
    Objective,
    PatchDiscriminator,
    PerceptualLoss,
    ReconstructionObjective,
    TiTokTrainer,
    TiTokTrainingArguments,
    WarmupObjective,
)
from titok_hf.training.flow import LatentFlowObjective
from titok_hf.training.losses import mean_over_processes
from titok_hf.training.pretraining import VTPPretrainingObjective

sys.path.append(str(Path(__file__).parents[1]))  # this file also runs as a script
from training.tiny_pretraining import captioned_digits, make_collator, make_pretraining

GLOBAL_BATCH_SIZE = 8
MAX_STEPS = 20
STAGES = (
    "vqgan",
    "classifier",
    "warmup-vq",
    "warmup-kl",
    "decoder_finetuning",
    "single_stage-vq",
    "single_stage-kl",
    "generator",
    "vtp_pretraining",
    "latent_generator",
)
ACCUMULATED = (
    "warmup-vq",
    "generator",
    "latent_generator",
)  # also in two processes that accumulate
RESUMED = ("warmup-vq", "decoder_finetuning", "generator", "vtp_pretraining", "latent_generator")
CHECKPOINT = 5  # of 10 steps
VQGAN = {
    "image_size": 32,
    "hidden_channels": 8,
    "channel_multipliers": (1, 1, 2, 2),
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "latent_channels": 8,
    "codebook_size": 64,
}


def make_titok(head: str, quantizer: str = "vq") -> TiTokModel:
    return TiTokModel(
        TiTokConfig(
            image_size=32,
            encoder_patch_size=8,
            decoder_patch_size=8,
            encoder_hidden_size=32,
            encoder_num_hidden_layers=1,
            encoder_num_attention_heads=2,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            num_latent_tokens=8,
            latent_dim=6,
            codebook_size=64,
            head=head,
            quantizer=quantizer,
            vqgan_config=None if head == "pixels" else VQGAN,
            initializer_range=0.2,
        )
    )


def make_classifier() -> ConvNextForImageClassification:
    return ConvNextForImageClassification(
        ConvNextConfig(
            image_size=32,
            patch_size=4,
            num_stages=2,
            hidden_sizes=[32, 64],
            depths=[1, 1],
            num_labels=10,
        )
    )


def make_objective(
    stage: str,
    seed: int = 0,
    dropout: float = 0.0,
    discriminator_start: int = MAX_STEPS // 2,
    linear: bool = False,
) -> Objective:
    """An objective with all of the losses of its stage; discriminators start in the middle of the
    run.

    It is the mean over the images of a batch, if it is to be `linear`: without LeCam and adaptive
        weight.
    """
    torch.manual_seed(seed)
    name, _, quantizer = stage.partition("-")
    if name == "classifier":
        return ClassifierObjective(make_classifier(), ema_decay=0.9)
    if name == "latent_generator":
        config = LightningDiTConfig(
            dimensions=1,
            in_channels=6,
            sample_size=8,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_labels=10,
            latent_mean=[0.0] * 6,
            latent_std=[1.0] * 6,
        )
        tokenizer = make_titok("pixels", "kl")
        return LatentFlowObjective(LightningDiTModel(config), tokenizer, ema_decay=0.9)
    if name == "vtp_pretraining":
        return make_pretraining(
            ema_decay=0.9,
            teacher_momentum=0.8,
            teacher_temperature_steps=MAX_STEPS // 2,
            frozen_prototype_steps=2,
            clip_drop_rate=0.3,
            ssl_drop_rate=0.2,
            reconstruction_drop_rate=0.1,
        ).double()  # in float32, rounding the rotation to bfloat16 would jump
    if name == "generator":
        config = MaskGitConfig(
            codebook_size=64,
            num_tokens=8,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            id2label={i: str(i) for i in range(10)},
            hidden_dropout=dropout,
            attention_dropout=dropout,
            initializer_range=0.2,
        )
        tokenizer, scheduler = make_titok("proxy_codes"), MaskGitScheduler(config.mask_token_id)
        return MaskedTokenObjective(MaskGitModel(config), tokenizer, scheduler, ema_decay=0.9)
    adversarial = {
        "perceptual": PerceptualLoss(make_classifier(), 32),
        "discriminator": PatchDiscriminator(hidden_channels=8, num_stages=2),
        "perceptual_weight": 0.1,
        "adversarial_weight": 0.2,
        "lecam_weight": 0.0 if linear else 0.05,
        "discriminator_start": discriminator_start,
        "lecam_decay": 0.9,
        "ema_decay": 0.9,
    }
    if name == "decoder_finetuning":
        return ReconstructionObjective(
            make_titok("vqgan_decoder"), freeze_encoder=True, **adversarial
        )
    if name == "vqgan":
        objective = ReconstructionObjective(
            MaskGitVQGANModel(MaskGitVQGANConfig(**VQGAN)), ema_decay=0.9
        )
    elif name == "warmup":
        vqgan = MaskGitVQGANModel(MaskGitVQGANConfig(**VQGAN))
        objective = WarmupObjective(make_titok("proxy_codes", quantizer), vqgan, ema_decay=0.9)
    else:
        model = make_titok("pixels", quantizer)
        objective = ReconstructionObjective(
            model, distance="l1", adaptive_weight=not linear, **adversarial
        )
    if objective.codebook_revival is not None:
        objective.codebook_revival.decay = (
            0.5  # so that unused codes are dead at the first revival, after step 10
        )
    return objective


def train(
    folder: Path,
    objective: Objective,
    num_processes: int = 1,
    accumulation: int = 1,
    resume: str | None = None,
    **arguments: object,
) -> None:
    """Trains and writes `log.json`, and `{rank}.pt` with the states of objective and optimizer in
    each process.

    The gradient of an attention's key biases is zero but for rounding; AdamW makes steps of the
    size of the learning rate of it, unless its epsilon is above the noise.
    """
    at_once = GLOBAL_BATCH_SIZE // (num_processes * accumulation)
    labelled = isinstance(
        objective, ClassifierObjective | MaskedTokenObjective | LatentFlowObjective
    )
    data, collator = (
        load_digits_dataset()["train"].select(range(36)),
        ImageCollator(
            TiTokImageProcessor.from_image_size(32), label_column="label" if labelled else None
        ),
    )
    if isinstance(objective, VTPPretrainingObjective):
        data, collator = captioned_digits(), make_collator(objective, at_once, GLOBAL_BATCH_SIZE)
    trainer = TiTokTrainer(
        objective,
        TiTokTrainingArguments(
            **{
                "output_dir": str(folder / "trainer"),
                "use_cpu": True,
                "max_steps": MAX_STEPS,
                "per_device_train_batch_size": at_once,
                "gradient_accumulation_steps": accumulation,
                "learning_rate": 1e-3,
                "warmup_steps": 2,
                "weight_decay": 0.01,
                "adam_epsilon": 1e-6,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
                "ddp_find_unused_parameters": False,
                **arguments,
            }
        ),
        train_dataset=data,
        data_collator=collator,
    )
    trainer.remove_callback(PrinterCallback)
    assert trainer.accelerator.num_processes == num_processes
    trainer.train(resume_from_checkpoint=resume)
    state = {
        "objective": objective.state_dict(),
        "optimizer": trainer.optimizer.state_dict()["state"],
    }
    torch.save(state, folder / f"{trainer.accelerator.process_index}.pt")
    if trainer.is_world_process_zero():
        (folder / "log.json").write_text(
            json.dumps([entry for entry in trainer.state.log_history if "loss" in entry])
        )


def folders(root: Path, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Makes a folder for each name."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        yield name, root / name


def check_means() -> None:
    """Means over processes against what every process can compute alone."""
    rank = distributed.get_rank()
    alone = [torch.arange(3.0) * 10**r + r for r in range(2)]
    mine = alone[rank].clone().requires_grad_()
    mean = mean_over_processes(mine)
    torch.testing.assert_close(mean, (alone[0] + alone[1]) / 2)
    mean.square().sum().backward()
    torch.testing.assert_close(mine.grad, alone[0] + alone[1])  # twice the mean: DDP halves it
    assert torch.equal(mine, alone[rank])


def main(root: Path, resume: bool) -> None:
    torch.set_num_threads(1)
    options = {"num_processes": 2, "max_steps": 2 * CHECKPOINT}
    parts = {"dropout": 0.1, "discriminator_start": CHECKPOINT // 2}
    if resume:
        for stage, folder in folders(root / "again", RESUMED):
            checkpoint = root / "whole" / stage / "trainer" / f"checkpoint-{CHECKPOINT}"
            train(folder, make_objective(stage, seed=1, **parts), resume=str(checkpoint), **options)
        return
    for stage, folder in folders(root / "two", STAGES):
        train(folder, make_objective(stage), num_processes=2)
    check_means()
    for stage, folder in folders(root / "accumulated", ACCUMULATED):
        train(folder, make_objective(stage), num_processes=2, accumulation=2)
    for stage, folder in folders(root / "whole", RESUMED):
        train(
            folder,
            make_objective(stage, **parts),
            save_strategy="steps",
            save_steps=CHECKPOINT,
            **options,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "again")
