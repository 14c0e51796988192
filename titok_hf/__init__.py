"""1D visual tokenizers for the Hugging Face stack.

Public names are loaded on first use: `import titok_hf` alone imports neither torch nor
transformers.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .modeling.diffusers_tokenizer import DiffusersTokenizer
    from .modeling.lightning_dit import LightningDiTConfig, LightningDiTModel
    from .modeling.maskgit import MaskGitConfig, MaskGitModel, MaskGitUViTConfig, MaskGitUViTModel
    from .modeling.maskgit_vqgan import MaskGitVQGANConfig, MaskGitVQGANModel
    from .modeling.titok import TiTokConfig, TiTokImageProcessor, TiTokModel
    from .modeling.vtp import (
        VTPConfig,
        VTPForImageReconstruction,
        VTPImageProcessor,
        VTPModel,
        VTPProcessor,
        VTPVisionModel,
    )
    from .pipelines import (
        FlowMatchHeunScheduler,
        LatentDiTPipeline,
        MaskGitScheduler,
        TiTokPipeline,
    )
    from .train import train_recipe

__all__ = [
    "DiffusersTokenizer",
    "FlowMatchHeunScheduler",
    "LatentDiTPipeline",
    "LightningDiTConfig",
    "LightningDiTModel",
    "MaskGitConfig",
    "MaskGitModel",
    "MaskGitScheduler",
    "MaskGitUViTConfig",
    "MaskGitUViTModel",
    "MaskGitVQGANConfig",
    "MaskGitVQGANModel",
    "TiTokConfig",
    "TiTokImageProcessor",
    "TiTokModel",
    "TiTokPipeline",
    "VTPConfig",
    "VTPForImageReconstruction",
    "VTPImageProcessor",
    "VTPModel",
    "VTPProcessor",
    "VTPVisionModel",
    "__version__",
    "train_recipe",
]

# Module of each public name, for the import on first use; type checkers read the block above.
_MODULES = {
    "DiffusersTokenizer": "modeling.diffusers_tokenizer",
    "FlowMatchHeunScheduler": "pipelines",
    "LatentDiTPipeline": "pipelines",
    "LightningDiTConfig": "modeling.lightning_dit",
    "LightningDiTModel": "modeling.lightning_dit",
    "MaskGitConfig": "modeling.maskgit",
    "MaskGitModel": "modeling.maskgit",
    "MaskGitScheduler": "pipelines",
    "MaskGitUViTConfig": "modeling.maskgit",
    "MaskGitUViTModel": "modeling.maskgit",
    "MaskGitVQGANConfig": "modeling.maskgit_vqgan",
    "MaskGitVQGANModel": "modeling.maskgit_vqgan",
    "TiTokConfig": "modeling.titok",
    "TiTokImageProcessor": "modeling.titok",
    "TiTokModel": "modeling.titok",
    "TiTokPipeline": "pipelines",
    "VTPConfig": "modeling.vtp",
    "VTPForImageReconstruction": "modeling.vtp",
    "VTPImageProcessor": "modeling.vtp",
    "VTPModel": "modeling.vtp",
    "VTPProcessor": "modeling.vtp",
    "VTPVisionModel": "modeling.vtp",
    "train_recipe": "train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# If transformers is already imported, its Auto classes must know our models from the start.
if "transformers" in sys.modules:
    from . import modeling  # noqa: F401
