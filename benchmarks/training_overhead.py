"""Overhead of the trainer over a bare loop, for each stage.

    python benchmarks/training_overhead.py

The benchmark trains each stage twice with the same networks and batch size: by a bare loop of
forward pass, backward pass and AdamW on one batch in memory, and by `TiTokTrainer` with JPEG files
that one worker reads, crops and flips, gradient clipping, logs, and a moving average of the
weights. The two take turns. It prints the median times per step, their ratio, and images per
second. The networks are large enough that a step takes a second or more on two cores.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PrinterCallback,
    TrainerCallback,
)

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
    VTPConfig,
    VTPImageProcessor,
    VTPModel,
)
from titok_hf.data import Augmentation, ImageCollator
from titok_hf.data.multi_crop import MultiCrop
from titok_hf.data.pretraining import (
    RECONSTRUCTION,
    SELF_SUPERVISION,
    PretrainingCollator,
    Subset,
)
from titok_hf.data.text_tokenizers import train_text_tokenizer
from titok_hf.training import (
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
from titok_hf.training.pretraining import VTPPretrainingObjective
from titok_hf.training.self_supervision import DINOHead

EMA_DECAY = 0.999
VOCABULARY, CONTEXT = 512, 16  # of texts
STAGES = (
    "vqgan",
    "warmup",
    "decoder_finetuning",
    "single_stage",
    "generator",
    "vtp_pretraining",
    "latent_generator",
)


def make_objectives(
    image_size: int, width: int, depth: int
) -> dict[str, Callable[[float], Objective]]:
    """Returns for each stage a function from the decay of the moving average to its objective."""
    vqgan_config = MaskGitVQGANConfig(
        image_size=image_size,
        hidden_channels=32,
        norm_num_groups=8,
        latent_channels=64,
        num_res_blocks=1,
    )
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 64}
    tokenizer = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()
    }
    tokenizer |= {"image_size": image_size}
    vqgan = MaskGitVQGANModel(vqgan_config)
    warm = TiTokModel(TiTokConfig(vqgan_config=vqgan_config.to_dict(), **tokenizer))
    generator = MaskGitConfig(**sizes, intermediate_size=4 * width)
    classifier = ConvNextConfig(image_size=image_size, depths=[1, 1, 3, 1], num_labels=10)

    def painting(
        model: TiTokModel, freeze_encoder: bool, ema_decay: float
    ) -> ReconstructionObjective:
        return ReconstructionObjective(
            model,
            freeze_encoder=freeze_encoder,
            perceptual=PerceptualLoss(ConvNextForImageClassification(classifier), image_size),
            discriminator=PatchDiscriminator(hidden_channels=32),
            perceptual_weight=0.1,
            adversarial_weight=0.01,
            lecam_weight=0.001,
            ema_decay=ema_decay,
        )

    parts = ("vision", "decoder", "text")
    vtp = {f"{part}_{name}": value for part in parts for name, value in sizes.items()}
    vtp |= {"image_size": image_size, "text_intermediate_size": 4 * width}
    vtp |= {"text_vocab_size": VOCABULARY, "text_context_length": CONTEXT}

    def pretraining(ema_decay: float) -> VTPPretrainingObjective:
        return VTPPretrainingObjective(
            VTPModel(VTPConfig(**vtp)),
            DINOHead(width, num_prototypes=4096),
            PerceptualLoss(ConvNextForImageClassification(classifier), image_size),
            ema_decay=ema_decay,
        )

    continuous = TiTokModel(TiTokConfig(head="pixels", quantizer="kl", **tokenizer))
    latents = continuous.config.num_latent_tokens, continuous.config.latent_dim

    def flow(ema_decay: float) -> LatentFlowObjective:
        config = LightningDiTConfig(
            **sizes,
            dimensions=1,
            sample_size=latents[0],
            in_channels=latents[1],
            latent_mean=[0.0] * latents[1],
            latent_std=[1.0] * latents[1],
        )
        return LatentFlowObjective(LightningDiTModel(config), continuous, ema_decay=ema_decay)

    return {
        "vtp_pretraining": pretraining,
        "latent_generator": flow,
        "vqgan": lambda decay: ReconstructionObjective(
            MaskGitVQGANModel(vqgan_config), ema_decay=decay
        ),
        "warmup": lambda decay: WarmupObjective(warm, vqgan, decay),
        "decoder_finetuning": lambda decay: painting(warm.with_pixel_decoder(vqgan), True, decay),
        "single_stage": lambda decay: painting(
            TiTokModel(TiTokConfig(head="pixels", **tokenizer)), False, decay
        ),
        "generator": lambda decay: MaskedTokenObjective(
            MaskGitModel(generator), warm, MaskGitScheduler(generator.mask_token_id), decay
        ),
    }


def make_collator(stage: str, image_size: int, batch_size: int) -> ImageCollator:
    """Returns the collator of a stage."""
    if stage == "vtp_pretraining":
        half = max(2, batch_size // 2)
        sizes = {"size": half, "global_batch_size": batch_size, "batch_size": batch_size}
        return PretrainingCollator(
            VTPImageProcessor.from_image_size(image_size),
            augmentation=Augmentation(crop="resized"),
            tokenizer=train_text_tokenizer(["a picture of class 0"], VOCABULARY),
            context_length=CONTEXT,
            reconstruction=Subset("reconstruction", **sizes, kind=RECONSTRUCTION),
            self_supervision=Subset("self_supervision", **sizes, kind=SELF_SUPERVISION),
            multi_crop=MultiCrop(image_size, max(16, image_size // 2 // 16 * 16)),
        )
    return ImageCollator(
        TiTokImageProcessor.from_image_size(image_size),
        label_column="label" if stage.endswith("generator") else None,
        augmentation=Augmentation(crop="random", horizontal_flip=True),
    )


def bare_loop(objective: Objective, batch: dict[str, torch.Tensor], num_steps: int) -> float:
    """Returns the mean seconds per step without the first step."""
    parameters = [
        p for _, network in objective.networks() for p in network.parameters() if p.requires_grad
    ]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    objective.train()
    for step in range(num_steps + 1):
        if step == 1:
            started = time.perf_counter()
        objective(**batch, step=step).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / num_steps


class Clock(TrainerCallback):
    """Records the time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.times.append(time.perf_counter())


