"""Input checks of the public model API; errors say what was expected and what was passed.

Networks check shapes and dtypes, which the host knows. Values are checked only where they enter,
since reading them synchronizes with the device.
"""

from typing import Any

import torch
from torch import nn


def check_tensor(value: Any, name: str) -> None:
    """Raises `TypeError` unless `value` is a tensor."""
    if not isinstance(value, torch.Tensor):
        kind = type(value)
        raise TypeError(
            f"`{name}` must be a tensor, got {kind.__module__}.{kind.__name__}; `torch.as_tensor` "
            "converts arrays and lists."
        )


def check_pixel_values(
    pixel_values: torch.Tensor,
    num_channels: int,
    image_size: int | None = None,
    multiple_of: int = 1,
) -> None:
    """Raises `TypeError` or `ValueError` unless these are float images `(B, num_channels, H, W)`.

    Args:
        pixel_values: The images.
        num_channels: Expected number of channels.
        image_size: Expected height and width; any if not given.
        multiple_of: Number that must divide height and width.
    """
    check_tensor(pixel_values, "pixel_values")
    if not torch.is_floating_point(pixel_values):
        raise TypeError(
            f"`pixel_values` must be float images, got {pixel_values.dtype}; the image processor "
            "converts PIL and uint8 images."
        )
    shape = tuple(pixel_values.shape)
    if image_size is None:
        expected = f"height, width), channels first, with sides that are multiples of {multiple_of}"
        fits = all(side and side % multiple_of == 0 for side in shape[2:])
    else:
        expected = f"{image_size}, {image_size})"
        fits = shape[2:] == (image_size, image_size)
    if len(shape) != 4 or shape[1] != num_channels or not fits:
        raise ValueError(
            f"`pixel_values` must have shape (batch, {num_channels}, {expected}, got {shape}; "
            "the image processor resizes and crops."
        )


def check_unit_range(pixel_values: torch.Tensor) -> None:
    """Raises `ValueError` unless images are in [0, 1]; synchronizes with the device once.

    Values up to 0.1 outside pass, since interpolation overshoots.
    """
    low, high = torch.stack(torch.aminmax(pixel_values)).tolist()
    if not (low >= -0.1 and high <= 1.1):
        raise ValueError(
            f"`pixel_values` must be in [0, 1], got values from {low:.4g} to {high:.4g}; the image "
            "processor rescales and does not normalize."
        )


def check_ids(ids: torch.Tensor, name: str, shape: tuple[int | str, ...]) -> None:
    """Raises `TypeError` or `ValueError` unless `ids` is an integer tensor of `shape`.

    A string in `shape` names a free dimension.
    """
    check_tensor(ids, name)
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`{name}` must be an int64 tensor, got {ids.dtype}.")
    if ids.ndim != len(shape) or any(
        isinstance(n, int) and n != m for n, m in zip(shape, ids.shape, strict=True)
    ):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"`{name}` must have shape ({expected}), got {tuple(ids.shape)}.")


def check_id_range(ids: torch.Tensor, name: str, upper: int) -> None:
    """Raises `ValueError` unless `ids` are in `[0, upper)`; synchronizes with the device once."""
    if ids.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(ids)).tolist()
    if low < 0 or high >= upper:
        raise ValueError(f"`{name}` must be in [0, {upper}), got values from {low} to {high}.")


def check_ends_in_pixels(tokenizer: nn.Module) -> None:
    """Raises `ValueError` if a tokenizer decodes to the logits of proxy codes."""
    if getattr(tokenizer.config, "head", None) == "proxy_codes":
        raise ValueError(
            "The tokenizer must decode to pixels, but ends in proxy codes: it lacks the decoder of its "
            "VQGAN (see `TiTokModel.with_pixel_decoder`)."
        )
