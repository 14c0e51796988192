"""The class-conditional generator of latents."""

from .configuration_lightning_dit import LightningDiTConfig
from .modeling_lightning_dit import LightningDiTModel, LightningDiTOutput

__all__ = ["LightningDiTConfig", "LightningDiTModel", "LightningDiTOutput"]
