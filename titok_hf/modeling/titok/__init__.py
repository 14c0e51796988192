"""The 1D tokenizer."""

from .configuration_titok import TiTokConfig
from .image_processing_titok import TiTokImageProcessor
from .modeling_titok import TiTokModel

__all__ = ["TiTokConfig", "TiTokImageProcessor", "TiTokModel"]
