"""The 2D tokenizer whose codes are TiTok's proxy codes."""

from .configuration_maskgit_vqgan import MaskGitVQGANConfig
from .modeling_maskgit_vqgan import MaskGitVQGANModel

__all__ = ["MaskGitVQGANConfig", "MaskGitVQGANModel"]
