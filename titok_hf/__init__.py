"""1D visual tokenizers for the Hugging Face stack."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from . import conversion  # noqa: F401  teaches `from_pretrained` the official formats
from .modeling.maskgit import MaskGitConfig, MaskGitModel, MaskGitUViTConfig, MaskGitUViTModel
from .modeling.maskgit_vqgan import MaskGitVQGANConfig, MaskGitVQGANModel
from .modeling.titok import TiTokConfig, TiTokImageProcessor, TiTokModel
from .pipelines import MaskGitScheduler, TiTokPipeline
from .version import __version__

for _config, _model in (
    (TiTokConfig, TiTokModel),
    (MaskGitVQGANConfig, MaskGitVQGANModel),
    (MaskGitConfig, MaskGitModel),
    (MaskGitUViTConfig, MaskGitUViTModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
AutoImageProcessor.register(TiTokConfig, TiTokImageProcessor)

__all__ = [
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
    "__version__",
]
