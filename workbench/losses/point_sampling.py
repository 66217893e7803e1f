"""Mask losses at sampled points instead of whole masks (PointRend, Kirillov et al., 2020, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, bilinearly; what lies outside counts as 0.

    Args:
        maps: (N, C, H, W) floating.
        points: (N, P, 2) as (x, y) in [0, 1], (0, 0) being the top left corner of the top left pixel.

    Returns:
        (N, C, P) in the dtype of ``maps``.
    """
    grid = (2.0 * points - 1.0).to(maps.dtype).unsqueeze(2)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(3)


def uncertain_points(logits: Tensor, candidates: Tensor, extra: Tensor, keep: int) -> Tensor:
    """The points to train on: the most uncertain of the candidates, and some uniform ones for coverage.

    Uncertainty of a mask logit is -|logit|: greatest on the predicted boundary.

    Args:
        logits: (N, 1, H, W) mask logits, used without gradient.
        candidates: (N, P_candidates, 2) uniform points in [0, 1].
        extra: (N, P_extra, 2) uniform points that are always kept.
        keep: how many candidates to keep a mask.

    Returns:
        (N, keep + P_extra, 2).
    """
    with torch.no_grad():
        uncertainty = -point_sample(logits.detach(), candidates).squeeze(1).abs()
        chosen = uncertainty.topk(keep, dim=1, sorted=False).indices
        chosen_points = candidates.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
    return torch.cat([chosen_points, extra], dim=1)
