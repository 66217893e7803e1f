"""Sine position encoding of feature maps (Vaswani et al., 2017, section 3.5; DETR's two-dimensional form)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_encoding(
    height: int, width: int, channels: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(channels, height, width) ``dtype``: the first half of the channels encodes y, the second x.

    Coordinates are 1-based, normalised to (0, 2 pi]; wavelengths grow geometrically to 10000.
    """
    half = channels // 2
    index = torch.arange(half, dtype=dtype, device=device)
    wavelength = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    axes = []
    for size in (height, width):
        position = torch.arange(1, size + 1, dtype=dtype, device=device) / (size + 1e-6) * 2 * math.pi
        angle = position[:, None] / wavelength
        axes.append(torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1))  # (size, half)
    y, x = axes
    y = y.T[:, :, None].expand(half, height, width)
    x = x.T[:, None, :].expand(half, height, width)
    return torch.cat([y, x])
