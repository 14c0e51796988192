"""PSNR and SSIM between reconstructions and their originals, per image."""

from collections.abc import Callable

import torch


def peak_signal_to_noise_ratio(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes the peak signal-to-noise ratio of each image in dB, `10 log10(255^2 / MSE)`.

    Equal images, whose ratio is infinite, count as if a single value differed by 1. That is the
    largest ratio that different images can have, 101 dB at 256x256, and keeps means finite.

    Args:
        images, targets: uint8 `(B, 3, H, W)`.

    Returns:
        `(B,)` in float64.
    """
    check_images(images, targets)
    # summed as integers, exactly
    squares = (images.int() - targets.int()).square().flatten(1).sum(1)  # (B,)
    return 10 * (255**2 * images[0].numel() / squares.clamp_min(1).double()).log10()


def structural_similarity(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes the structural similarity (SSIM) of each image with torchmetrics, as VTP's evaluation
    does: on values in [0, 1], with a Gaussian window of 11x11 pixels and standard deviation 1.5,
    and reflected edges.

    Args:
        images, targets: uint8 `(B, 3, H, W)` with sides of at least 11.

    Returns:
        `(B,)` in float32, at most 1.

    Raises:
        ImportError: If torchmetrics is not installed.
        ValueError: If the images are smaller than the window, or not of one shape.
    """
    ssim = import_ssim()
    check_images(images, targets)
    if min(images.shape[2:]) < 11:
        height, width = images.shape[2:]
        raise ValueError(
            "SSIM needs images of at least 11x11 pixels, the size of its window, got "
            f"{height}x{width}."
        )
    return ssim(images.float() / 255, targets.float() / 255, reduction="none", data_range=1.0)


def import_ssim() -> Callable[..., torch.Tensor]:
    """Imports the SSIM of torchmetrics; raises `ImportError` if that is not installed."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError(
            'SSIM comes with torchmetrics: pip install "titok_hf[evaluation]".'
        ) from error
    return structural_similarity_index_measure


def check_images(images: torch.Tensor, targets: torch.Tensor) -> None:
    """Raises `TypeError` or `ValueError` unless these are uint8 images `(B, 3, H, W)` of one shape."""
    if images.dtype != torch.uint8 or targets.dtype != torch.uint8:
        raise TypeError(
            f"Images must be uint8 in [0, 255], got {images.dtype} and {targets.dtype}."
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.shape != targets.shape:
        raise ValueError(
            "Images and targets must have the same shape (B, 3, H, W), got "
            f"{tuple(images.shape)} and {tuple(targets.shape)}."
        )
