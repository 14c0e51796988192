"""Retrieval of texts by images and of images by texts, from a shared embedding (CLIP, arXiv
2103.00020)."""

from collections.abc import Sequence

import torch

from .metrics.standard_error import Estimate


def retrieval_recall(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_of_text: torch.Tensor | None = None,
    ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, Estimate]:
    """Measures how often a match is among the nearest.

    A match counts from the place behind all others that are as near, so that a collapsed embedding
    finds nothing.

    Args:
        image_embeds, text_embeds: Unit embeddings `(n, E)` and `(m, E)`.
        image_of_text: The image of each text `(m,)`; every image has at least one text. By default
            text i belongs to image i.
        ranks: Numbers of nearest.

    Returns:
        `text_recall_at_…`, the share of images with a text of theirs among the nearest texts, and
        `image_recall_at_…`, the share of texts with their image among the nearest images.
    """
    if image_of_text is None:
        image_of_text = torch.arange(len(text_embeds))
    images = torch.arange(len(image_embeds))
    recalls = {}
    for name, queries, targets, of_queries, of_targets in (
        ("text", image_embeds, text_embeds, images, image_of_text),
        ("image", text_embeds, image_embeds, image_of_text, images),
    ):
        places = []
        for rows in torch.arange(len(queries)).split(256):
            similarities = queries[rows] @ targets.T  # (b, targets)
            belongs = of_queries[rows, None] == of_targets[None]
            best = similarities.masked_fill(~belongs, -torch.inf).amax(1, keepdim=True)
            others = (similarities >= best) & ~belongs
            places.append(1 + others.sum(1))
        place = torch.cat(places)
        for rank in ranks:
            recalls[f"{name}_recall_at_{rank}"] = Estimate.mean(place <= rank)
    return recalls


__all__ = ["retrieval_recall"]
