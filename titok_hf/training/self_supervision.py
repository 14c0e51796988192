"""Self-supervised losses of DINOv2 (arXiv 2304.07193) and the head that they compare: DINO on whole
crops, iBOT on masked patches, KoLeo on neighbors.

All of them are computed in float32 and over all processes: their mean over processes is the loss of
the global batch, and distributed training averages gradients to its gradient.
"""

import copy
from itertools import pairwise

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ..devices import full_precision
from ..modeling.vtp import VTPModel
from .losses import at_least_float32


class DINOHead(nn.Module):
    """Maps features to prototype logits: an MLP to a bottleneck, the unit sphere, and a linear layer
    whose rows have the length 1.

    The lengths are not trained, as in DINO (arXiv 2104.14294) with `norm_last_layer`: the logits are
    cosines, which keeps the temperatures meaningful.

    Args:
        hidden_size: Width of the features.
        num_prototypes: Number of logits.
        mlp_size: Width of the hidden layers.
        bottleneck_size: Width before the prototypes.
        num_layers: Number of layers of the MLP.
    """

    def __init__(
        self,
        hidden_size: int,
        num_prototypes: int = 65536,
        mlp_size: int = 2048,
        bottleneck_size: int = 256,
        num_layers: int = 3,
    ):
        super().__init__()
        sizes = [hidden_size, *[mlp_size] * (num_layers - 1), bottleneck_size]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = weight_norm(nn.Linear(bottleneck_size, num_prototypes, bias=False))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        lengths = self.prototypes.parametrizations.weight.original0
        nn.init.ones_(lengths)
        lengths.requires_grad_(False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps features `(..., D)` to logits `(..., num_prototypes)`."""
        return self.prototypes(F.normalize(self.mlp(features), dim=-1))


class Teacher(nn.Module):
    """The moving average of the student's vision encoder and head. It begins as a copy of both."""

    def __init__(self, model: VTPModel, head: DINOHead):
        super().__init__()
        self.vision_encoder = copy.deepcopy(model.vision_encoder)
        self.head = copy.deepcopy(head)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode, even if the parent module is switched to training."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, model: VTPModel, head: DINOHead, momentum: float) -> None:
        """Moves the weights to those of the student, by a share of `1 - momentum`."""
        student = [*model.vision_encoder.parameters(), *head.parameters()]
        torch._foreach_lerp_([*self.parameters()], student, 1 - momentum)


@torch.no_grad()
def sinkhorn_targets(
    logits: torch.Tensor, temperature: float, num_iterations: int = 3
) -> torch.Tensor:
    """Returns the teacher's targets by Sinkhorn-Knopp (SwAV, arXiv 2006.09882; DINOv2): each is a
    distribution over the prototypes, and over the batch each prototype is used nearly equally.

    The iterations run on logarithms, so that no logit overflows; constant factors, such as the
    number of samples, cancel in the last normalization.

    Args:
        logits: The teacher's logits `(M, K)`; the number of samples may differ between processes.
        temperature: The teacher's temperature.
        num_iterations: Number of iterations.

    Returns:
        The targets `(M, K)` in float32; each sums to 1.
    """
    log_targets = at_least_float32(logits) / temperature  # (M, K)
    for _ in range(num_iterations):
        log_totals = log_targets.logsumexp(0)  # (K,)
        if distributed.is_initialized():
            everywhere = [torch.empty_like(log_totals) for _ in range(distributed.get_world_size())]
            distributed.all_gather(everywhere, log_totals)
            log_totals = torch.stack(everywhere).logsumexp(0)
        log_targets = (log_targets - log_totals).log_softmax(-1)
    return log_targets.exp()


class Centering(nn.Module):
    """The teacher's targets by centering (DINO): a softmax of the logits minus their moving average.

    Args:
        num_prototypes: Number of logits.
        momentum: Decay of the moving average.
    """

    def __init__(self, num_prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, num_prototypes))

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Returns the targets `(M, K)` of the teacher's logits `(M, K)`."""
        return ((at_least_float32(logits) - self.center) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, logits: torch.Tensor) -> None:
        """Moves the average towards the mean of logits `(M, K)` over all processes."""
        sums = at_least_float32(logits).sum(0)  # (K,)
        total = torch.cat([sums, sums.new_tensor([len(logits)])])
        if distributed.is_initialized():
            distributed.all_reduce(total)
        # without masks there are no patches
        self.center.lerp_((total[:-1] / total[-1].clamp_min(1))[None], 1 - self.momentum)


def cross_entropies(
    targets: torch.Tensor, logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Returns the cross-entropies `(...)` of target distributions `(..., K)` and logits `(..., K)`."""
    return -(targets * (at_least_float32(logits) / temperature).log_softmax(-1)).sum(-1)


def dino_losses(
    targets: torch.Tensor,
    global_logits: torch.Tensor,
    local_logits: torch.Tensor,
    temperature: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns DINO's loss as the parts of the local and of the global crops.

    Their sum is the mean cross-entropy over all pairs of a teacher's crop and a student's other crop
    of the same image.

    Args:
        targets: The teacher's targets of the two global crops `(2, B, K)`.
        global_logits: The student's logits of the same crops `(2, B, K)`.
        local_logits: The student's logits of the local crops `(L, B, K)`; `L` may be 0.
        temperature: The student's temperature.
    """
    num_pairs = 2 + 2 * len(local_logits)
    of_local = cross_entropies(targets[:, None], local_logits[None], temperature)  # (2, L, B)
    of_global = cross_entropies(targets.flip(0), global_logits, temperature)  # (2, B)
    batch = targets.shape[1]
    return of_local.sum() / batch / num_pairs, of_global.sum() / batch / num_pairs


def ibot_loss(
    targets: torch.Tensor,
    logits: torch.Tensor,
    weights: torch.Tensor,
    num_crops: int,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Returns iBOT's loss (arXiv 2111.07832): the cross-entropy of masked patches, averaged within
    each masked crop, and summed over them per global crop.

    Args:
        targets: The teacher's targets of the masked patches `(M, K)`.
        logits: The student's logits of the same patches `(M, K)`.
        weights: One over the number of masked patches of the patch's crop `(M,)`.
        num_crops: Number of global crops, including those without a mask.
        temperature: The student's temperature.
    """
    return (cross_entropies(targets, logits, temperature) * weights).sum() / num_crops


def koleo_loss(features: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Returns the Kozachenko-Leonenko loss (arXiv 1806.03198), which spreads features: minus the mean
    log distance of a feature to its nearest neighbor on the unit sphere, over all processes.

    Args:
        features: Features `(B, D)` of one crop of each image; no other crop of the same images, which
            would be the neighbors.
        eps: Least distance.

    Raises:
        ValueError: If there is only one feature in all processes.
    """
    features = F.normalize(at_least_float32(features), dim=-1, eps=eps)  # (B, D)
    others, start = features, 0
    if distributed.is_initialized():
        others = torch.cat(all_gather(features))  # (N, D)
        start = distributed.get_rank() * len(features)
    if len(others) < 2:
        raise ValueError(
            "KoLeo compares at least two images: enlarge the batch, or set its weight to 0."
        )
    with torch.no_grad(), full_precision(features.device):
        similarities = features @ others.T  # (B, N)
        rows = torch.arange(len(features), device=features.device)
        similarities[rows, start + rows] = -1  # not itself
        nearest = similarities.argmax(1)  # (B,)
    distances = F.pairwise_distance(features, others[nearest], eps=eps)  # (B,)
    return -(distances + eps).log().mean()
