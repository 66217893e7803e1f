"""The training losses of Mask2Former (Cheng et al., 2022, section 3.3), with one more for each subcategory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.losses.matcher import HungarianMatcher, Match
from workbench.losses.point_sampling import point_sample, uncertain_points

_log = logging.getLogger(__name__)

Generators = Sequence[torch.Generator] | None
LossTerm = tuple[float, Tensor, Tensor]  # weight, sum, normaliser
LayerLoss = Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]], Sequence[Match], Generators], dict[str, LossTerm]]

_SUBCATEGORY = "loss_subcategory_"
_IGNORED = -1  # the label of an unlabelled object, and of a query that is taught nothing


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
    """Match, then add up the losses of every decoder layer.

    ``losses`` maps a name to a function that is called once a decoder layer, in this order, as
    ``loss(layer, targets, matched, generators)`` with the raw outputs of that layer, the targets, ``matched[image]``
    (query indices, object indices) and the images' generators. It returns {key: (weight, sum, normaliser)}, and the
    loss that is reported under the key is weight * sum / normaliser, where the normaliser is the mean over all
    processes. Another loss is one more entry: ``criterion.losses["boundary"] = boundary_loss``.

    Args:
        matcher: assigns queries to objects.
        class_weight, mask_weight, dice_weight: weights of the three losses.
        subcategory_weight: weight of each subcategory's loss; 0 leaves subcategories out altogether.
        no_object_weight: weight of the no-object class in the loss of the main category.
        subcategory_no_object_weight: weight of the no-object class in the loss of each subcategory; with 0 only
            queries with an object are taught a subcategory.
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
        subcategory_no_object_weight: float = 0.0,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ):
        super().__init__()
        self.matcher = matcher
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.subcategory_weight = subcategory_weight
        self.no_object_weight = no_object_weight
        self.subcategory_no_object_weight = subcategory_no_object_weight
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = min(int(num_points * importance_sample_ratio), self.num_candidates)
        self.losses: dict[str, LayerLoss] = {
            "labels": self.loss_labels,
            "subcategories": self.loss_subcategories,
            "masks": self.loss_masks,
        }
        self._warned_of_objects = False

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
            ``loss_ce``, ``loss_mask``, ``loss_dice`` and ``loss_subcategory_<name>`` of the last layer, and for the
            earlier ones ``loss_ce_0``, ..., ``loss_0_subcategory_<name>``, ... Each is a scalar, already multiplied by
            its weight, and normalised over the batches of all processes, so that averaging gradients over processes
            gives those of the whole batch.
        """
        self._warn_if_objects_exceed_queries(outputs["pred_logits"].shape[1], targets)
        aux_outputs = outputs.get("aux_outputs", ())
        layers = [*aux_outputs, outputs]
        device = outputs["pred_logits"].device
        generators = None
        if seeds is not None:
            generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        matches = self.matcher(layers, targets, generators)

        terms: dict[str, LossTerm] = {}
        for index, (layer, pairs) in enumerate(zip(layers, matches, strict=True)):
            matched = [(queries.to(device), objects.to(device)) for queries, objects in pairs]
            for loss in self.losses.values():
                for key, term in loss(layer, targets, matched, generators).items():
                    key = key if layer is outputs else name_in_layer(key, index)
                    if key in terms:
                        raise ValueError(f"two losses are both called {key}: rename one of them")
                    terms[key] = term
        normalisers = mean_over_processes(torch.stack([normaliser for _, _, normaliser in terms.values()]))
        return {
            key: weight * total / normaliser
            for (key, (weight, total, _)), normaliser in zip(terms.items(), normalisers.unbind(), strict=True)
        }

    def loss_labels(
        self,
        layer: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        matched: Sequence[Match],
        generators: Generators = None,
    ) -> dict[str, LossTerm]:
        """``loss_ce``: cross-entropy of the main category."""
        labels = [target["labels"] for target in targets]
        terms = _cross_entropy(layer["pred_logits"], labels, matched, self.no_object_weight)
        return {"loss_ce": (self.class_weight, *terms)}

    def loss_subcategories(
        self,
        layer: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        matched: Sequence[Match],
        generators: Generators = None,
    ) -> dict[str, LossTerm]:
        """``loss_subcategory_<name>``: cross-entropy of each subcategory; nothing where their weight is 0."""
        if not self.subcategory_weight:
            return {}
        losses = {}
        for name, logits in layer["pred_subcategories"].items():
            labels = [target["subcategories"][name] for target in targets]
            terms = _cross_entropy(logits, labels, matched, self.subcategory_no_object_weight)
            losses[f"{_SUBCATEGORY}{name}"] = (self.subcategory_weight, *terms)
        return losses

    def loss_masks(
        self,
        layer: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        matched: Sequence[Match],
        generators: Generators = None,
    ) -> dict[str, LossTerm]:
        """``loss_mask`` and ``loss_dice`` of the matched masks at sampled points."""
        pred_masks = layer["pred_masks"]
        num_masks = pred_masks.new_tensor(float(sum(len(objects) for _, objects in matched)), dtype=torch.float32)
        logits = torch.cat([pred_masks[i, queries] for i, (queries, _) in enumerate(matched)]).unsqueeze(1)
        if len(logits):
            masks = torch.cat([targets[i]["masks"][objects] for i, (_, objects) in enumerate(matched)])
            candidates, extra = self._draw_points(matched, generators, logits.device)
            points = uncertain_points(logits, candidates, extra, self.num_uncertain)
            with torch.no_grad():
                truth = point_sample(masks.unsqueeze(1).float(), points).squeeze(1)
            cross_entropy, dice = mask_losses(point_sample(logits, points).squeeze(1).float(), truth, 1.0)
        else:  # keep the graph, so that every parameter still has a gradient
            cross_entropy = dice = pred_masks.sum() * 0.0
        return {
            "loss_mask": (self.mask_weight, cross_entropy, num_masks),
            "loss_dice": (self.dice_weight, dice, num_masks),
        }

    def _draw_points(
        self, matched: Sequence[Match], generators: Generators, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Uniform points, drawn image by image so that they depend on nothing but the image's seed."""
        num_extra = self.num_points - self.num_uncertain
        candidates, extra = [], []
        for image, (queries, _) in enumerate(matched):
            generator = generators[image] if generators is not None else None
            count = self.num_candidates + num_extra
            drawn = torch.rand(len(queries), count, 2, generator=generator, device=device)
            candidates.append(drawn[:, : self.num_candidates])
            extra.append(drawn[:, self.num_candidates :])
        return torch.cat(candidates), torch.cat(extra)

    def _warn_if_objects_exceed_queries(self, num_queries: int, targets: Sequence[Mapping[str, Any]]) -> None:
        most = max((len(target["labels"]) for target in targets), default=0)
        if most > num_queries and not self._warned_of_objects:
            self._warned_of_objects = True
            _log.warning(
                "an image has %d objects but the model has %d queries: at most %d of them can be learnt or found; "
                "give the model more queries than the largest number of objects in an image",
                most,
                num_queries,
                num_queries,
            )


