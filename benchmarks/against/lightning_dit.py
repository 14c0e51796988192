"""LightningDiT on latents of 16x16 beside hustvl/LightningDiT, which needs
`pip install einops scipy torchdiffeq`.

The reference runs as its `inference.py` does, in float32; its code compiles each block by itself. It samples
with the settings of `configs/lightningdit_xl_vavae_f16d32.yaml`, but in 3 steps: without guidance, and then
twice with. Of its 249 steps, 73 have none. The reference computes "no class" in these, too.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from titok_hf.settings import load_yaml

from .setup import Parts, Setup, stand_in

SIDES = ("eager", "compiled-float32", "reference-bfloat16", "fast-bfloat16")
STEPS, CHANNELS, SIZE = 3, 32, 16
# GFLOP of an image: a forward pass, counted by torch, and 3 steps, which need 5 of them
GFLOP = {
    "lightningdit-b-1": {"forward": 46.0, "sample": 5 * 46.0},
    "lightningdit-xl-1": {"forward": 237.3, "sample": 5 * 237.3},
}
NAMES = {"lightningdit-b-1": "LightningDiT-B/1", "lightningdit-xl-1": "LightningDiT-XL/1"}


class PatchEmbed(nn.Module):
    """Stand-in for that of timm, which would need torchvision: a convolution of patches."""

    def __init__(self, size: int, patch_size: int, channels: int, width: int, bias: bool):
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.num_patches = (size // patch_size) ** 2
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def reference_side(setup: Setup) -> Parts:
    """Builds the reference's model, saves its weights, and returns what is timed."""
    sys.path.insert(0, setup.checkout)
    stand_in("timm.models.vision_transformer", PatchEmbed=PatchEmbed, Mlp=None)
    # for layers in the file of its RMSNorm that it does not use
    layers = ("ColumnParallelLinear", "ParallelEmbedding", "RowParallelLinear")
    stand_in("fairscale.nn.model_parallel.layers", **dict.fromkeys(layers))
    stand_in("fairscale.nn.model_parallel.initialize")
    from models.lightningdit import LightningDiT_models
    from transport import Sampler, create_transport

    config = load_yaml(Path(setup.checkout) / "configs/lightningdit_xl_vavae_f16d32.yaml")
    config["model"]["model_type"] = NAMES[setup.model]
    model = LightningDiT_models[NAMES[setup.model]](
        input_size=SIZE,
        num_classes=config["data"]["num_classes"],
        in_channels=CHANNELS,
        **{
            name: config["model"][name]
            for name in ("use_qknorm", "use_swiglu", "use_rope", "use_rmsnorm", "wo_shift")
        },
    ).eval()
    for parameter in model.parameters():
        if not parameter.any():  # a new one computes zeros
            nn.init.normal_(parameter, std=0.02)
    if setup.side == "reference":
        torch.save({"ema": model.state_dict()}, setup.path / "lightningdit.pt")
        (setup.path / "run.yaml").write_text(json.dumps(config))
    model.to(setup.device)
    transport = create_transport(**config["transport"])
    settings = config["sample"]
    solve = Sampler(transport).sample_ode(
        sampling_method=settings["sampling_method"],
        num_steps=STEPS + 1,  # it counts points
        atol=settings["atol"],
        rtol=settings["rtol"],
        reverse=settings["reverse"],
        timestep_shift=settings["timestep_shift"],
    )
    noise, times, labels = inputs(setup)

    def sample() -> torch.Tensor:
        none = torch.full_like(labels, config["data"]["num_classes"])
        samples = solve(
            torch.cat([noise, noise]),
            model.forward_with_cfg,
            y=torch.cat([labels, none]),
            cfg_scale=settings["cfg_scale"],
            cfg_interval=True,
            cfg_interval_start=settings["cfg_interval_start"],
        )
        return samples[-1].chunk(2)[0]

    return setup.inference({"forward": lambda: model(noise, times, labels), "sample": sample})


def our_side(setup: Setup) -> Parts:
    """Loads these weights, and returns the same of our package."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    from titok_hf import LatentDiTPipeline
    from titok_hf.conversion import load_official
    from titok_hf.conversion.lightning_dit import official_flow_sampling

    transformer = load_official(setup.path / "lightningdit.pt").model
    statistics = {"latent_mean": [0.0] * CHANNELS, "latent_std": [1.0] * CHANNELS}
    transformer.config.update(statistics)
    run = setup.path / "run.yaml"
    pipeline = LatentDiTPipeline(
        AutoencoderKL(latent_channels=CHANNELS),  # decodes nothing here
        transformer,
        FlowMatchEulerDiscreteScheduler(),
        **official_flow_sampling(load_yaml(run), run),
    ).to(setup.device)
    pipeline.set_progress_bar_config(disable=True)
    if setup.kind != "eager":
        backend = "inductor" if setup.kind == "compiled" else None
        pipeline.compile(setup.batch_size, setup.dtype, backend)
    noise, times, labels = inputs(setup)

    def sample() -> torch.Tensor:
        return pipeline(
            labels.tolist(), num_inference_steps=STEPS, latents=noise, output_type="latent"
        ).latents

    return setup.inference(
        {
            "forward": lambda: pipeline.network("transformer")(noise, times, labels),
            "sample": sample,
        }
    )


def inputs(setup: Setup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns noise `(B, 32, 16, 16)`, times `(B,)` and labels `(B,)`."""
    noise = (setup.uniform(CHANNELS, SIZE, SIZE) - 0.5) * 12**0.5  # of unit variance
    return noise, setup.uniform(), setup.ids(1000)
