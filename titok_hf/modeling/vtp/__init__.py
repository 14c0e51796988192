"""The jointly pre-trained tokenizer."""

from .configuration_vtp import VTPConfig
from .image_processing_vtp import VTPImageProcessor
from .modeling_vtp import (
    VTPForImageReconstruction,
    VTPModel,
    VTPOutput,
    VTPVisionModel,
    VTPVisionOutput,
)
from .processing_vtp import VTPProcessor

__all__ = [
    "VTPConfig",
    "VTPForImageReconstruction",
    "VTPImageProcessor",
    "VTPModel",
    "VTPOutput",
    "VTPProcessor",
    "VTPVisionModel",
    "VTPVisionOutput",
]
