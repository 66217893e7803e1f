"""COCO's AP and AR in percent, with either scorer and for any detection limits.

The summaries that come with the scorers read fixed positions of `maxDets`: pycocotools prints AP = -1 as soon
as 100 is not among them and AP50 at whatever limit stands third. Here every number is read from the
accumulated arrays by its own limit: AP, AP50, AP75, APs, APm and APl always at 100 detections, which is
COCO's definition, and AR@k (with AP@k beside it) at each limit k asked for. As in COCO, a limit counts the
detections of one image *and one category*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.evaluation.columns import IOU_TYPES, EvaluationData, read_inputs
from workbench.evaluation.scorers import Accumulated, Task, accumulate

COCO_LIMIT = 100
COCO_IOUS = np.linspace(0.5, 0.95, 10)
SIZES = ("all", "small", "medium", "large")


def coco_scores(
    gt: Mapping,
    results: Sequence[Mapping],
    *,
    iou_type: str = "segm",
    max_dets: Sequence[int] = (1, 10, 100),
    scorer: str = "hotcoco",
) -> dict:
    """COCO's scores of `results` (a list of COCO results) on `gt` (a COCO instances dict), in percent.

    Returns {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR@k" and "AP@k" for each k of `max_dets`,
    "per_category": {name: AP}}. A number is None where there is no ground truth to measure it on, never -1.
    Nothing is printed and neither argument is changed. WorkbenchError for malformed input, see `read_inputs`.
    """
    data = read_inputs(gt, results, iou_type=iou_type)
    return scores_of(data, iou_type=iou_type, max_dets=max_dets, scorer=scorer)


def scores_of(
    data: EvaluationData,
    *,
    iou_type: str = "segm",
    max_dets: Sequence[int] = (1, 10, 100),
    scorer: str = "hotcoco",
) -> dict:
    """`coco_scores` of inputs that were read already."""
    limits = check_max_dets(max_dets)
    if iou_type not in IOU_TYPES:
        raise WorkbenchError(f"iou_type {iou_type!r} is not one of {', '.join(IOU_TYPES)}.")
    found = accumulate(main_task(data, iou_type), max_dets={*limits, COCO_LIMIT}, scorer=scorer)
    scores = {
        "AP": average_precision(found),
        "AP50": average_precision(found, iou=0.5),
        "AP75": average_precision(found, iou=0.75),
        "APs": average_precision(found, size="small"),
        "APm": average_precision(found, size="medium"),
        "APl": average_precision(found, size="large"),
    }
    scores |= {f"AR@{limit}": average_recall(found, limit) for limit in limits}
    scores |= {f"AP@{limit}": average_precision(found, limit=limit) for limit in limits}
    scores["per_category"] = {name: average_precision(found, category=k) for k, name in enumerate(data.category_names)}
    return scores


def check_max_dets(max_dets: Sequence[int]) -> list[int]:
    """The limits in rising order, each once."""
    limits = list(max_dets) if isinstance(max_dets, (list, tuple, set, range)) else None
    if not limits or not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in limits):
        raise WorkbenchError(f"max_dets is {max_dets!r}, not a list of whole numbers of 1 or more.")
    return sorted(set(limits))


def main_task(data: EvaluationData, iou_type: str = "segm") -> Task:
    """The detection task COCO scores: main categories, crowd regions as COCO treats them."""
    objects, predictions = data.objects, data.predictions
    segm = iou_type == "segm"
    return Task(
        images=len(data.image_ids),
        classes=len(data.category_ids),
        image_g=objects.image,
        class_g=objects.category,
        rles_g=objects.rles if segm else None,
        boxes_g=objects.boxes,
        areas_g=objects.areas,
        crowd=objects.crowd,
        image_d=predictions.image,
        class_d=predictions.category,
        rles_d=predictions.rles if segm else None,
        boxes_d=predictions.boxes,
        # COCO sorts a prediction into small, medium or large by what is compared: its mask or its box.
        areas_d=predictions.areas if segm else predictions.boxes[:, 2] * predictions.boxes[:, 3],
        scores=predictions.scores,
    )


def average_precision(
    found: Accumulated,
    *,
    iou: float | None = None,
    size: str = "all",
    category: int | None = None,
    limit: int = COCO_LIMIT,
) -> float | None:
    """Mean precision in percent over recalls, categories with ground truth and IoU thresholds (or one,
    `iou`).
    """
    part = found.precision[:, :, :, SIZES.index(size), found.max_dets.index(limit)]
    if iou is not None:
        part = part[[int(np.argmin(np.abs(found.iou_thresholds - iou)))]]
    return mean_in_percent(part if category is None else part[:, :, category])


def average_recall(found: Accumulated, limit: int) -> float | None:
    """Mean over IoU thresholds and categories of the recall in percent with at most `limit` detections."""
    return mean_in_percent(found.recall[:, :, 0, found.max_dets.index(limit)])


def mean_in_percent(values: np.ndarray) -> float | None:
    """Mean of the fractions that were measured (-1 stands for the others) in percent; None where there is none."""
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else None


def category_table(
    gt: Mapping,
    results: Sequence[Mapping],
    *,
    iou_type: str = "segm",
    scorer: str = "hotcoco",
) -> pd.DataFrame:
    """One row a main category: AP, AP50, AP75, APs, APm, APl in percent (NaN without ground truth), the
    number of ground-truth objects (crowd regions aside) and of predictions.
    """
    data = read_inputs(gt, results, iou_type=iou_type)
    found = accumulate(main_task(data, iou_type), max_dets=[COCO_LIMIT], scorer=scorer)
    columns = {
        "AP": {},
        "AP50": {"iou": 0.5},
        "AP75": {"iou": 0.75},
        "APs": {"size": "small"},
        "APm": {"size": "medium"},
        "APl": {"size": "large"},
    }
    count = len(data.category_ids)
    table = pd.DataFrame(
        {name: [average_precision(found, category=k, **how) for k in range(count)] for name, how in columns.items()},
        index=pd.Index(data.category_names, name="category"),
        dtype=float,
    )
    table["objects"] = np.bincount(data.objects.category[~data.objects.crowd], minlength=count)
    table["predictions"] = np.bincount(data.predictions.category, minlength=count)
    return table


def coco_curves(
    gt: Mapping,
    results: Sequence[Mapping],
    *,
    iou: float = 0.5,
    iou_type: str = "segm",
    limit: int = COCO_LIMIT,
    scorer: str = "hotcoco",
) -> dict[str, dict[str, np.ndarray]]:
    """Precision-recall curves at one of COCO's IoU thresholds (0.5, 0.55, ... 0.95).

    Returns {name: {"recall": (101,), "precision": (101,), "score": (101,)}} as fractions, with one entry for
    each main category that has ground truth and "all" for their mean. `precision` is COCO's interpolated one;
    `score` is the score of the prediction at which that recall is reached, 0 where it never is.
    """
    data = read_inputs(gt, results, iou_type=iou_type)
    found = accumulate(main_task(data, iou_type), max_dets=[limit], scorer=scorer, by_size=False)
    threshold = int(np.argmin(np.abs(found.iou_thresholds - iou)))
    if abs(found.iou_thresholds[threshold] - iou) > 1e-6:
        raise WorkbenchError(f"The IoU {iou} is not one of COCO's thresholds 0.5, 0.55, ... 0.95.")
    precision, scores = found.precision[threshold, :, :, 0, 0], found.scores[threshold, :, :, 0, 0]
    measured = [k for k in range(len(data.category_ids)) if precision[0, k] > -1]
    curves = {
        data.category_names[k]: {
            "recall": found.recall_thresholds,
            "precision": precision[:, k],
            "score": scores[:, k],
        }
        for k in measured
    }
    if measured:
        curves["all"] = {
            "recall": found.recall_thresholds,
            "precision": precision[:, measured].mean(axis=1),
            "score": scores[:, measured].mean(axis=1),
        }
    return curves
