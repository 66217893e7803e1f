"""The training losses of Mask2Former (Cheng et al., 2022, section 3.3), with one more for each subcategory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.losses.matcher import HungarianMatcher, Match
from workbench.losses.point_sampling import point_sample, random_points, uncertain_points

_log = logging.getLogger(__name__)


def mask_losses(logits: Tensor, targets: Tensor, num_masks: Tensor | float) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of matched masks at sampled points.

    Args:
        logits: (N, P) float.
        targets: (N, P) in [0, 1].
        num_masks: what the sums over masks are divided by.

    Returns:
        Two scalars: the mean over points of the cross-entropy, and 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)
        (the dice loss with a smoothing of 1), each summed over masks and divided by ``num_masks``.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()
    probabilities = logits.sigmoid()
    dice = 1 - (2 * (probabilities * targets).sum(1) + 1) / (probabilities.sum(1) + targets.sum(1) + 1)
    return cross_entropy / num_masks, dice.sum() / num_masks


class SetCriterion(nn.Module):
    """Match, then add up class, mask, dice and subcategory losses of every decoder layer.

    Args:
        matcher: assigns queries to objects.
        class_weight, mask_weight, dice_weight: weights of the three losses.
        subcategory_weight: weight of each subcategory's loss; 0 leaves subcategories out altogether.
        no_object_weight: weight of the no-object class in every classification loss.
        num_points, oversample_ratio, importance_sample_ratio: PointRend's sampling of mask points: of
            ``num_points * oversample_ratio`` uniform candidates the ``importance_sample_ratio`` most uncertain are
            kept, the rest of ``num_points`` is uniform.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        subcategory_weight: float = 1.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ):
        super().__init__()
        self.matcher = matcher
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.subcategory_weight = subcategory_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = min(int(num_points * importance_sample_ratio), self.num_candidates)
        self._told_too_many = False

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        seeds: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of one batch.

        Args:
            outputs: raw outputs: ``pred_logits`` (B, Q, K+1), ``pred_masks`` (B, Q, h, w), ``pred_subcategories``
                {name: (B, Q, K_s+1)}, ``aux_outputs`` a list of the same, one an earlier decoder layer.
            targets: B mappings: ``labels`` (N,) int64, ``masks`` (N, H, W) bool covering the same area as
                ``pred_masks``, ``subcategories`` {name: (N,) int64}, -1 unlabelled.
            seeds: one an image, from which its sampling points are drawn, so that they do not depend on the batch
                or process it lands in; None draws from the global generator.

        Returns:
            ``loss_ce``, ``loss_mask``, ``loss_dice`` and ``loss_subcategory_<name>`` of the last layer, and the same
            with ``_0``, ``_1``, ... for the earlier ones. Each is a scalar, already multiplied by its weight, and
            normalised over the batches of all processes, so that averaging gradients over processes gives those of
            the whole batch.
        """
        self._tell_of_too_many(outputs["pred_logits"].shape[1], targets)
        layers = [*outputs.get("aux_outputs", ()), outputs]
        names = [*map(str, range(len(layers) - 1)), ""]
        device = outputs["pred_logits"].device
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if seeds is not None else None
        matches = self.matcher(layers, targets, generators)
        matches = [[(q.to(device), t.to(device)) for q, t in layer] for layer in matches]

        weights: list[float] = []
        sums: dict[str, Tensor] = {}
        counts: list[Tensor] = []

        def add(key: str, weight: float, total: Tensor, count: Tensor) -> None:
            if key in sums:
                raise ValueError(f"two losses are both called {key}: rename one of the subcategories")
            sums[key] = total
            weights.append(weight)
            counts.append(count)

        for layer, matched, name in zip(layers, matches, names, strict=True):
            suffix = f"_{name}" if name else ""
            labels = [target["labels"] for target in targets]
            add(
                f"loss_ce{suffix}",
                self.class_weight,
                *self._class_loss(layer["pred_logits"], labels, matched),
            )
            if self.subcategory_weight:
                for subcategory, logits in layer["pred_subcategories"].items():
                    labels = [target["subcategories"][subcategory] for target in targets]
                    total, count = self._class_loss(logits, labels, matched)
                    add(f"loss_subcategory_{subcategory}{suffix}", self.subcategory_weight, total, count)
            cross_entropy, dice = self._mask_losses(layer["pred_masks"], targets, matched, generators)
            num_masks = dice.new_tensor(float(sum(len(objects) for _, objects in matched)))
            add(f"loss_mask{suffix}", self.mask_weight, cross_entropy, num_masks)
            add(f"loss_dice{suffix}", self.dice_weight, dice, num_masks)
        normalisers = _mean_over_processes(torch.stack(counts)).unbind()
        return {
            key: weight * total / normaliser
            for (key, total), weight, normaliser in zip(sums.items(), weights, normalisers, strict=True)
        }

    def _class_loss(self, logits: Tensor, labels: Sequence[Tensor], matched: Sequence[Match]) -> tuple[Tensor, Tensor]:
        """Weighted cross-entropy summed over queries, and the sum of the weights.

        Queries without an object are taught the no-object class; those of an unlabelled object nothing.
        """
        logits = logits.float()
        no_object = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:2], no_object, dtype=torch.int64, device=logits.device)
        for image, (queries, objects) in enumerate(matched):
            wanted[image, queries] = labels[image][objects]
        weights = logits.new_ones(no_object + 1)
        weights[no_object] = self.no_object_weight
        total = F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), weight=weights, ignore_index=-1, reduction="sum"
        )
        return total, torch.where(wanted >= 0, weights[wanted], 0.0).sum()

    def _mask_losses(
        self,
        pred_masks: Tensor,
        targets: Sequence[Mapping[str, Any]],
        matched: Sequence[Match],
        generators: Sequence[torch.Generator] | None,
    ) -> tuple[Tensor, Tensor]:
        """Sums over matched masks of the two mask losses at sampled points."""
        logits = torch.cat([pred_masks[i, queries] for i, (queries, _) in enumerate(matched)]).unsqueeze(1)
        if not len(logits):  # keep the graph, so that every parameter still has a gradient
            return pred_masks.sum() * 0.0, pred_masks.sum() * 0.0
        truth = torch.cat([targets[i]["masks"][objects] for i, (_, objects) in enumerate(matched)]).unsqueeze(1)
        candidates, extra = self._draw_points(matched, generators, logits.device)
        points = uncertain_points(logits, candidates, extra, self.num_uncertain)
        with torch.no_grad():
            wanted = point_sample(truth.float(), points).squeeze(1)
        return mask_losses(point_sample(logits, points).squeeze(1).float(), wanted, 1.0)

    def _draw_points(
        self, matched: Sequence[Match], generators: Sequence[torch.Generator] | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Uniform points, drawn image by image so that they depend on nothing but the image's seed."""
        num_extra = self.num_points - self.num_uncertain
        candidates, extra = [], []
        for image, (queries, _) in enumerate(matched):
            generator = generators[image] if generators is not None else None
            drawn = random_points(len(queries), self.num_candidates + num_extra, generator=generator, device=device)
            candidates.append(drawn[:, : self.num_candidates])
            extra.append(drawn[:, self.num_candidates :])
        return torch.cat(candidates), torch.cat(extra)

    def _tell_of_too_many(self, num_queries: int, targets: Sequence[Mapping[str, Any]]) -> None:
        most = max((len(target["labels"]) for target in targets), default=0)
        if most > num_queries and not self._told_too_many:
            self._told_too_many = True
            _log.warning(
                "an image has %d objects but the model has %d queries: at most %d of them can be learnt or found; "
                "raise MODEL.MASK_FORMER.NUM_OBJECT_QUERIES above the largest number of objects in an image",
                most,
                num_queries,
                num_queries,
            )


def _mean_over_processes(counts: Tensor) -> Tensor:
    """Each count summed over processes and divided by their number; a count of nothing is kept off zero."""
    world_size = 1
    if dist.is_available() and dist.is_initialized():
        world_size = dist.get_world_size()
        dist.all_reduce(counts)
    return counts.clamp(min=1e-6) / world_size
