"""Image data sets for training and evaluation, and token data sets made from them."""

from .augmentation import Augmentation
from .collator import ImageCollator
from .decoding import UnreadableImageError, decode_image
from .loader import TrainingLoader
from .opening import ImageSplits, open_images
from .samples import IndexedSamples, StoredSample, StreamedSamples
from .tokenize import tokenize_to_folder
from .tokens import push_tokens_to_hub

__all__ = [
    "Augmentation",
    "ImageCollator",
    "ImageSplits",
    "IndexedSamples",
    "StoredSample",
    "StreamedSamples",
    "TrainingLoader",
    "UnreadableImageError",
    "decode_image",
    "open_images",
    "push_tokens_to_hub",
    "tokenize_to_folder",
]
