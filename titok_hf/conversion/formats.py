"""All official formats, told to `from_pretrained` of the models they are of."""

from .maskgit import OfficialMaskGitUViT, OfficialMaskGitViT
from .maskgit_vqgan import OfficialMaskGitVQGAN
from .official import OfficialFormat
from .titok import OfficialTiTok
from .vtp import OfficialVTP

FORMATS: tuple[OfficialFormat, ...] = (
    OfficialTiTok(),
    OfficialMaskGitViT(),
    OfficialMaskGitUViT(),
    OfficialMaskGitVQGAN(),
    OfficialVTP(),
)
for _format in FORMATS:
    _format.model_class.config_class.official_format = _format
