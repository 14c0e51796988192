"""Keeping a codebook alive."""

import torch
from torch import distributed, nn


class CodebookRevival(nn.Module):
    """Watches how often each code is used and re-seeds dead codes with encoder outputs.

    A code is dead when its share of all tokens, averaged over the last batches, has fallen below a fraction of the
    fair share `1 / codebook_size`. It is replaced by the encoder's output for a random token of the last batch, as in
    Jukebox (arXiv 2005.00341, section 3.1) and CVQ-VAE (arXiv 2307.15139), so that the next batches use it again. All
    processes count together and re-seed with the same vectors.

    Args:
        codebook: `(K, C)` embedding of a vector quantizer.
        interval: Optimizer steps between revivals.
        threshold: Fraction of the fair share below which a code is dead.
        decay: Of the moving average of the shares, per batch.
    """

    def __init__(self, codebook: nn.Embedding, interval: int = 10, threshold: float = 0.1, decay: float = 0.98):
        super().__init__()
        # in a list, so that the codebook does not become a submodule here too
        self.codebook = [codebook]
        self.interval = interval
        self.threshold = threshold
        self.decay = decay
        size, dim = codebook.weight.shape
        self.register_buffer("shares", torch.full((size,), 1 / size))
        self.register_buffer("candidates", torch.zeros(size, dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, codes: torch.Tensor, unquantized: torch.Tensor) -> dict[str, torch.Tensor]:
        """Counts a batch of codes `(B, N)` and draws candidates from the encoder's outputs `(B, N, C)`.

        Returns:
            `codebook_usage`, the share of codes that are not dead, and `codebook_perplexity`, the exponential of the
            entropy of the moving average of the shares.
        """
        size = len(self.shares)
        counts = torch.bincount(codes.flatten(), minlength=size).float()
        unquantized = unquantized.flatten(0, 1)  # (B * N, C)
        self.candidates = unquantized[torch.randint(len(unquantized), (size,), device=codes.device)].float()
        if distributed.is_initialized():
            distributed.all_reduce(counts)
            distributed.broadcast(self.candidates, src=0)
        self.shares.lerp_(counts / counts.sum(), 1 - self.decay)
        shares = self.shares / self.shares.sum()
        entropy = -(shares * shares.clamp_min(1e-10).log()).sum()
        usage = (self.shares >= self.threshold / size).float().mean()
        return {"codebook_usage": usage, "codebook_perplexity": entropy.exp()}

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Re-seeds dead codes, every `interval` steps."""
        self.steps += 1
        if self.steps % self.interval:
            return
        weight = self.codebook[0].weight
        dead = self.shares < self.threshold / len(self.shares)  # (K,)
        weight[dead] = self.candidates[dead].to(weight.dtype)
        self.shares[dead] = 1 / len(self.shares)
