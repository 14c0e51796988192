"""What a recipe does not train but loads: checked as it is loaded, before anything trains."""

from typing import Any

from transformers import AutoImageProcessor, AutoModelForImageClassification

from ..hub.errors import explain_loading_errors
from ..modeling.maskgit_vqgan import MaskGitVQGANModel
from ..modeling.titok import TiTokModel
from .recipe import Recipe
from .stages import Classifier, check_tokenizer


def load_pretrained(recipe: Recipe, stage: str) -> Any:
    """The result of a stage that the recipe says is pretrained, in evaluation mode.

    Args:
        recipe: The recipe.
        stage: One of its stages that is `pretrained`.

    Returns:
        What `load_vqgan`, `load_classifier` or `load_titok` returns.

    Raises:
        OSError: If there is no such folder or repository, or a file is missing there.
        ValueError: If it does not load, or does not fit the recipe.
    """
    location = dict(recipe.stages[stage])
    source = location.pop("pretrained")
    if stage == "vqgan":
        return load_vqgan(source, recipe.image_size, **location)
    if stage == "classifier":
        return load_classifier(source, **location)
    return load_titok(
        source, stage, recipe.image_size, generates="generator" in recipe.stages, **location
    )


def load_vqgan(source: str, image_size: int, **location: Any) -> MaskGitVQGANModel:
    """A VQGAN for the images of a recipe. It is convolutional: those of its own training may have
    had another size."""
    return MaskGitVQGANModel.from_pretrained(source, image_size=image_size, **location).eval()


def load_classifier(source: str, **location: Any) -> Classifier:
    """Any image classifier of transformers, with size and normalization of its image processor.

    Raises:
        ValueError: If it is no image classifier, lacks weights, or has an image processor without a
            size.
    """
    with explain_loading_errors(source):
        model, info = AutoModelForImageClassification.from_pretrained(
            source, output_loading_info=True, **location
        )
        processor = AutoImageProcessor.from_pretrained(source, **location)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{source} is no image classifier, or not whole: {len(missing)} weights are missing, "
            f"{', '.join(missing[:3])} among them."
        )
    size = (getattr(processor, "do_center_crop", None) and processor.crop_size) or processor.size
    side = size.get("height") or size.get("shortest_edge")
    if side is None:
        raise ValueError(
            f"The image processor of {source} must say the size of its images, got {size}."
        )
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return Classifier(model.eval(), side, mean, std)


def load_titok(
    source: str, stage: str, image_size: int, generates: bool, **location: Any
) -> TiTokModel:
    """A TiTok as the result of a stage.

    Args:
        source: Folder or Hub repository.
        stage: `"warmup"`, which ends in proxy codes, or another.
        image_size: Side of the recipe's images.
        generates: Whether the recipe has a generator.
        location: For `from_pretrained`.

    Raises:
        ValueError: If it has another image size, or is of another stage.
    """
    model = TiTokModel.from_pretrained(source, **location).eval()
    config = model.config
    if config.image_size != image_size:
        raise ValueError(
            f"{source} is a tokenizer of images of {config.image_size} pixels, the recipe's have "
            f"{image_size}."
        )
    if stage == "warmup" and config.head != "proxy_codes":
        raise ValueError(
            f"{source} must be a tokenizer that ends in proxy codes, got one with head "
            f"{config.head!r}."
        )
    if stage != "warmup" and generates:
        check_tokenizer(model)
    return model
