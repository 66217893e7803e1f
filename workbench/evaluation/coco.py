"""COCO's AP and AR in percent, with either scorer and for any detection limits.

The summaries that come with the scorers read fixed positions of ``maxDets``: pycocotools prints AP = -1 where 100 is
not among them, and AP50 at whatever limit is third. Here AP, AP50, AP75, APs, APm and APl are always at 100
detections, which is COCO's definition, and AR@k and AP@k at each limit k asked for. As in COCO, a limit counts the
detections of one image *and one category*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from workbench.errors import WorkbenchError
from workbench.evaluation.columns import EvaluationData, read_inputs
from workbench.evaluation.scorers import Accumulated, accumulate

COCO_LIMIT = 100
COCO_IOUS = np.linspace(0.5, 0.95, 10)
SIZES = ("all", "small", "medium", "large")
SUMMARY: dict[str, dict] = {  # arguments of average_precision
    "AP": {},
    "AP50": {"iou": 0.5},
    "AP75": {"iou": 0.75},
    "APs": {"size": "small"},
    "APm": {"size": "medium"},
    "APl": {"size": "large"},
}


def coco_scores(
    gt: Mapping,
    results: Sequence[Mapping],
    *,
    iou_type: str = "segm",
    max_dets: Sequence[int] = (1, 10, 100),
    scorer: str = "hotcoco",
) -> dict:
    """Return COCO's scores of ``results`` (COCO results) on ``gt`` (a COCO instances dict), in percent.

    Nothing is printed and neither argument is changed.

    Returns:
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR@k" and "AP@k" for each k of ``max_dets``, "per_category": {name:
        AP}. A number is None where there is no ground truth to measure it on, never -1.

    Raises:
        WorkbenchError: malformed input, see :func:`read_inputs`.
    """
    return scores_of(read_inputs(gt, results, iou_type=iou_type), iou_type, max_dets=max_dets, scorer=scorer)


def scores_of(data: EvaluationData, iou_type: str, *, max_dets: Sequence[int], scorer: str) -> dict:
    """Return :func:`coco_scores` of inputs that were read already."""
    limits = check_max_dets(max_dets)
    arrays = accumulate(data, iou_type, max_dets={*limits, COCO_LIMIT}, scorer=scorer)
    scores = {name: average_precision(arrays, **part) for name, part in SUMMARY.items()}
    scores |= {f"AR@{limit}": average_recall(arrays, limit) for limit in limits}
    scores |= {f"AP@{limit}": average_precision(arrays, limit=limit) for limit in limits}
    names = enumerate(data.category_names)
    return scores | {"per_category": {name: average_precision(arrays, category=k) for k, name in names}}


def check_max_dets(max_dets: Sequence[int]) -> list[int]:
    """Return the limits in rising order, each once."""
    limits = list(max_dets) if isinstance(max_dets, (list, tuple, set, range)) else None
    if not limits or not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in limits):
        raise WorkbenchError(f"max_dets is {max_dets!r}, not a list of whole numbers of 1 or more.")
    return sorted(set(limits))


def average_precision(
    arrays: Accumulated,
    *,
    iou: float | None = None,
    size: str = "all",
    category: int | None = None,
    limit: int = COCO_LIMIT,
) -> float | None:
    """Return the mean precision in percent over recalls, categories with ground truth and IoU thresholds (or one,
    ``iou``)."""
    part = arrays.precision[:, :, :, SIZES.index(size), arrays.max_dets.index(limit)]
    if iou is not None:
        part = part[[int(np.argmin(np.abs(arrays.iou_thresholds - iou)))]]
    return mean_in_percent(part if category is None else part[:, :, category])


def average_recall(arrays: Accumulated, limit: int) -> float | None:
    """Return the mean recall in percent over IoU thresholds and categories, of at most ``limit`` detections."""
    return mean_in_percent(arrays.recall[:, :, 0, arrays.max_dets.index(limit)])


def mean_in_percent(values: np.ndarray) -> float | None:
    """Return the mean, in percent, of the fractions that were measured (the others are -1); None without any."""
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else None


def coco_curves(gt: Mapping, results: Sequence[Mapping], *, iou: float = 0.5) -> dict[str, dict[str, np.ndarray]]:
    """Return precision-recall curves of masks at one of COCO's IoU thresholds (0.5, 0.55, ... 0.95).

    Returns:
        {name: {"recall": (101,), "precision": (101,), "score": (101,)}} as fractions, with one entry for each main
        category that has ground truth and "all" for their mean. ``precision`` is COCO's interpolated one; ``score`` is
        the score of the prediction at which that recall is reached, 0 where it never is.
    """
    data = read_inputs(gt, results)
    arrays = accumulate(data, "segm", max_dets=[COCO_LIMIT], by_size=False)
    threshold = int(np.argmin(np.abs(arrays.iou_thresholds - iou)))
    if abs(arrays.iou_thresholds[threshold] - iou) > 1e-6:
        raise WorkbenchError(f"The IoU {iou} is not one of COCO's thresholds 0.5, 0.55, ... 0.95.")
    precision, scores = arrays.precision[threshold, :, :, 0, 0], arrays.scores[threshold, :, :, 0, 0]
    measured = [k for k in range(len(data.category_ids)) if precision[0, k] > -1]
    parts = {data.category_names[k]: [k] for k in measured} | ({"all": measured} if measured else {})
    return {
        name: {
            "recall": arrays.recall_thresholds,
            "precision": precision[:, part].mean(axis=1),
            "score": scores[:, part].mean(axis=1),
        }
        for name, part in parts.items()
    }
