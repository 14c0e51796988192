"""Networks, one folder per family. Importing this package registers them with transformers' Auto
classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from .lightning_dit import LightningDiTConfig, LightningDiTModel
from .maskgit import MaskGitConfig, MaskGitModel, MaskGitUViTConfig, MaskGitUViTModel
from .maskgit_vqgan import MaskGitVQGANConfig, MaskGitVQGANModel
from .titok import TiTokConfig, TiTokImageProcessor, TiTokModel
from .vtp import VTPConfig, VTPImageProcessor, VTPModel, VTPProcessor

for _config, _model in (
    (TiTokConfig, TiTokModel),
    (MaskGitVQGANConfig, MaskGitVQGANModel),
    (MaskGitConfig, MaskGitModel),
    (MaskGitUViTConfig, MaskGitUViTModel),
    (VTPConfig, VTPModel),
    (LightningDiTConfig, LightningDiTModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
AutoImageProcessor.register(TiTokConfig, TiTokImageProcessor)
AutoImageProcessor.register(VTPConfig, VTPImageProcessor)
AutoProcessor.register(VTPConfig, VTPProcessor)
