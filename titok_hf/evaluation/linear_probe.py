"""What a representation knows: a linear classifier on frozen features."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..modeling.vtp.modeling_vtp import VTPPreTrainedModel


@torch.no_grad()
def vision_features(
    model: VTPPreTrainedModel, batches: Iterable[torch.Tensor], num_blocks: int = 4, bottleneck: bool = False
) -> torch.Tensor:
    """Features for a probe: CLS tokens of the last blocks, and the mean of the last patches.

    Args:
        model: A VTP.
        batches: Normalized images `(B, 3, H, W)`.
        num_blocks: Blocks whose CLS tokens are read. Published probes of VTP take the better of 1 and 4.
        bottleneck: Whether to read the mean of the latents behind the bottleneck instead.

    Returns:
        `(n, (num_blocks + 1) * D)`, or `(n, latent_dim)`, in float32 on the CPU.

    Raises:
        ValueError: If the model has not as many blocks.
    """
    depth = model.config.vision_num_hidden_layers
    if not bottleneck and not 1 <= num_blocks <= depth:
        raise ValueError(f"`num_blocks` must be from 1 to the {depth} blocks of the model, got {num_blocks}.")
    features = []
    for images in batches:
        images = images.to(model.device)
        if bottleneck:
            features.append(model.encode(images).latents.flatten(2).mean(-1).float().cpu())
            continue
        vision = model.get_vision_features(images, output_hidden_states=True)
        cls_tokens = [hidden[:, 0] for hidden in vision.hidden_states[-num_blocks:]]
        features.append(torch.cat([*cls_tokens, vision.patch_tokens.mean(1)], dim=-1).float().cpu())
    return torch.cat(features)


def linear_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    weight_decays: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of a logistic regression on standardized features.

    The weight decay is chosen on a random fifth of the training features; the test features are only measured on.

    Args:
        train_features, test_features: `(n, D)`.
        train_labels, test_labels: `(n,)` in [0, classes).
        weight_decays: To choose from.
        seed: Of the split.

    Returns:
        `accuracy` in [0, 1] on the test features, and the chosen `weight_decay`.

    Raises:
        ValueError: If there is one class only, or features and labels differ in number.
    """
    for features, labels in ((train_features, train_labels), (test_features, test_labels)):
        if len(features) != len(labels):
            raise ValueError(f"There must be a label for each of {len(features)} features, got {len(labels)}.")
    if train_labels.unique().numel() < 2:
        raise ValueError("A probe needs at least two classes, got one.")
    mean, std = train_features.mean(0), train_features.std(0).clamp_min(1e-6)
    train_features, test_features = (train_features - mean) / std, (test_features - mean) / std
    order = torch.randperm(len(train_features), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    num_classes = int(train_labels.max()) + 1

    def accuracy(probe: nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> float:
        return float((probe(features).argmax(-1) == labels).double().mean())

    chosen = max(
        weight_decays,
        key=lambda decay: accuracy(
            fit(train_features[rest], train_labels[rest], num_classes, decay),
            train_features[held_out],
            train_labels[held_out],
        ),
    )
    probe = fit(train_features, train_labels, num_classes, chosen)
    return {"accuracy": accuracy(probe, test_features, test_labels), "weight_decay": chosen}


def fit(features: torch.Tensor, labels: torch.Tensor, num_classes: int, weight_decay: float) -> nn.Linear:
    """Minimizes cross-entropy plus `weight_decay / 2` times the squared weights."""
    probe = nn.Linear(features.shape[1], num_classes, device=features.device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe(features), labels) + weight_decay / 2 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe.requires_grad_(False)
