"""The stage `decoder_finetuning`: the decoder, followed by the VQGAN's, learns from pixels (TiTok,
arXiv 2406.07550, section 3.3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..objectives import ReconstructionObjective
from .base import register_stage
from .reconstruction import RECONSTRUCTION_PARTS, ReconstructionStage
from .titok import TiTokStage


@register_stage
class DecoderFinetuningStage(ReconstructionStage, TiTokStage):
    """Trains the decoder of the warm-up's `TiTokModel`; encoder and codebook keep their weights."""

    name = "decoder_finetuning"
    folder = "tokenizer"
    needs = (("vqgan",), ("warmup",))
    parts = RECONSTRUCTION_PARTS
    freeze_encoder = True

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> ReconstructionObjective:
        model = results["warmup"].with_pixel_decoder(results["vqgan"])
        return self.reconstruction_objective(model, results, load_weights)
