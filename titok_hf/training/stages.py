"""The objectives of a recipe's stages, from what the recipe says and the networks that earlier
stages have left."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import (
    AutoConfig,
    AutoModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
)

from ..modeling.lpips import LPIPS
from ..modeling.maskgit_vqgan import MaskGitVQGANConfig, MaskGitVQGANModel
from ..modeling.titok import TiTokConfig, TiTokModel
from ..pipelines import MaskGitScheduler
from .discriminator import PatchDiscriminator
from .objectives import (
    ClassifierObjective,
    MaskedTokenObjective,
    Objective,
    ReconstructionObjective,
    WarmupObjective,
)
from .perceptual import PerceptualLoss
from .recipe import Recipe, perceptual_weights


@dataclass(frozen=True)
class Classifier:
    """A classifier and the images that it expects.

    Args:
        model: Takes `pixel_values` and returns `logits`.
        image_size: Side of the images.
        image_mean, image_std: Normalization of images in [0, 1].
    """

    model: PreTrainedModel
    image_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]


def recipe_objectives(
    recipe: Recipe, load: Callable[[str], Any], class_names: Sequence[str]
) -> Iterator[tuple[str, Objective]]:
    """Name and objective of each stage that a recipe trains, its networks new, on torch's default
    device.

    To be used one after another: an objective freezes the networks of those before it.

    Args:
        recipe: The recipe.
        load: Gives the result of a stage that is pretrained: a network, or a `Classifier`.
        class_names: Names of the classes.

    Raises:
        ValueError: If an argument of a network or an objective is not valid.
    """
    results = {stage: load(stage) for stage in recipe.stages if recipe.is_pretrained(stage)}
    for stage in recipe.trained_stages():
        lpips = LPIPS() if "lpips" in sees_through(recipe, stage) else None
        networks = {"classifier": results.get("classifier"), "lpips": lpips}
        if stage == "vqgan":
            objective = vqgan_objective(recipe, **networks)
        elif stage == "classifier":
            objective = classifier_objective(recipe, len(class_names))
        elif stage == "warmup":
            objective = warmup_objective(recipe, results["vqgan"])
        elif stage == "decoder_finetuning":
            objective = decoder_finetuning_objective(
                recipe, results["vqgan"], results["warmup"], **networks
            )
        elif stage == "single_stage":
            objective = single_stage_objective(recipe, **networks)
        else:
            tokenizer = results.get("decoder_finetuning") or results["single_stage"]
            objective = generator_objective(recipe, tokenizer, class_names)
        yield stage, objective
        results[stage] = objective.model
        if stage == "classifier":
            mean, std = ClassifierObjective.MEAN, ClassifierObjective.STD
            results[stage] = Classifier(objective.model, recipe.image_size, mean, std)


def vqgan_objective(
    recipe: Recipe, classifier: Classifier | None = None, lpips: LPIPS | None = None
) -> ReconstructionObjective:
    """Of the 2D tokenizer of the proxy codes."""
    config = MaskGitVQGANConfig(
        **{"image_size": recipe.image_size, **recipe.part("vqgan", "model")}
    )
    return painting_objective(recipe, "vqgan", MaskGitVQGANModel(config), classifier, lpips)


def classifier_objective(recipe: Recipe, num_labels: int) -> ClassifierObjective:
    """Of a classifier for images that no pretrained one fits."""
    fields = {
        "image_size": recipe.image_size,
        "num_labels": num_labels,
        **recipe.part("classifier", "model"),
    }
    model = ConvNextForImageClassification(ConvNextConfig(**fields))
    return ClassifierObjective(model, **recipe.part("classifier", "objective"))


def warmup_objective(recipe: Recipe, vqgan: MaskGitVQGANModel) -> WarmupObjective:
    """Of the 1D tokenizer that learns to predict the codes of the VQGAN."""
    model = TiTokModel(titok_config(recipe, "warmup", vqgan_config=vqgan.config.to_dict()))
    return WarmupObjective(model, vqgan, **recipe.part("warmup", "objective"))


def decoder_finetuning_objective(
    recipe: Recipe,
    vqgan: MaskGitVQGANModel,
    warm: TiTokModel,
    classifier: Classifier | None = None,
    lpips: LPIPS | None = None,
) -> ReconstructionObjective:
    """Of the decoder that learns to paint, with the VQGAN's at its end."""
    model = warm.with_pixel_decoder(vqgan)
    return painting_objective(
        recipe, "decoder_finetuning", model, classifier, lpips, freeze_encoder=True
    )


