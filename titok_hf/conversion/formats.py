"""The official formats."""

from transformers import PreTrainedConfig

from .lightning_dit import OfficialLightningDiT
from .maskgit import OfficialMaskGitUViT, OfficialMaskGitViT
from .maskgit_vqgan import OfficialMaskGitVQGAN
from .official import OfficialFormat
from .titok import OfficialTiTok
from .va_vae import OfficialAutoencoderKL
from .vtp import OfficialVTP

# By the family's configuration class.
FORMATS: dict[type[PreTrainedConfig], OfficialFormat] = {
    official_format.model_class.config_class: official_format
    for official_format in (
        OfficialTiTok(),
        OfficialMaskGitViT(),
        OfficialMaskGitUViT(),
        OfficialMaskGitVQGAN(),
        OfficialVTP(),
        OfficialLightningDiT(),
    )
}
ALL_FORMATS: tuple[OfficialFormat, ...] = (*FORMATS.values(), OfficialAutoencoderKL())
