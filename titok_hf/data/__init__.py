"""Images in."""

from .augmentation import Augmentation
from .collator import ImageCollator
from .images import class_names, load_image_dataset

__all__ = ["Augmentation", "ImageCollator", "class_names", "load_image_dataset"]
