"""Zero-shot classification: choosing the name that fits an image best (CLIP, arXiv 2103.00020)."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from ..data.decoding import decoder_for
from ..devices import default_device
from ..modeling.checks import check_id_range
from ..modeling.vtp import VTPModel, VTPProcessor
from ..progress import counted, index_batches, working
from .files import open_image_files


def clip_templates() -> list[str]:
    """Returns the 80 prompts of CLIP's ImageNet evaluation, with `{}` in the place of the name.

    Source: notebooks/Prompt_Engineering_for_ImageNet.ipynb of openai/CLIP.
    """
    return json.loads((Path(__file__).parent / "clip_templates.json").read_text())


@torch.no_grad()
def class_embeddings(
    model: VTPModel,
    processor: VTPProcessor,
    labels: Sequence[str],
    templates: Sequence[str] | None = None,
) -> torch.Tensor:
    """Computes the embedding of each name: the mean over the prompts, normalized to unit length.

    Args:
        model: A VTP with a text encoder.
        processor: Its processor.
        labels: Names of the classes.
        templates: Prompts with `{}`; CLIP's 80 if not given.

    Returns:
        `(L, E)`.
    """
    templates = clip_templates() if templates is None else templates
    if isinstance(labels, str) or len(set(labels)) < max(2, len(labels)) or not all(labels):
        raise ValueError(
            f"`labels` must be at least two different names to choose from, got {labels!r}."
        )
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"A template must have `{{}}` where the name goes, got {wrong[0]!r}.")
    embeddings = []
    for label in counted(labels, "class names", "names", total=len(labels)):
        prompts = [template.format(label) for template in templates]
        input_ids = processor(text=prompts, truncation=True, return_tensors="pt")[
            "input_ids"
        ]  # (T, 77)
        check_id_range(input_ids, "input_ids", model.config.text_vocab_size)
        features = model.get_text_features(input_ids.to(model.device)).float()  # (T, E)
        embeddings.append(F.normalize(features.mean(0), dim=-1))
    return torch.stack(embeddings)


@torch.no_grad()
def zero_shot_probabilities(
    model: VTPModel, images: torch.Tensor, embeddings: torch.Tensor, scale: float = 100.0
) -> torch.Tensor:
    """Computes the probabilities `(B, L)` of the classes.

    Args:
        model: A VTP with a text encoder.
        images: Normalized images `(B, 3, H, W)`.
        embeddings: `(L, E)`, see `class_embeddings`.
        scale: Factor of the cosines before the softmax; published evaluations use 100.
    """
    features = model.get_image_features(images.to(model.device)).float()  # (B, E)
    return probabilities_of(features, embeddings, scale)


def probabilities_of(
    features: torch.Tensor, embeddings: torch.Tensor, scale: float = 100.0
) -> torch.Tensor:
    """Computes the probabilities `(B, L)` of the classes from unit embeddings of images `(B, E)` and of
    classes `(L, E)`, see `zero_shot_probabilities`."""
    return (scale * features @ embeddings.T).softmax(-1).cpu()


def zero_shot_files(
    model: str | Path,
    labels: Sequence[str],
    images: Sequence[str | Path],
    templates: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
) -> list[dict[str, float]]:
    """Classifies image files.

    Args:
        model: Folder or Hub repository of a VTP.
        labels: Names of the classes.
        images: Image files, which are squashed to the image size as in published evaluations.
        templates: Prompts with `{}`; CLIP's 80 if not given.
        device: Device to compute on; by default the accelerator if there is one.
        batch_size: Number of images per batch.

    Returns:
        For each image, the probability of each name.
    """
    with working("loading model"):
        loaded = VTPModel.from_pretrained(model).eval().to(device or default_device())
    processor = VTPProcessor.from_pretrained(model)
    opened = open_image_files(images, decoder_for(processor.image_processor))
    pixel_values = processor.image_processor(opened, crop="squash", return_tensors="pt")[
        "pixel_values"
    ]
    embeddings = class_embeddings(loaded, processor, labels, templates)
    batches = [
        zero_shot_probabilities(loaded, pixel_values[indices], embeddings)
        for indices in index_batches(len(pixel_values), batch_size, "images")
    ]
    probabilities = torch.cat(batches)
    return [dict(zip(labels, row, strict=True)) for row in probabilities.tolist()]
