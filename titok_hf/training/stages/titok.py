"""The base class of stages whose result is a TiTok."""

from pathlib import Path
from typing import Any

from ...modeling.titok import TiTokConfig, TiTokModel
from .base import Stage


class TiTokStage(Stage):
    """A stage whose result is a `TiTokModel`; `size` in its part `model` is one of the paper's
    sizes, see `TiTokConfig.from_size`."""

    config_class = TiTokConfig

    def config(self, size: str | None = None, **fields: Any) -> TiTokConfig:
        if size is None:
            return super().config(**fields)
        return TiTokConfig.from_size(size, **{"image_size": self.recipe.image_size, **fields})

    def load(self, source: str | Path, **location: Any) -> TiTokModel:
        model = TiTokModel.from_pretrained(source, **location).eval()
        size, expected = model.config.image_size, self.recipe.image_size
        if size != expected:
            raise ValueError(
                f"{source} is a tokenizer of images of {size} pixels, the recipe's have {expected}."
            )
        return model

    def blank(self, config: TiTokConfig) -> TiTokModel:
        return TiTokModel(config)
