"""The stage `generator`: the masked transformer over the tokenizer's codes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ...data.samples import Samples
from ...modeling.maskgit import MaskGitConfig
from ...modeling.titok import TiTokModel
from ...pipelines import MaskGitScheduler, TiTokPipeline
from ..objectives import MaskedTokenObjective, Objective
from ..previews import sample_preview
from .base import Stage, keys_of, register_stage


@register_stage
class GeneratorStage(Stage):
    """Trains a `MaskGitModel` or `MaskGitUViTModel`; its result is a `TiTokPipeline`."""

    name = "generator"
    folder = "pipeline"
    needs = (("decoder_finetuning", "single_stage"),)
    parts = {"model": keys_of(MaskGitConfig), "objective": keys_of(MaskedTokenObjective)}
    recipe_parts = {"scheduler": keys_of(MaskGitScheduler), "sampling": keys_of(TiTokPipeline)}
    reads_labels = True
    reads_tokens = "codes"
    can_be_pretrained = False

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> MaskedTokenObjective:
        tokenizer = self.tokenizer(results)
        self.check_result("tokenizer", tokenizer)
        fields = dict(self.part("model"))
        config = AutoConfig.for_model(
            fields.pop("model_type", "maskgit"),
            codebook_size=tokenizer.config.codebook_size,
            num_tokens=tokenizer.config.num_tokens,
            id2label=dict(enumerate(class_names)),
            **fields,
        )
        scheduler = MaskGitScheduler(config.mask_token_id, **self.recipe.scheduler)
        model = AutoModel.from_config(config)
        return MaskedTokenObjective(model, tokenizer, scheduler, **self.part("objective"))

    def tokenizer(self, results: Mapping[str, Any]) -> TiTokModel:
        """Returns the tokenizer among the results of stages."""
        [name] = self.required()
        return results[name]

    def load(self, source: str | Path, **location: Any) -> TiTokPipeline:
        return TiTokPipeline.from_pretrained(source, **location)

    def blank(self, config: MaskGitConfig) -> PreTrainedModel:
        return AutoModel.from_config(config)

    def check_result(self, name: str, result: TiTokModel) -> None:
        head, quantizer = result.config.head, result.config.quantizer
        if head == "proxy_codes" or quantizer != "vq":
            raise ValueError(
                "The generator needs a tokenizer with codes that decode to pixels: "
                f"`quantizer='vq'` and a head other than 'proxy_codes', got {quantizer!r} and "
                f"{head!r}."
            )

    def check_data(self, objective: MaskedTokenObjective, data: Samples) -> None:
        # fails now rather than at the end if the recipe's scheduler or sampling is not valid
        self.pipeline(objective.tokenizer, objective.model)
        if data.token_column is None:
            return
        codes, config = (
            next(data.read(0, 1)).tokens,
            objective.tokenizer.config,
        )  # (N,) or (copies, N)
        if codes.shape[-1] != config.num_tokens or codes.max() >= config.codebook_size:
            raise ValueError(
                f"The data set has {codes.shape[-1]} tokens an image and codes up to "
                f"{codes.max()}, the tokenizer {config.num_tokens} tokens of "
                f"{config.codebook_size} codes: tokenize the images with it."
            )

    def pipeline(self, tokenizer: TiTokModel, generator: PreTrainedModel) -> TiTokPipeline:
        """Returns the pipeline of a generator with the recipe's scheduler and sampling."""
        scheduler = MaskGitScheduler(generator.config.mask_token_id, **self.recipe.scheduler)
        return TiTokPipeline(tokenizer, generator, scheduler, **self.recipe.sampling)

    def save(self, network: PreTrainedModel, results: Mapping[str, Any], folder: Path) -> None:
        self.pipeline(self.tokenizer(results), network).save_pretrained(folder)

    def preview(self, data: Samples) -> Callable[[Objective], Image.Image]:
        labels = [*range(len(data.class_names))][:8]
        return partial(sample_preview, class_labels=labels, **self.recipe.sampling)

    def batch(
        self, objective: MaskedTokenObjective, tokens: bool = False
    ) -> dict[str, torch.Tensor]:
        batch = super().batch(objective)
        if tokens:
            del batch["pixel_values"]
            num_tokens = objective.model.config.num_tokens
            batch["codes"] = torch.zeros(1, num_tokens, dtype=torch.long)
        return batch
