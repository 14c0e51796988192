"""A few steps of every stage under FSDP by the accelerate configuration that ships; each process
runs this module.

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

from .distributed_stages import make_objective
from .tiny_pretraining import batches

CONFIGURATION = Path(titok_hf.__file__).parent / "recipes" / "accelerate" / "fsdp.yaml"
BATCH_SIZE = 4
STEPS = 4
STAGES = ("vqgan", "classifier", "warmup-vq", "decoder_finetuning", "single_stage-kl", "generator")
STAGES += ("vtp_pretraining",)


def train(stage, shard):
    """The objective after some steps, and its losses; each process takes its part of the batches."""
    objective = make_objective(stage, discriminator_start=1)
    if objective.codebook_revival is not None:
        objective.codebook_revival.interval, objective.codebook_revival.decay = (
            2,
            0.1,
        )  # so that codes are revived
    accelerator = Accelerator(cpu=True)
    rank, processes = accelerator.process_index, accelerator.num_processes
    if shard:
        os.environ |= {
            name.upper(): str(value) for name, value in shard.items()
        }  # as `accelerate launch` does
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        objective = fsdp2_prepare_model(accelerator, objective)
    parameters = [
        p for _, network in objective.networks() for p in network.parameters() if p.requires_grad
    ]
    # with a smaller eps, the biases of the keys, whose true gradient is 0, would follow the noise
    # of rounding
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, eps=1e-5)
    torch.manual_seed(0)
    losses = []
    if stage == "vtp_pretraining":
        parts = batches(objective, BATCH_SIZE // processes, rank, processes)
    for step in range(STEPS):
        batch = {"pixel_values": torch.rand(BATCH_SIZE, 3, 32, 32)}
        if stage in ("classifier", "generator"):
            batch["class_labels"] = torch.arange(BATCH_SIZE)
        if objective.num_draws:
            batch["draws"] = torch.rand(BATCH_SIZE, objective.num_draws)
            batch["draws"][:, 0] = (
                0.5  # as many masks in each, so that losses of parts of a batch count the same
            )
        part = {name: tensor.chunk(processes)[rank] for name, tensor in batch.items()}
        if stage == "vtp_pretraining":
            part = next(parts)
        objective.train()
        loss = objective(**part, step=step).loss
        loss.backward()
        for _, network in objective.networks():
            torch.nn.utils.clip_grad_norm_(
                [p for p in network.parameters() if p.requires_grad], 1.0
            )
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
        state = get_model_state_dict(
            objective, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if os.environ["RANK"] == "0":
            torch.save(
                {"losses": losses, "state": state, "share": local / whole}, folder / f"{stage}.pt"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
