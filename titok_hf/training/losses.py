"""Adversarial losses, and means over all processes."""

import torch
from torch import distributed
from torch.nn import functional as F

GRADIENT_SCALE = 2.0**12  # a power of 2, so that it changes no bit where nothing underflows


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Returns values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Returns the mean of a tensor over all processes, with the gradient of the local tensor.

    Distributed training averages gradients over processes, which gives the full gradient of any
    function of this mean.
    """
    if not distributed.is_initialized():
        return values
    mean = values.detach().clone()
    distributed.all_reduce(mean)
    return values + (mean / distributed.get_world_size() - values.detach())


def hinge_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss that pushes the logits of real images above 1 and those of fake ones below -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def lecam_loss(
    real_mean: torch.Tensor,
    fake_mean: torch.Tensor,
    real_average: torch.Tensor,
    fake_average: torch.Tensor,
) -> torch.Tensor:
    """LeCam regularization (arXiv 2104.03310): keeps each side's mean logit near the other side's
    moving average.

    Args:
        real_mean, fake_mean: Mean logits of the batch, scalars.
        real_average, fake_average: Exponential moving averages of them, scalars without gradient.
    """
    return F.relu(real_mean - fake_average).square() + F.relu(real_average - fake_mean).square()


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_layer: torch.Tensor
) -> torch.Tensor:
    """VQGAN's adaptive weight: the ratio of the losses' gradient norms at the decoder's last layer.

    See Taming Transformers (arXiv 2012.09841, equation 7). The ratio is clamped to 10,000, and the
    gradients are first averaged over all processes. The losses are scaled up before the backward
    pass, because the gradient of a mean over all pixels would underflow in float16.

    Args:
        reconstruction_loss: Scalar that includes the perceptual loss.
        adversarial_loss: Scalar.
        last_layer: Weight of the decoder's last layer.

    Returns:
        A scalar without gradient.
    """
    losses = (
        GRADIENT_SCALE * at_least_float32(loss) for loss in (reconstruction_loss, adversarial_loss)
    )
    gradients = torch.stack(
        [
            at_least_float32(torch.autograd.grad(loss, last_layer, retain_graph=True)[0])
            for loss in losses
        ]
    )
    gradients = gradients / GRADIENT_SCALE
    reconstruction, adversarial = mean_over_processes(gradients).flatten(1).norm(dim=1)
    return (reconstruction / (adversarial + 1e-4)).clamp(max=1e4)
