"""Networks that judge images or teach other networks, and are not ours."""

from .lpips import LPIPS
from .published_weights import load_lpips

__all__ = ["LPIPS", "load_lpips"]
