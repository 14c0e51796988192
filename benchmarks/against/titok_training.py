"""A step of TiTok's warm-up beside bytedance/1d-tokenizer, which needs `pip install einops omegaconf`.

A step computes the proxy codes of the images by a frozen MaskGIT-VQGAN, the loss, and the gradients, clips
them, and updates the weights by AdamW and their moving average. The learning rate is constant. The
reference is its `scripts/train_titok.py` with the settings of `configs/training/TiTok/stage1`, except for
the GradScaler of float16; ours is `TiTokTrainer` with `WarmupObjective`. Neither reads images. A side takes
about 4 GB, so that `--sides` should name few at a time.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .setup import Parts, Setup
from .titok import open_checkout, save

if TYPE_CHECKING:
    from titok_hf.training import TiTokTrainer

SIDES = ("eager", "compiled", "reference-bfloat16", "eager-bfloat16")
GFLOP = {"titok-b-64-warmup": {"step": 484}}  # `python -m titok_hf.training.flops titok-b-64`
LEARNING_RATE, WEIGHT_DECAY, BETA2, EMA_DECAY = 1e-4, 1e-4, 0.99, 0.999  # as in the reference


def reference_side(setup: Setup) -> Parts:
    """Builds the reference's model, saves its weights, and returns what is timed."""
    from titok_hf import MaskGitVQGANConfig, MaskGitVQGANModel
    from titok_hf.conversion.convert import write_official

    open_checkout(setup.checkout)
    from modeling.modules import EMAModel, ReconstructionLoss_Stage1
    from modeling.titok import PretrainedTokenizer, TiTok
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(setup.checkout) / "configs/training/TiTok/stage1/titok_b64.yaml")
    model = TiTok(config)
    if setup.side == "reference":
        save(model, config, setup.path / "tokenizer")
        config_of_vqgan = MaskGitVQGANConfig(shortcut_of_output=True)
        write_official(MaskGitVQGANModel(config_of_vqgan), setup.path / "vqgan", {})
    vqgan = PretrainedTokenizer(setup.path / "vqgan/maskgit-vqgan-imagenet-f16-256.bin")
    vqgan.to(setup.device)
    model.to(setup.device).train()
    loss_module = ReconstructionLoss_Stage1(config)
    average = EMAModel(model.parameters(), decay=EMA_DECAY, model_cls=TiTok, config=config)
    excluded = ("ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed")
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim >= 2 and not any(part in name for part in excluded)
        groups[decayed].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": WEIGHT_DECAY}, {"params": groups[False]}],
        lr=LEARNING_RATE,
        betas=(0.9, BETA2),
        weight_decay=0.0,
    )
    images = setup.uniform(3, 256, 256)

    def step() -> torch.Tensor:
        proxy_codes = vqgan.encode(images)
        with setup.autocast():
            loss, logged = loss_module(proxy_codes, *model(images))
        for value in logged.values():
            value.item()  # its trainer reads each value in each step
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(model.parameters())
        return loss.detach()

    return {"step": step}


def our_side(setup: Setup) -> Parts:
    """Loads these weights, and returns the same of our package."""
    from titok_hf import MaskGitVQGANModel, TiTokModel
    from titok_hf.training import TiTokTrainer, TiTokTrainingArguments, WarmupObjective

    tokenizer = TiTokModel.from_pretrained(setup.path / "tokenizer")
    vqgan = MaskGitVQGANModel.from_pretrained(setup.path / "vqgan")
    objective = WarmupObjective(tokenizer, vqgan, EMA_DECAY)
    arguments = TiTokTrainingArguments(
        setup.path / "training",
        use_cpu=torch.device(setup.device).type == "cpu",
        learning_rate=LEARNING_RATE,
        adam_beta2=BETA2,
        weight_decay=WEIGHT_DECAY,
        torch_compile=setup.kind == "compiled",
        report_to="none",
    )
    trainer = TiTokTrainer(objective, arguments, data_collator=dict)
    optimizer = trainer.create_optimizer()
    images = setup.uniform(3, tokenizer.config.image_size, tokenizer.config.image_size)
    objective.train()

    return {"step": lambda: training_step(trainer, optimizer, images, setup.autocast())}


def training_step(
    trainer: "TiTokTrainer",
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    autocast: AbstractContextManager,
) -> torch.Tensor:
    """Trains on a batch as the trainer does, without its loader and logs, and returns the loss."""
    objective = trainer.model
    with autocast:
        loss = objective(pixel_values=images).loss
    loss.backward()
    trainer.clip_grad_norm(objective)
    optimizer.step()
    optimizer.zero_grad()
    objective.after_optimizer_step(1)
    return loss.detach()
