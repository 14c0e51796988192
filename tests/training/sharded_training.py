"""A few steps of each stage under FSDP by the accelerate configuration that ships; each process runs this file.

Accelerate itself does not use FSDP on CPUs, so its function that shards a model is called here.
"""

import os
import sys
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import titok_hf
from titok_hf import (
    MaskGitConfig,
    MaskGitModel,
    MaskGitScheduler,
    MaskGitVQGANConfig,
    MaskGitVQGANModel,
    TiTokConfig,
    TiTokModel,
)
from titok_hf.training import MaskedTokenObjective, PatchDiscriminator, ReconstructionObjective, WarmupObjective

CONFIGURATION = Path(titok_hf.__file__).parent / "recipes" / "accelerate" / "fsdp.yaml"
BATCH_SIZE = 4
STEPS = 4
VQGAN = MaskGitVQGANConfig(
    image_size=32,
    hidden_channels=8,
    channel_multipliers=(1, 1, 2, 2),
    num_res_blocks=1,
    norm_num_groups=4,
    latent_channels=8,
    codebook_size=64,
)
TITOK = {
    "image_size": 32,
    "encoder_patch_size": 8,
    "decoder_patch_size": 8,
    "encoder_hidden_size": 32,
    "encoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 2,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "num_latent_tokens": 8,
    "latent_dim": 6,
    "codebook_size": 64,
    "vqgan_config": VQGAN.to_dict(),
    "initializer_range": 0.2,
}


def warmup():
    objective = WarmupObjective(TiTokModel(TiTokConfig(**TITOK)), MaskGitVQGANModel(VQGAN), ema_decay=0.9)
    objective.codebook_revival.interval, objective.codebook_revival.decay = 2, 0.1  # so that codes are revived
    return objective


def decoder_finetuning():
    return ReconstructionObjective(
        TiTokModel(TiTokConfig(head="vqgan_decoder", **TITOK)),
        freeze_encoder=True,
        discriminator=PatchDiscriminator(hidden_channels=8, num_stages=2),
        adversarial_weight=0.1,
        lecam_weight=0.01,
        lecam_decay=0.5,
        ema_decay=0.9,
    )


def generator():
    config = MaskGitConfig(
        codebook_size=64,
        num_tokens=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    scheduler = MaskGitScheduler(config.mask_token_id)
    return MaskedTokenObjective(MaskGitModel(config), TiTokModel(TiTokConfig(**TITOK)), scheduler, ema_decay=0.9)


STAGES = {stage.__name__: stage for stage in (warmup, decoder_finetuning, generator)}


def train(stage, shard):
    """The objective after some steps, and its losses; each process takes its part of the batches."""
    torch.manual_seed(0)
    objective = STAGES[stage]()
    accelerator = Accelerator(cpu=True)
    rank, processes = accelerator.process_index, accelerator.num_processes
    if shard:
        os.environ |= {name.upper(): str(value) for name, value in shard.items()}  # as `accelerate launch` does
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        objective = fsdp2_prepare_model(accelerator, objective)
    parameters = [p for _, network in objective.networks() for p in network.parameters() if p.requires_grad]
    # with a smaller eps, the biases of the keys, whose true gradient is 0, would follow the noise of rounding
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, eps=1e-5)
    losses = []
    for step in range(STEPS):
        batch = {"pixel_values": torch.rand(BATCH_SIZE, 3, 32, 32)}
        if stage == "generator":
            draws = torch.rand(BATCH_SIZE, objective.num_draws)
            draws[:, 0] = 0.5  # as many masks in each, so that losses of parts of a batch count the same
            batch |= {"class_labels": torch.arange(BATCH_SIZE), "draws": draws}
        objective.train()
        loss = objective(**{name: tensor.chunk(processes)[rank] for name, tensor in batch.items()}, step=step).loss
        loss.backward()
        for _, network in objective.networks():
            torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_optimizer_step(step + 1)
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    return objective, losses


def main(folder):
    shard = yaml.safe_load(CONFIGURATION.read_text())["fsdp_config"]
    torch.set_num_threads(1)
    for stage in STAGES:
        objective, losses = train(stage, shard)
        local = sum(p.to_local().numel() for p in objective.parameters())
        whole = sum(p.numel() for p in objective.parameters())
        state = get_model_state_dict(objective, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if os.environ["RANK"] == "0":
            torch.save({"losses": losses, "state": state, "share": local / whole}, folder / f"{stage}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
