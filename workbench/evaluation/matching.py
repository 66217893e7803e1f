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
    object_of = np.full(len(predictions), -1, dtype=np.int64)
    overlap = np.zeros(len(predictions))
    ignored = np.zeros(len(predictions), dtype=bool)
    for image, rows in enumerate(data.predictions_by_image):
        there = data.objects_by_image[image]
        if not len(rows) or not len(there):
            continue
        ious = data.ious(image, iou_type)
        if candidates is not None:
            rows, ious = rows[candidates[rows]], ious[candidates[rows]]
        if same_category:
            ious = np.where(predictions.category[rows][:, None] == objects.category[there], ious, 0.0)
        if traits is not None:
            wanted = traits[0][there]
            agrees = (wanted == -1) | (wanted == traits[1][rows][:, None])
            ious = np.where(agrees.all(axis=2), ious, 0.0)
        chosen, ignored[rows] = greedy_matching(ious, objects.crowd[there], iou)
        matched = chosen >= 0
        object_of[rows[matched]] = there[chosen[matched]]
        overlap[rows[matched]] = ious[matched, chosen[matched]]
    return Matches(object_of, overlap, ignored)


def greedy_matching(ious: np.ndarray, crowd: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(D, G) IoU, best score first -> (D,) column chosen or -1, (D,) bool on a crowd region only."""
    threshold = min(threshold, 1 - 1e-10)  # as COCO: an IoU of 1 must pass a threshold of 1
    chosen = np.full(len(ious), -1, dtype=np.int64)
    free = np.where(crowd[None], -1.0, ious)
    for d in np.flatnonzero((free >= threshold).any(axis=1)):
        column = free.shape[1] - 1 - int(free[d, ::-1].argmax())  # of equal IoUs COCO takes the last
        if free[d, column] >= threshold:
            chosen[d] = column
            free[:, column] = -1.0
    on_crowd = (ious[:, crowd] >= threshold).any(axis=1) & (chosen < 0)
    return chosen, on_crowd
