"""The reference's format of MaskGIT-VQGAN: `maskgit-vqgan-imagenet-f16-256.bin` without a
configuration."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig

from ..hub.errors import explain_hub_errors
from ..modeling.maskgit_vqgan import MaskGitVQGANConfig, MaskGitVQGANModel
from .official import OfficialFormat, Shapes

FILE_NAME = "maskgit-vqgan-imagenet-f16-256.bin"


class OfficialMaskGitVQGAN(OfficialFormat):
    """The proxy-code VQGAN, whose residual shortcuts are computed from the blocks' own output."""

    model_class = MaskGitVQGANModel
    file_name = FILE_NAME

    def recognizes(self, shapes: Shapes) -> bool:
        return "encoder.conv_in.weight" in shapes and "quantize.embedding.weight" in shapes

    def find_config(self, path: str | Path, **location: Any) -> dict[str, Any] | None:
        try:
            return super().find_config(path, **location)
        except OSError:
            # with only the bare file, it is the released VQGAN, whose sizes are our defaults
            if Path(path).is_dir():
                if (Path(path) / location.get("subfolder", "") / FILE_NAME).exists():
                    return {}
                raise
            try:
                self.local_folder(path, **location)
            except (FileNotFoundError, HFValidationError):
                pass
            else:
                return {}
            raise

    def local_folder(self, path: str | Path, subfolder: str = "", **location: Any) -> Path:
        if Path(path).is_dir():
            return Path(path) / subfolder
        with explain_hub_errors(str(path)):
            return Path(
                hf_hub_download(str(path), FILE_NAME, subfolder=subfolder or None, **location)
            ).parent

    def config_fields(self, official_config: dict[str, Any]) -> dict[str, Any]:
        return {**official_config, "shortcut_of_output": True}

    def config_from_shapes(self, shapes: Shapes) -> dict[str, Any]:
        hidden_channels = shapes["encoder.conv_in.weight"][0]
        stages = sum(
            bool(re.fullmatch(r"encoder\.down\.\d+\.block\.0\.conv1\.weight", name))
            for name in shapes
        )
        return {
            "hidden_channels": hidden_channels,
            "channel_multipliers": [
                shapes[f"encoder.down.{stage}.block.0.conv1.weight"][0] // hidden_channels
                for stage in range(stages)
            ],
            "num_res_blocks": sum(
                bool(re.fullmatch(r"encoder\.mid\.\d+\.conv1\.weight", name)) for name in shapes
            ),
            "latent_channels": shapes["quantize.embedding.weight"][1],
            "codebook_size": shapes["quantize.embedding.weight"][0],
        }

    def official_config(self, config: MaskGitVQGANConfig) -> dict[str, Any]:
        if not config.shortcut_of_output:
            raise ValueError(
                "The official VQGAN computes residual shortcuts from the blocks' own output: only "
                "a model with `shortcut_of_output=True` can be stored in its format."
            )
        return {}

    def official_name(self, name: str, config: PreTrainedConfig) -> str:
        return vqgan_name(name, config)


def vqgan_name(name: str, config: MaskGitVQGANConfig) -> str:
    """Returns the official name of a VQGAN weight; the official decoder counts resolutions from the
    finest, ours from the coarsest."""
    last = len(config.channel_multipliers) - 1
    name = name.replace("quantizer.codebook", "quantize.embedding").replace(
        ".shortcut.", ".nin_shortcut."
    )
    name = re.sub(r"\bdown\.(\d+)\.", r"down.\1.block.", name)
    name = re.sub(r"\bup\.(\d+)\.", lambda match: f"up.{last - int(match[1])}.block.", name)
    return re.sub(
        r"\bupsample\.(\d+)\.", lambda match: f"up.{last - int(match[1])}.upsample_conv.", name
    )
