"""Images in."""

from .collator import Augmentation, ImageCollator
from .images import class_names, load_image_dataset

__all__ = ["Augmentation", "ImageCollator", "class_names", "load_image_dataset"]
