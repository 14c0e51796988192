"""The stage `vqgan`: the 2D tokenizer whose codes are the proxy codes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...modeling.maskgit_vqgan import MaskGitVQGANConfig, MaskGitVQGANModel
from ..objectives import ReconstructionObjective
from .base import keys_of, register_stage
from .reconstruction import RECONSTRUCTION_PARTS, ReconstructionStage


@register_stage
class VQGANStage(ReconstructionStage):
    """Trains a `MaskGitVQGANModel`."""

    name = "vqgan"
    folder = "vqgan"
    parts = {"model": keys_of(MaskGitVQGANConfig), **RECONSTRUCTION_PARTS}
    config_class = MaskGitVQGANConfig

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> ReconstructionObjective:
        model = MaskGitVQGANModel(self.config(**self.part("model")))
        return self.reconstruction_objective(model, results, load_weights)

    def load(self, source: str | Path, **location: Any) -> MaskGitVQGANModel:
        # the network is convolutional, so it may have been trained on images of another size
        size = self.recipe.image_size
        return MaskGitVQGANModel.from_pretrained(source, image_size=size, **location).eval()

    def blank(self, config: MaskGitVQGANConfig) -> MaskGitVQGANModel:
        config.image_size = self.recipe.image_size
        return MaskGitVQGANModel(config)
