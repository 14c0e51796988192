"""Revival of dead codes in a codebook."""

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class CodebookRevival(nn.Module):
    """Watches how often each code is used and re-seeds dead codes with encoder outputs.

    A code is dead when its share of all tokens, averaged over the last optimizer steps, has fallen
    below a fraction of the fair share `1 / codebook_size`. It is replaced by the encoder's output
    for a random token of the last step, as in Jukebox (arXiv 2005.00341, section 3.1) and CVQ-VAE
    (arXiv 2307.15139), so that the next steps use it again. Tokens of all processes and accumulated
    batches count, in the order of their images, so that the result does not depend on how a global
    batch is split.

    Args:
        codebook: `(K, C)` embedding of a vector quantizer.
        interval: Optimizer steps between revivals.
        threshold: Fraction of the fair share below which a code is dead.
        decay: Decay of the moving average of the shares, per optimizer step.
    """

    def __init__(
        self,
        codebook: nn.Embedding,
        interval: int = 10,
        threshold: float = 0.1,
        decay: float = 0.98,
    ):
        super().__init__()
        # a list keeps the codebook from being registered as a submodule here too
        self.codebook = [codebook]
        self.interval = interval
        self.threshold = threshold
        self.decay = decay
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        size = codebook.num_embeddings
        self.register_buffer("shares", torch.full((size,), 1 / size, dtype=torch.float32))

    def observe(self, codes: torch.Tensor, unquantized: torch.Tensor) -> None:
        """Records a batch: its codes `(B, N)` and the encoder's outputs `(B, N, C)`."""
        self.seen.append((codes.flatten(), unquantized.detach().flatten(0, 1).float()))

    @torch.no_grad()
    def after_optimizer_step(self, step: int) -> None:
        """Counts the codes seen since the last call, and re-seeds dead ones every `interval` steps.

        Args:
            step: Number of optimizer steps taken.
        """
        size = len(self.shares)
        codes, outputs = (
            torch.stack(tensors) for tensors in zip(*self.seen, strict=True)
        )  # (A, n), (A, n, C)
        self.seen.clear()
        # `bincount` would wait for the device to learn the length of its result
        codes = codes.flatten()
        counts = torch.zeros_like(self.shares, dtype=codes.dtype)
        counts = counts.index_add_(0, codes, torch.ones_like(codes)).float()
        if distributed.is_initialized():
            distributed.all_reduce(counts)
        self.shares.lerp_(counts / counts.sum(), 1 - self.decay)
        if step % self.interval:
            return
        if distributed.is_initialized():
            gathered = [torch.empty_like(outputs) for _ in range(distributed.get_world_size())]
            distributed.all_gather(gathered, outputs)
            outputs = torch.stack(gathered, dim=1)  # (A, processes, n, C)
        outputs = outputs.flatten(0, -2)  # (tokens of the step, C)
        # seeded by the step, so that all processes pick the same tokens
        picks = torch.randint(len(outputs), (size,), generator=torch.Generator().manual_seed(step))
        dead = self.shares < self.threshold / size  # (K,)
        self.shares.masked_fill_(dead, 1 / size)
        weight = self.codebook[0].weight
        replaced, candidates = (
            dead[:, None],
            outputs[picks.to(outputs.device, non_blocking=True)].to(weight.dtype),
        )  # (K, 1), (K, C)
        if isinstance(weight, DTensor):  # FSDP
            replaced = distribute_tensor(replaced, weight.device_mesh, weight.placements)
            candidates = distribute_tensor(candidates, weight.device_mesh, weight.placements)
        weight.copy_(torch.where(replaced, candidates, weight))

    def statistics(self) -> dict[str, torch.Tensor]:
        """Returns `codebook_usage`, the share of codes that are not dead, and
        `codebook_perplexity`, the exponential of the entropy of the averaged shares."""
        size = len(self.shares)
        shares = self.shares / self.shares.sum()
        entropy = -(shares * shares.clamp_min(1e-10).log()).sum()
        usage = (self.shares >= self.threshold / size).float().mean()
        return {"codebook_usage": usage, "codebook_perplexity": entropy.exp()}
