"""Multi-scale deformable attention: one function over every back end."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workbench.ops.reference import deform_attn_reference


def deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """value (B, S, M, D), spatial_shapes [(H, W)] * L, sampling_locations (B, Lq, M, L, P, 2) in [0, 1] as (x, y),
    attention_weights (B, Lq, M, L, P) -> (B, Lq, M*D) in value's dtype."""
    return deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)
