"""The base class of stages whose result is a VTP."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.samples import Samples
from ...modeling.vtp import VTPConfig, VTPImageProcessor, VTPModel
from ..objectives import Objective
from ..previews import reconstruction_previews
from .reconstruction import PerceptualStage


class VTPStage(PerceptualStage):
    """A stage whose result is a `VTPModel`, saved with its processor."""

    config_class = VTPConfig

    def load(self, source: str | Path, **location: Any) -> VTPModel:
        return VTPModel.from_pretrained(source, **location).eval()

    def blank(self, config: VTPConfig) -> VTPModel:
        return VTPModel(config)

    def image_processor(self) -> VTPImageProcessor:
        return VTPImageProcessor.from_image_size(self.recipe.image_size)

    def preview(self, data: Samples) -> Callable[[Objective], Image.Image] | None:
        return reconstruction_previews(data, self.image_processor())