def main(
    images: int,
    image_size: int,
    batch_size: int,
    width: int,
    depth: int,
    steps: int,
    rounds: int,
    stages: Sequence[str] = STAGES,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for index in range(images):
            path = Path(folder) / "data" / str(index % 10) / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(path)
        dataset = load_dataset(
            "imagefolder", data_dir=f"{folder}/data", cache_dir=f"{folder}/cache"
        )["train"]
        dataset = dataset.add_column(
            "text", [f"a picture of class {n % 10}" for n in range(images)]
        )
        objectives = make_objectives(image_size, width, depth)
        for stage in stages:
            make = objectives[stage]
            collator = make_collator(stage, image_size, batch_size)
            bare, trained = [], []
            for number in range(rounds):
                clock = Clock()
                arguments = TiTokTrainingArguments(
                    output_dir=f"{folder}/{stage}-{number}",
                    use_cpu=not torch.accelerator.is_available(),
                    max_steps=steps + 1,
                    learning_rate=1e-4,
                    per_device_train_batch_size=batch_size,
                    dataloader_num_workers=1,
                    logging_steps=max(1, steps // 2),
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                )
                trainer = TiTokTrainer(
                    make(EMA_DECAY), arguments, collator, dataset, callbacks=[clock]
                )
                trainer.remove_callback(PrinterCallback)
                trainer.train()
                trained.append((clock.times[-1] - clock.times[0]) / steps)
                batch = {
                    name: t.to(arguments.device) for name, t in next(iter(trainer.loader)).items()
                }
                bare.append(bare_loop(make(0.0).to(arguments.device), batch, steps))
            ratio = statistics.median(t / b for t, b in zip(trained, bare, strict=True))
            plain, ours = statistics.median(bare), statistics.median(trained)
            print(
                f"{stage}: bare loop {plain:.2f} s a step, {batch_size / plain:.1f} images/s; "
                f"trainer {ours:.2f} s, {batch_size / ours:.1f} images/s; ratio {ratio:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    main(**vars(parser.parse_args()))
