"""Contrastive losses of images and texts over all processes: CLIP's and SigLIP's.

Embeddings are gathered with their gradients. The mean of the losses over processes is the loss of
the global batch, and distributed training averages gradients to its gradient (OpenCLIP's
`local_loss` with `gather_with_grad`).
"""

import torch
from torch import distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from ..devices import full_precision
from .losses import at_least_float32


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the products `(B, N)` of unit vectors `(B, E)` and `(N, E)`, not in bfloat16 even under
    autocast."""
    with full_precision(first.device):
        return at_least_float32(first) @ at_least_float32(second).T


def contrastive_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Returns CLIP's loss (arXiv 2103.00020) over all processes: image i belongs to text i.

    Args:
        image_embeds, text_embeds: Unit embeddings `(B, E)`.
        logit_scale: The factor of the cosines, a scalar.
    """
    start = 0
    all_images, all_texts = image_embeds, text_embeds
    if distributed.is_initialized():
        all_images, all_texts = (torch.cat(all_gather(x)) for x in (image_embeds, text_embeds))
        start = distributed.get_rank() * len(image_embeds)
    pairs = start + torch.arange(len(image_embeds), device=image_embeds.device)
    per_image = logit_scale * cosines(image_embeds, all_texts)  # (B, N)
    per_text = logit_scale * cosines(text_embeds, all_images)  # (B, N)
    return (F.cross_entropy(per_image, pairs) + F.cross_entropy(per_text, pairs)) / 2


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
) -> torch.Tensor:
    """Returns SigLIP's loss (arXiv 2303.15343) over all processes: each pair of an image and a text is
    classified as belonging together or not.

    Args:
        image_embeds, text_embeds: Unit embeddings `(B, E)`.
        logit_scale, logit_bias: Factor and summand of the cosines, scalars.
    """
    start, all_texts = 0, text_embeds
    if distributed.is_initialized():
        all_texts = torch.cat(all_gather(text_embeds))
        start = distributed.get_rank() * len(image_embeds)
    logits = logit_scale * cosines(image_embeds, all_texts) + logit_bias  # (B, N)
    rows = torch.arange(len(logits), device=logits.device)
    signs = -torch.ones_like(logits)
    signs[rows, start + rows] = 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)
