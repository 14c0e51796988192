"""Images in, token data sets out."""

from .augmentation import Augmentation
from .collator import ImageCollator
from .images import class_names, load_image_dataset
from .tokens import latent_statistics, push_tokens_to_hub, tokenize_images, tokenize_to_folder

__all__ = [
    "Augmentation",
    "ImageCollator",
    "class_names",
    "latent_statistics",
    "load_image_dataset",
    "push_tokens_to_hub",
    "tokenize_images",
    "tokenize_to_folder",
]
