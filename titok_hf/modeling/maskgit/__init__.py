"""The masked generators."""

from .configuration_maskgit import MaskGitConfig, MaskGitUViTConfig
from .modeling_maskgit import MaskGitModel, MaskGitOutput, MaskGitUViTModel

__all__ = [
    "MaskGitConfig",
    "MaskGitModel",
    "MaskGitOutput",
    "MaskGitUViTConfig",
    "MaskGitUViTModel",
]