def single_stage_objective(
    recipe: Recipe, classifier: Classifier | None = None, lpips: LPIPS | None = None
) -> ReconstructionObjective:
    """Of the whole 1D tokenizer that learns from pixels at once, without proxy codes."""
    model = TiTokModel(titok_config(recipe, "single_stage", head="pixels"))
    return painting_objective(recipe, "single_stage", model, classifier, lpips)


def generator_objective(
    recipe: Recipe, tokenizer: TiTokModel, class_names: Sequence[str]
) -> MaskedTokenObjective:
    """Of the masked transformer over the tokenizer's codes.

    Raises:
        ValueError: If the tokenizer has no codes, or does not decode them to pixels.
    """
    check_tokenizer(tokenizer)
    fields = dict(recipe.part("generator", "model"))
    config = AutoConfig.for_model(
        fields.pop("model_type", "maskgit"),
        codebook_size=tokenizer.config.codebook_size,
        num_tokens=tokenizer.config.num_tokens,
        id2label=dict(enumerate(class_names)),
        **fields,
    )
    scheduler = MaskGitScheduler(config.mask_token_id, **recipe.scheduler)
    model = AutoModel.from_config(config)
    return MaskedTokenObjective(
        model, tokenizer, scheduler, **recipe.part("generator", "objective")
    )


def painting_objective(
    recipe: Recipe,
    stage: str,
    model: TiTokModel | MaskGitVQGANModel,
    classifier: Classifier | None,
    lpips: LPIPS | None,
    freeze_encoder: bool = False,
) -> ReconstructionObjective:
    """Of a tokenizer that learns to paint, with the perceptual and adversarial losses of the
    recipe."""
    arguments = {"freeze_encoder": freeze_encoder, **recipe.part(stage, "objective")}
    weights = perceptual_weights(arguments)
    for name in weights:
        arguments.pop(name, None)
    perceptual, discriminator = None, None
    if arguments.get("perceptual_weight"):
        of_classifier = {}
        if weights["classifier_weight"]:
            of_classifier = {
                "classifier": classifier.model,
                "image_size": classifier.image_size,
                "image_mean": classifier.image_mean,
                "image_std": classifier.image_std,
            }
        perceptual = PerceptualLoss(**of_classifier, lpips=lpips, **weights)
    if arguments.get("adversarial_weight"):
        discriminator = PatchDiscriminator(**recipe.part(stage, "discriminator"))
    return ReconstructionObjective(
        model, perceptual=perceptual, discriminator=discriminator, **arguments
    )


def sees_through(recipe: Recipe, stage: str) -> set[str]:
    """The networks of a stage's perceptual loss: of `"classifier"` and `"lpips"` those that have a
    weight."""
    objective = recipe.part(stage, "objective")
    if not objective.get("perceptual_weight"):
        return set()
    weights = perceptual_weights(objective)
    return {name for name in ("classifier", "lpips") if weights[f"{name}_weight"]}


def titok_config(recipe: Recipe, stage: str, **fields: Any) -> TiTokConfig:
    """The configuration of a stage's TiTok."""
    fields = {"image_size": recipe.image_size, **fields, **recipe.part(stage, "model")}
    size = fields.pop("size", None)
    return TiTokConfig(**fields) if size is None else TiTokConfig.from_size(size, **fields)


def check_tokenizer(tokenizer: TiTokModel) -> None:
    """Raises `ValueError` unless a tokenizer turns images into codes and codes into images."""
    head, quantizer = tokenizer.config.head, tokenizer.config.quantizer
    if head == "proxy_codes" or quantizer != "vq":
        raise ValueError(
            "The generator needs a tokenizer with codes that decode to pixels: `quantizer='vq'` "
            "and a head other than "
            f"'proxy_codes', got {quantizer!r} and {head!r}."
        )


def check_codes(codes: np.ndarray, config: TiTokConfig) -> None:
    """Raises `ValueError` unless codes `(N,)` or `(copies, N)` of a data set may be those of a
    tokenizer."""
    if codes.shape[-1] != config.num_tokens or codes.max() >= config.codebook_size:
        raise ValueError(
            f"The data set has {codes.shape[-1]} tokens an image and codes up to {codes.max()}, "
            f"the tokenizer {config.num_tokens} tokens of {config.codebook_size} codes: tokenize "
            "the images with it."
        )
