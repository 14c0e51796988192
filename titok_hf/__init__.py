"""1D visual tokenizers for the Hugging Face stack."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from . import conversion  # noqa: F401  teaches `from_pretrained` the official formats
from .modeling.diffusers_tokenizer import DiffusersTokenizer
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
from .pipelines import MaskGitScheduler, TiTokPipeline
from .version import __version__

for _config, _model in (
    (TiTokConfig, TiTokModel),
    (MaskGitVQGANConfig, MaskGitVQGANModel),
    (MaskGitConfig, MaskGitModel),
    (MaskGitUViTConfig, MaskGitUViTModel),
    (VTPConfig, VTPModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
AutoImageProcessor.register(TiTokConfig, TiTokImageProcessor)
AutoImageProcessor.register(VTPConfig, VTPImageProcessor)
AutoProcessor.register(VTPConfig, VTPProcessor)

__all__ = [
    "DiffusersTokenizer",
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
]
