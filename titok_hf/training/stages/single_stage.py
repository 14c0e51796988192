"""The stage `single_stage`: the whole 1D tokenizer learns from pixels, without proxy codes."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...modeling.titok import TiTokConfig, TiTokModel
from ..objectives import ReconstructionObjective
from .base import keys_of, register_stage
from .reconstruction import RECONSTRUCTION_PARTS, ReconstructionStage
from .titok import TiTokStage


@register_stage
class SingleStage(ReconstructionStage, TiTokStage):
    """Trains a `TiTokModel` that ends in pixels."""

    name = "single_stage"
    folder = "tokenizer"
    parts = {"model": keys_of(TiTokConfig, "size"), **RECONSTRUCTION_PARTS}

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> ReconstructionObjective:
        model = TiTokModel(self.config(**{"head": "pixels", **self.part("model")}))
        return self.reconstruction_objective(model, results, load_weights)
