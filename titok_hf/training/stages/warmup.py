"""The stage `warmup`: the 1D tokenizer learns to predict the codes of the VQGAN (TiTok, arXiv
2406.07550, section 3.3)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.samples import Samples
from ...modeling.titok import TiTokConfig, TiTokModel
from ..objectives import Objective, WarmupObjective
from ..previews import reconstruction_previews
from .base import keys_of, register_stage
from .titok import TiTokStage


@register_stage
class WarmupStage(TiTokStage):
    """Trains a `TiTokModel` that ends in proxy codes."""

    name = "warmup"
    folder = "work/warmup"
    needs = (("vqgan",),)
    parts = {"model": keys_of(TiTokConfig, "size"), "objective": keys_of(WarmupObjective)}

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> WarmupObjective:
        vqgan = results["vqgan"]
        config = self.config(**{"vqgan_config": vqgan.config.to_dict(), **self.part("model")})
        return WarmupObjective(TiTokModel(config), vqgan, **self.part("objective"))

    def load(self, source: str | Path, **location: Any) -> TiTokModel:
        model = super().load(source, **location)
        if model.config.head != "proxy_codes":
            raise ValueError(
                f"{source} must be a tokenizer that ends in proxy codes, got one with head "
                f"{model.config.head!r}."
            )
        return model

    def preview(self, data: Samples) -> Callable[[Objective], Image.Image]:
        return reconstruction_previews(data, self.image_processor())
