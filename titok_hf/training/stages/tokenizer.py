"""The stage `tokenizer`: a tokenizer of any family that was trained elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from transformers import PreTrainedConfig, PreTrainedModel

from ...modeling.auto import TOKENIZERS, load_tokenizer
from ...modeling.diffusers_tokenizer import AUTOENCODERS, DiffusersTokenizer
from ..objectives import Objective
from .base import Stage, register_stage


@register_stage
class TokenizerStage(Stage):
    """Loads a tokenizer of any family: a TiTok, a VTP, or an image autoencoder of diffusers such as
    VA-VAE. It cannot be trained."""

    name = "tokenizer"
    folder = "tokenizer"
    parts = {}
    can_be_trained = False

    def config(self, **fields: Any) -> dict[str, Any]:
        return fields

    def load(self, source: str | Path, **location: Any) -> PreTrainedModel | DiffusersTokenizer:
        tokenizer, _ = load_tokenizer(source, **location)
        if isinstance(tokenizer, DiffusersTokenizer):  # takes images of any size that divides
            return DiffusersTokenizer(tokenizer.autoencoder, self.recipe.image_size).eval()
        size, expected = tokenizer.config.image_size, self.recipe.image_size
        if tokenizer.config.model_type == "titok" and size != expected:
            raise ValueError(
                f"{source} is a tokenizer of images of {size} pixels, the recipe's have {expected}."
            )
        return tokenizer

    def blank(
        self, config: PreTrainedConfig | Mapping[str, Any]
    ) -> PreTrainedModel | DiffusersTokenizer:
        if isinstance(config, PreTrainedConfig):
            return TOKENIZERS[config.model_type][0](config)
        autoencoder = AUTOENCODERS[config.get("_class_name", AutoencoderKL.__name__)]
        return DiffusersTokenizer(autoencoder.from_config(config), self.recipe.image_size)

    def config_of(self, result: PreTrainedModel | DiffusersTokenizer) -> Any:
        if not isinstance(result, DiffusersTokenizer):
            return super().config_of(result)
        autoencoder = result.autoencoder
        return {**autoencoder.config, "_class_name": type(autoencoder).__name__}

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> Objective:
        raise NotImplementedError("This stage cannot be trained.")
