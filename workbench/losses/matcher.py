"""Bipartite matching of queries to objects (DETR, Carion et al., 2020, equation 1), with subcategory costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from workbench.losses.point_sampling import point_sample

Match = tuple[Tensor, Tensor]


def mask_costs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Pairwise binary cross-entropy and dice costs at sampled points.

    Args:
        logits: (..., Q, P) mask logits at P points.
        targets: (N, P) mask values in [0, 1] at the same points.

    Returns:
        Two (..., Q, N) tensors: the mean cross-entropy, and 1 - (2|a·b| + 1) / (|a| + |b| + 1) of Mask2Former.
    """
    # BCE(x, t) = softplus(x) - x t, so the sum over points is a row sum and one matrix product.
    points = logits.shape[-1]
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ targets.T) / points
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ targets.T
    total = probabilities.sum(-1, keepdim=True) + targets.sum(-1)
    return cross_entropy, 1 - (overlap + 1) / (total + 1)


def label_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of each object's class: (..., Q, K+1) and (N,) int64 give (..., Q, N).

    A label of -1 (unlabelled) costs 0 for every query, so it does not affect the matching.
    """
    cost = -logits.softmax(-1)[..., labels.clamp(min=0)]
    return cost * (labels >= 0)


class HungarianMatcher(nn.Module):
    """The assignment of least total cost, at most one object a query.

    Args:
        class_cost, mask_cost, dice_cost: weights of the three terms of Mask2Former (section 3.3).
        subcategory_cost: weight of each subcategory's :func:`label_cost`; 0 leaves subcategories out altogether.
        num_points: points a mask is compared at (the same ones for every pair of an image).
    """

    def __init__(
        self,
        *,
        class_cost: float = 2.0,
        mask_cost: float = 5.0,
        dice_cost: float = 5.0,
        subcategory_cost: float = 1.0,
        num_points: int = 12544,
    ):
        super().__init__()
        self.class_cost, self.mask_cost, self.dice_cost = class_cost, mask_cost, dice_cost
        self.subcategory_cost = subcategory_cost
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self,
        layers: Sequence[Mapping[str, Tensor]],
        targets: Sequence[Mapping[str, Tensor]],
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> list[list[Match]]:
        """Match every decoder layer's predictions with every image's objects.

        Args:
            layers: raw outputs, one mapping a decoder layer: ``pred_logits`` (B, Q, K+1), ``pred_masks``
                (B, Q, h, w), ``pred_subcategories`` {name: (B, Q, K_s+1)}.
            targets: B mappings: ``labels`` (N,), ``masks`` (N, H, W), ``subcategories`` {name: (N,)}, -1 unlabelled.
            generators: B random generators, one an image; None draws from the global one.

        Returns:
            ``matches[layer][image]``: (query indices, object indices), int64 on the CPU, min(Q, N) each, in the
            order of the objects.
        """
        generators = generators or [None] * len(targets)
        matches: list[list[Match]] = [[] for _ in layers]
        for image, (target, generator) in enumerate(zip(targets, generators, strict=True)):
            costs = sum(self.cost_terms(layers, image, target, generator).values()).float().cpu()
            # A non-finite cost is no reason to stop here: the loss it leads to names the component at fault.
            for layer, cost in enumerate(costs.nan_to_num(1e6, 1e6, -1e6).numpy()):
                queries, objects = (torch.as_tensor(index) for index in linear_sum_assignment(cost))
                order = objects.argsort()
                matches[layer].append((queries[order], objects[order]))
        return matches

    def cost_terms(
        self,
        layers: Sequence[Mapping[str, Tensor]],
        image: int,
        target: Mapping[str, Tensor],
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Return the terms whose sum is the cost of one image's pairs.

        Args:
            layers: as in :meth:`forward`. target: that of the image.
            generator: draws the points that masks are compared at.

        Returns:
            ``class``, ``mask`` and ``dice``, and ``subcategory <name>`` unless their cost is 0: each (layers, Q, N)
            float, already multiplied by its weight.
        """
        logits = torch.stack([layer["pred_logits"][image] for layer in layers]).float()
        if not len(target["labels"]):
            return {"class": logits.new_zeros(*logits.shape[:2], 0)}
        points = torch.rand(1, self.num_points, 2, generator=generator, device=logits.device)
        samples = torch.cat([point_sample(layer["pred_masks"][image : image + 1], points) for layer in layers]).float()
        truth = point_sample(target["masks"].to(samples.dtype).unsqueeze(0), points).squeeze(0)
        cross_entropy, dice = mask_costs(samples, truth)
        terms = {
            "class": self.class_cost * label_cost(logits, target["labels"]),
            "mask": self.mask_cost * cross_entropy,
            "dice": self.dice_cost * dice,
        }
        if self.subcategory_cost:
            for name, labels in target["subcategories"].items():
                heads = torch.stack([layer["pred_subcategories"][name][image] for layer in layers]).float()
                terms[f"subcategory {name}"] = self.subcategory_cost * label_cost(heads, labels)
        return terms
