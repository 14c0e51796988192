"""Bottlenecks shared by the tokenizer families: vector quantization and a diagonal Gaussian."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from ..devices import full_precision
from .outputs import TokenizerEncoderOutput


def all_vectors(codebook: nn.Embedding, device: torch.device) -> torch.Tensor:
    """Returns the code vectors `(K, C)` of a codebook.

    Unlike `codebook.weight`, this is a forward pass, for which accelerate loads offloaded weights.
    """
    return codebook(torch.arange(codebook.num_embeddings, device=device))


class VectorQuantizer(nn.Module):
    """Nearest-code quantizer with straight-through gradients (VQ-VAE, arXiv 1711.00937).

    With `normalize`, latents and codes are projected onto the unit sphere first (ViT-VQGAN, arXiv
    2110.04627), as in TiTok. Norms, distances and losses are computed in float32 for any model
    dtype, and under autocast.
    """

    def __init__(self, codebook_size: int, dim: int, commitment_cost: float, normalize: bool):
        super().__init__()
        self.commitment_cost = commitment_cost
        self.normalize = normalize
        self.codebook = nn.Embedding(codebook_size, dim)

    def init_weights(self) -> None:
        bound = 1 / self.codebook.num_embeddings
        init.uniform_(self.codebook.weight, -bound, bound)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the code vectors `(..., C)` of `codes` `(...)` in [0, codebook_size)."""
        return self.vectors(codes).to(self.codebook.weight.dtype)

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        vectors = self.codebook(codes).float()
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def forward(self, unquantized: torch.Tensor) -> TokenizerEncoderOutput:
        """Quantizes `unquantized` `(B, N, C)`; gradients pass from `latents` to it unchanged."""
        latents = unquantized.float()  # (B, N, C)
        latents = F.normalize(latents, dim=-1) if self.normalize else latents
        with torch.no_grad(), full_precision(latents.device):
            codebook = all_vectors(self.codebook, latents.device).float()  # (K, C)
            codebook = F.normalize(codebook, dim=-1) if self.normalize else codebook
            flat = latents.flatten(0, -2)  # (B * N, C)
            # |z - e|^2 without |z|^2, which is constant over the codes
            distances = torch.addmm(
                codebook.square().sum(-1), flat, codebook.t(), alpha=-2
            )  # (B * N, K)
            codes = distances.argmin(-1).view(latents.shape[:-1])  # (B, N)
        quantized = self.vectors(codes)  # (B, N, C)
        loss = F.mse_loss(quantized, latents.detach()) + self.commitment_cost * F.mse_loss(
            latents, quantized.detach()
        )
        return TokenizerEncoderOutput(
            latents=(latents + (quantized - latents).detach()).to(unquantized.dtype),
            codes=codes,
            unquantized=unquantized,
            quantizer_loss=loss,
        )


@dataclass
class DiagonalGaussian:
    """Posterior of a KL-regularized tokenizer; `mean` and the clamped `logvar` have the same
    shape."""

    mean: torch.Tensor
    logvar: torch.Tensor

    @classmethod
    def from_parameters(cls, parameters: torch.Tensor) -> "DiagonalGaussian":
        """Splits `(..., 2 * C)` into mean and log-variance."""
        mean, logvar = parameters.chunk(2, dim=-1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def sample(
        self, generator: torch.Generator | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draws a sample in the dtype of the mean, using `noise` (standard normal, float32) if
        given."""
        if noise is None:
            source = generator.device if generator is not None else self.mean.device
            noise = torch.randn(
                self.mean.shape, generator=generator, device=source, dtype=torch.float32
            ).to(self.mean.device)
        return (self.mean.float() + (0.5 * self.logvar.float()).exp() * noise).to(self.mean.dtype)

    def kl(self) -> torch.Tensor:
        """Returns the KL divergence from the standard normal, summed over all axes but the first
        and averaged over the first."""
        divergence = 0.5 * (
            self.mean.float().square() + self.logvar.float().exp() - 1.0 - self.logvar.float()
        )
        return divergence.flatten(1).sum(-1).mean()
