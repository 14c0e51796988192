"""Images in, token data sets out."""

from .augmentation import Augmentation
from .collator import ImageCollator
from .decoding import UnreadableImageError, decode_image
from .images import class_names, load_image_dataset
from .loader import TrainingLoader
from .rows import IndexedRows, Row, ShardedRows, open_rows
from .tokenize import tokenize_to_folder
from .tokens import push_tokens_to_hub

__all__ = [
    "Augmentation",
    "ImageCollator",
    "IndexedRows",
    "Row",
    "ShardedRows",
    "TrainingLoader",
    "UnreadableImageError",
    "class_names",
    "decode_image",
    "load_image_dataset",
    "open_rows",
    "push_tokens_to_hub",
    "tokenize_to_folder",
]
