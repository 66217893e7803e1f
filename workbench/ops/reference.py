"""Multi-scale deformable attention in plain PyTorch, on any device and in any floating dtype.

It defines the operator: every other back end is compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deform_attn_reference(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample each head's feature maps at a few points a query and add them up, weighted.

    Deformable DETR (Zhu et al., 2021), equation 3, without the linear layers around it. A location (x, y) of
    a level (H, W) reads the bilinear interpolation at pixel (x*W - 0.5, y*H - 0.5); outside counts as 0.

    Args:
        value: (B, S, M, D) with S = sum of H*W over the levels, level after level, row after row.
        spatial_shapes: (H, W) of each of the L levels.
        sampling_locations: (B, Lq, M, L, P, 2) as (x, y), [0, 1] across the map; anything else is legal.
        attention_weights: (B, Lq, M, L, P); need not add up to 1.

    Returns:
        (B, Lq, M*D) in value's dtype. Half precision is computed in float32.
    """
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    maps = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)
    # Beyond [-1, 2] all is outside; grid_sample's own integers overflow on numbers that are large enough.
    locations = sampling_locations.to(dtype).clamp(-1, 2)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Lq, L, P, 2)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # (B*M, Lq, L, P)
    samples = []
    for level, (height, width) in enumerate(spatial_shapes):
        image = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, level]
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    stacked = torch.stack(samples, dim=-2).flatten(-2)  # (B*M, D, Lq, L*P)
    output = (stacked * weights.reshape(batch * heads, 1, queries, len(spatial_shapes) * points)).sum(-1)
    return output.reshape(batch, heads * channels, queries).transpose(1, 2).contiguous().to(value.dtype)


def deform_attn_reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`deform_attn_reference` with respect to its three tensors.

    It is for the inside of an operator, where autograd records nothing.

    Args:
        grad_output: (B, Lq, M*D). value, spatial_shapes, sampling_locations, attention_weights: as in the forward.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    maps = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)
    grids = (2 * sampling_locations.to(dtype).clamp(-1, 2) - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)
    grad = grad_output.to(dtype).reshape(batch, queries, heads, channels).permute(0, 2, 3, 1).flatten(0, 1)[..., None]
    mode = (0, 0, False)  # bilinear, zeros, align_corners
    grad_maps, grad_grids, grad_weights = [], [], []
    for level, (height, width) in enumerate(spatial_shapes):
        image = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, level]
        samples = torch.grid_sampler(image, grid, *mode)  # (B*M, D, Lq, P)
        grad_image, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            (grad * weights[:, None, :, level]).contiguous(), image, grid, *mode, (True, True)
        )
        grad_maps.append(grad_image.reshape(batch, heads, channels, height * width).permute(0, 3, 1, 2))
        grad_grids.append(2 * grad_grid)
        grad_weights.append((samples * grad).sum(1))
    grad_locations = torch.stack(grad_grids, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    grad_attention = torch.stack(grad_weights, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    grad_value = torch.cat(grad_maps, 1)
    return (
        grad_value.to(value.dtype).contiguous(),
        grad_locations.to(sampling_locations.dtype).contiguous(),
        grad_attention.to(attention_weights.dtype).contiguous(),
    )
