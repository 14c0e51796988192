"""Rotary positions of VTP, those of DINOv3."""

import math

import torch

from ..transformer import Rotation


def rotary_periods(head_dim: int, device: torch.device) -> torch.Tensor:
    """Returns the periods `(head_dim / 4,)` of DINOv3's RoPE, from 1 up to 100, in bfloat16."""
    exponents = (
        2 * torch.arange(head_dim // 4, device=device, dtype=torch.bfloat16) / (head_dim // 2)
    )
    return 100.0**exponents


def axial_rotation(height: int, width: int, head_dim: int, device: torch.device) -> Rotation:
    """Returns the cosines and sines `(height * width, head_dim)` of DINOv3's axial RoPE.

    Coordinates run from -1 to 1 along each axis at any size; half of a head rotates with the row,
    half with the column. Every step is in bfloat16, the rounding that the released weights were
    trained with.
    """
    dtype = torch.bfloat16
    rows = torch.arange(0.5, height, device=device, dtype=dtype) / height
    columns = torch.arange(0.5, width, device=device, dtype=dtype) / width
    coordinates = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(
        0, 1
    )  # (N, 2)
    coordinates = 2.0 * coordinates - 1.0
    angles = (
        2 * math.pi * coordinates[:, :, None] / rotary_periods(head_dim, device)
    )  # (N, 2, D / 4)
    angles = angles.flatten(1).tile(2)  # (N, D)
    return angles.cos(), angles.sin()
