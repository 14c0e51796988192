"""Conversion of official checkpoints to ours and back: one file per family."""

from .convert import OfficialCheckpoint, build_pipeline, convert, convert_to_official, load_official
from .formats import FORMATS
from .official import OfficialFormat

__all__ = [
    "FORMATS",
    "OfficialCheckpoint",
    "OfficialFormat",
    "build_pipeline",
    "convert",
    "convert_to_official",
    "load_official",
]
