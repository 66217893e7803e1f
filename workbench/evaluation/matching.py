"""Which prediction is matched to which object: COCO's greedy matching at one IoU threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.evaluation.columns import EvaluationData


@dataclass(frozen=True)
class Matches:
    """object_of: (N,) int64, the object that each prediction is matched to, or -1; overlap: (N,) the IoU with that
    object, or 0; ignored: (N,) bool, True for a prediction without an object that lies on a crowd region.
    """

    object_of: np.ndarray
    overlap: np.ndarray
    ignored: np.ndarray


def match_predictions(
    data: EvaluationData,
    *,
    iou: float = 0.5,
    iou_type: str = "segm",
    same_category: bool = True,
    candidates: np.ndarray | None = None,
    traits: tuple[np.ndarray, np.ndarray] | None = None,
) -> Matches:
    """Match the predictions of ``data`` (those where ``candidates``, (N,) bool, is True).

    As in COCO: within an image, by falling score, each prediction is matched to the unmatched object it overlaps most,
    if their IoU is at least ``iou``. A prediction without an object is ignored where it overlaps a crowd region.
    ``same_category=False`` matches objects of other main categories too. ``traits``: (objects, S) and (predictions, S)
    int64 that must agree wherever the object's are not -1.
    """
    predictions, objects = data.predictions, data.objects
    d, g, ious = data.pairs(iou_type)
    allowed = ious >= min(iou, 1 - 1e-10)  # as COCO: an IoU of 1 must pass a threshold of 1
    if candidates is not None:
        allowed &= candidates[d]
    if same_category:
        allowed &= predictions.category[d] == objects.category[g]
    if traits is not None:
        allowed &= ((traits[0][g] == -1) | (traits[0][g] == traits[1][d])).all(axis=1)
    places = np.flatnonzero(allowed & ~objects.crowd[g])
    places = places[match_pairs(d[places], g[places])]
    object_of = np.full(len(predictions), -1, dtype=np.int64)
    object_of[d[places]] = g[places]
    overlap = np.zeros(len(predictions))
    overlap[d[places]] = ious[places]
    on_crowd = np.zeros(len(predictions), dtype=bool)
    on_crowd[d[allowed & objects.crowd[g]]] = True
    return Matches(object_of, overlap, on_crowd & (object_of < 0))


def match_pairs(predictions: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return the places of the matched pairs of (P,) predictions and objects: in the order given, a pair is matched if
    both its members are free."""
    matched, taken, places = set(), set(), []
    for place, (d, g) in enumerate(zip(predictions.tolist(), objects.tolist(), strict=True)):
        if d not in matched and g not in taken:
            matched.add(d)
            taken.add(g)
            places.append(place)
    return np.array(places, dtype=np.int64)
