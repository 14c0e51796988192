"""The format of latent diffusion's KL autoencoder, in which VA-VAE (arXiv 2501.01423) was released."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL

from .official import OfficialFormat, Shapes

# Patterns of diffusers' names and their official replacements, applied in this order.
NAMES = (
    (r"\.(down|up)_blocks\.", r".\1."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)


class OfficialAutoencoderKL(OfficialFormat):
    """VA-VAE and other autoencoders of latent diffusion, which become diffusers' `AutoencoderKL`.

    Its images are in [-1, 1]. Tensors of the losses and of the foundation model, which only training
    uses, are left out.
    """

    model_class = AutoencoderKL

    def recognizes(self, shapes: Shapes) -> bool:
        return {"encoder.mid.attn_1.q.weight", "quant_conv.weight"} <= shapes.keys()

    def config_fields(self, official_config: dict[str, Any]) -> dict[str, Any]:
        if "block_out_channels" not in official_config:
            raise ValueError(
                "The configuration of a KL autoencoder follows from its weights: leave out `config` "
                "(`--config`)."
            )
        return official_config

    def config_from_shapes(self, shapes: Shapes) -> dict[str, Any]:
        channels, attentive = [], []
        while (level := f"encoder.down.{len(channels)}") + ".block.0.conv1.weight" in shapes:
            channels.append(shapes[f"{level}.block.0.conv1.weight"][0])
            attentive.append(f"{level}.attn.0.q.weight" in shapes)
        return {
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "latent_channels": shapes["post_quant_conv.weight"][0],
            "block_out_channels": channels,
            "layers_per_block": sum(
                bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name))
                for name in shapes
            ),
            "down_block_types": [
                "AttnDownEncoderBlock2D" if attends else "DownEncoderBlock2D"
                for attends in attentive
            ],
            "up_block_types": [
                "AttnUpDecoderBlock2D" if attends else "UpDecoderBlock2D"
                for attends in reversed(attentive)
            ],
            "sample_size": 256,
            "scaling_factor": 1.0,  # latents are normalized by their statistics instead
        }

    def official_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def official_name(self, name: str, config: Mapping[str, Any]) -> str:
        for ours, official in NAMES:
            name = re.sub(ours, official, name)
        last = len(config["block_out_channels"]) - 1  # the reference counts from the image
        return re.sub(
            r"decoder\.up\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", name
        )

    def official_axes(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        # attention is by convolutions there
        return (*shape, 1, 1) if ".attentions." in name and len(shape) == 2 else tuple(shape)

    def our_config(self, official_config: dict[str, Any]) -> dict[str, Any]:
        return self.config_fields(official_config)

    def meta_state_dict(self, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            return AutoencoderKL.from_config(config).state_dict()

    def to_ours(
        self, tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        trained_with = ("loss.", "foundation_model.", "linear_proj.")
        for name in [name for name in tensors if name.startswith(trained_with)]:
            del tensors[name]
        return super().to_ours(tensors, *args, **kwargs)

    def model(
        self, config: Mapping[str, Any], state_dict: dict[str, torch.Tensor]
    ) -> AutoencoderKL:
        with torch.device("meta"):
            autoencoder = AutoencoderKL.from_config(config)
        autoencoder.load_state_dict(state_dict, assign=True)
        return autoencoder
