"""What is left of images after they have been through a tokenizer."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def reconstruct(tokenizer: PreTrainedModel, pixel_values: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
    """Images `(B, 3, H, W)` encoded and decoded, on the CPU.

    They are in the range of `pixel_values`, and not clamped: the image processor's `postprocess` does that.
    """
    batches = pixel_values.split(batch_size)
    reconstructions = [tokenizer.decode(tokenizer.encode(batch.to(tokenizer.device)).latents) for batch in batches]
    return torch.cat([decoded.reconstruction.float().cpu() for decoded in reconstructions])


@torch.no_grad()
def codebook_statistics(tokenizer: PreTrainedModel, batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """How much of its codebook a discrete tokenizer uses on images.

    Args:
        tokenizer: Any discrete tokenizer.
        batches: Images `(B, 3, H, W)`.

    Returns:
        `usage`, the share of the codes that occur; `perplexity`, the exponential of the entropy of their shares.
    """
    counts = torch.zeros(tokenizer.config.codebook_size, dtype=torch.int64)
    for batch in batches:
        codes = tokenizer.encode(batch.to(tokenizer.device)).codes  # (B, N)
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
    shares = counts.double() / counts.sum()
    entropy = -torch.xlogy(shares, shares).sum()
    return {"usage": float((counts > 0).double().mean()), "perplexity": float(entropy.exp())}
