"""Checks at the public border of the models: one sentence that says what was expected and what
came."""

import torch


def check_pixel_values(pixel_values: torch.Tensor, num_channels: int, image_size: int) -> None:
    """Raises `TypeError` or `ValueError` unless these are float images `(B, num_channels, size,
    size)` in [0, 1].

    Values a tenth outside pass, since interpolation overshoots.
    """
    if not torch.is_floating_point(pixel_values):
        raise TypeError(
            f"`pixel_values` must be float images in [0, 1], got {pixel_values.dtype}; the image "
            "processor converts "
            "PIL and uint8 images."
        )
    expected = (num_channels, image_size, image_size)
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
        raise ValueError(
            f"`pixel_values` must have shape (batch, {num_channels}, {image_size}, {image_size}), "
            f"got {tuple(pixel_values.shape)}; the image processor resizes and crops."
        )
    if torch.compiler.is_compiling() or pixel_values.numel() == 0:
        return
    low, high = (float(bound) for bound in torch.aminmax(pixel_values.detach()))
    if not (low >= -0.1 and high <= 1.1):
        raise ValueError(
            f"`pixel_values` must be in [0, 1], got values from {low:.4g} to {high:.4g}; the image "
            "processor rescales "
            "and does not normalize."
        )


def check_normalized_pixel_values(
    pixel_values: torch.Tensor, num_channels: int, patch_size: int
) -> None:
    """Raises `TypeError` or `ValueError` unless these are normalized float images `(B,
    num_channels, H, W)` with sides that are multiples of `patch_size`.

    Normalized is by ImageNet's mean and standard deviation. Images in [0, 255] are told from
    normalized ones by values beyond 10, images in [0, 1] and in [-1, 1] by values from nearly one
    end to nearly the other and none beyond.
    """
    if not torch.is_floating_point(pixel_values):
        raise TypeError(
            f"`pixel_values` must be normalized float images, got {pixel_values.dtype}; the image "
            "processor converts "
            "PIL and uint8 images."
        )
    shape = tuple(pixel_values.shape)
    if (
        len(shape) != 4
        or shape[1] != num_channels
        or any(side == 0 or side % patch_size for side in shape[2:])
    ):
        raise ValueError(
            f"`pixel_values` must have shape (batch, {num_channels}, height, width), channels "
            f"first, with sides that are multiples of {patch_size}, got {shape}; the image "
            "processor resizes and crops."
        )
    if torch.compiler.is_compiling() or pixel_values.numel() == 0:
        return
    low, high = (float(bound) for bound in torch.aminmax(pixel_values.detach()))
    in_unit = 0 <= low < 0.05 and 0.55 < high <= 1
    in_symmetric = abs(low + 1) < 0.01 and abs(high - 1) < 0.01
    if not (low >= -10 and high <= 10) or in_unit or in_symmetric:
        guess = (
            ", as of images in [0, 1]"
            if in_unit
            else ", as of images in [-1, 1]"
            if in_symmetric
            else ""
        )
        raise ValueError(
            "`pixel_values` must be normalized by ImageNet's mean and standard deviation, got "
            f"values from {low:.4g} to {high:.4g}{guess}; the image processor normalizes."
        )


def check_ids(ids: torch.Tensor, name: str, upper: int, shape: tuple[int | str, ...]) -> None:
    """Raises `TypeError` or `ValueError` unless `ids` is an integer tensor of `shape` with values
    in `[0, upper)`.

    A string in `shape` names a free dimension.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`{name}` must be an int64 tensor, got {ids.dtype}.")
    if ids.ndim != len(shape) or any(
        isinstance(n, int) and n != m for n, m in zip(shape, ids.shape, strict=True)
    ):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"`{name}` must have shape ({expected}), got {tuple(ids.shape)}.")
    if torch.compiler.is_compiling() or ids.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < 0 or high >= upper:
        raise ValueError(f"`{name}` must be in [0, {upper}), got values from {low} to {high}.")