def _cross_entropy(
    logits: Tensor, labels: Sequence[Tensor], matched: Sequence[Match], no_object_weight: float
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy summed over queries, and the sum of the weights.

    Queries without an object are taught the no-object class, or nothing where its weight is 0; those of an
    unlabelled object are taught nothing.

    Args:
        logits: (B, Q, K+1). labels: one (N,) int64 an image, -1 unlabelled.
    """
    logits = logits.float()
    no_object = logits.shape[-1] - 1
    unmatched = no_object if no_object_weight else _IGNORED
    wanted = torch.full(logits.shape[:2], unmatched, dtype=torch.int64, device=logits.device)
    for image, (queries, objects) in enumerate(matched):
        wanted[image, queries] = labels[image][objects]
    weights = logits.new_ones(no_object + 1)
    weights[no_object] = no_object_weight
    total = F.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), weight=weights, ignore_index=_IGNORED, reduction="sum"
    )
    return total, torch.where(wanted >= 0, weights[wanted], 0.0).sum()


def name_in_layer(key: str, index: int) -> str:
    """Return the key of a loss of an earlier decoder layer. The number follows, but not the name of a subcategory:
    ``loss_subcategory_a_0`` is that of a subcategory "a_0" in the last layer."""
    if key.startswith(_SUBCATEGORY):
        return f"loss_{index}_{key.removeprefix('loss_')}"
    return f"{key}_{index}"


def mean_over_processes(counts: Tensor, plus: Tensor | float = 0.0) -> Tensor:
    """Return each count summed over processes, and ``plus``, divided by their number; a count of nothing is kept off
    zero."""
    world_size = 1
    if dist.is_available() and dist.is_initialized():
        world_size = dist.get_world_size()
        dist.all_reduce(counts)
    return (counts + plus).clamp(min=1e-6) / world_size
