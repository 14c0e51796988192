"""The gradients of pre-training's first step on two processes; part of `distributed_parts.py`."""

import torch
from safetensors.torch import save_file
from torch import distributed
from transformers import ConvNextConfig, ConvNextModel

from titok_hf.distributed import process_state
from titok_hf.training.alignment import Alignment

from .tiny_pretraining import WEIGHTS, batches, make_pretraining

GLOBAL_BATCH_SIZE = 8
VARIANTS = {
    "all": {},
    "sigmoid": {"contrast": "sigmoid"},
    "centering": {"centering": "mean"},
    "ssl": {name: float(name == "ssl_weight") for name in WEIGHTS},
    "clip": {name: float(name == "clip_weight") for name in WEIGHTS},
    "reconstruction": {name: float(name == "reconstruction_weight") for name in WEIGHTS},
    "latents": {
        "alignment_weight": 0.5,
        "equivariance_probability": 1.0,
        "scale_equivariance_weight": 0.25,
        "latent_noise": 0.5,
    },
}


def gradients(variant, rank=0, world_size=1):
    """The loss and the gradient of every weight, in float64, of this process's part of a batch."""
    torch.manual_seed(0)
    arguments = dict(VARIANTS[variant])
    if arguments.get("alignment_weight"):
        config = ConvNextConfig(patch_size=4, num_stages=2, hidden_sizes=[4, 8], depths=[1, 1])
        arguments["alignment"] = Alignment(ConvNextModel(config), 4, image_size=32)
    objective = make_pretraining(ssl_drop_rate=0.2, clip_drop_rate=0.3, **arguments)
    objective = objective.double()
    batch = next(batches(objective, GLOBAL_BATCH_SIZE // world_size, rank, world_size))
    loss = objective(**batch).loss
    loss.backward()
    found = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    return found | {"loss": loss.detach()}


def main(folder):
    rank = process_state().process_index
    for variant in VARIANTS:
        found = gradients(variant, rank, 2)
        for value in found.values():
            distributed.all_reduce(value)
            value /= 2
        if rank == 0:
            save_file(found, folder / f"{variant}.safetensors")
