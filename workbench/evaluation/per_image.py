"""Where the errors are: scores of single images, and whether scores mean what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.evaluation.columns import read_inputs
from workbench.evaluation.matching import match_predictions


def per_image_scores(
    gt: Mapping,
    results: Sequence[Mapping],
    *,
    score_threshold: float = 0.5,
    iou: float = 0.5,
    iou_type: str = "segm",
) -> pd.DataFrame:
    """One row an image, worst F1 first (ties by image id): image_id, file_name, f1 (percent), mean_iou
    (percent, of the matched pairs; NaN where there is none), n_gt (crowd regions aside), n_pred, matched,
    missed, false.

    Predictions scoring at least `score_threshold` are matched as in COCO at `iou`, within their main
    category; those on crowd regions count neither way. An image with nothing to find and nothing found has f1
    100.
    """
    data = read_inputs(gt, results, iou_type=iou_type)
    drawn = data.predictions.scores >= score_threshold
    matches = match_predictions(data, iou=iou, iou_type=iou_type, candidates=drawn)
    images = len(data.image_ids)
    counted = drawn & ~matches.ignored
    found = matches.object_of >= 0
    n_gt = np.bincount(data.objects.image[~data.objects.crowd], minlength=images)
    n_pred = np.bincount(data.predictions.image[counted], minlength=images)
    matched = np.bincount(data.predictions.image[found], minlength=images)
    overlap = np.bincount(data.predictions.image[found], weights=matches.overlap[found], minlength=images)
    with np.errstate(invalid="ignore"):
        f1 = np.where(n_gt + n_pred > 0, 200 * matched / (n_gt + n_pred), 100.0)
        mean_iou = 100 * overlap / matched
    names = {image["id"]: image.get("file_name") for image in gt["images"]}
    table = pd.DataFrame(
        {
            "image_id": data.image_ids,
            "file_name": [names[key] for key in data.image_ids],
            "f1": f1,
            "mean_iou": mean_iou,
            "n_gt": n_gt,
            "n_pred": n_pred,
            "matched": matched,
            "missed": n_gt - matched,
            "false": n_pred - matched,
        }
    )
    return table.sort_values("f1", kind="stable", ignore_index=True)


def calibration_table(
    gt: Mapping,
    results: Sequence[Mapping],
    *,
    bins: int = 10,
    iou: float = 0.5,
    iou_type: str = "segm",
) -> pd.DataFrame:
    """How often predictions of a score are right: one row for each of `bins` equal score intervals in [0, 1]
    with low, high, predictions, mean_score and precision (fractions; NaN in an empty interval).

    Right means matched as in COCO at `iou` within the main category; predictions on crowd regions are left
    out. The expected calibration error, sum of predictions x |precision - mean_score| over all predictions,
    stands in `table.attrs["expected_calibration_error"]` (None without predictions).
    """
    data = read_inputs(gt, results, iou_type=iou_type)
    matches = match_predictions(data, iou=iou, iou_type=iou_type)
    counted = ~matches.ignored
    scores, right = data.predictions.scores[counted], matches.object_of[counted] >= 0
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(scores, edges[1:-1]), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(place, weights=scores, minlength=bins) / count
        precision = np.bincount(place, weights=right, minlength=bins) / count
    table = pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "predictions": count,
            "mean_score": mean_score,
            "precision": precision,
        }
    )
    gap = np.nansum(count * np.abs(precision - mean_score))
    table.attrs["expected_calibration_error"] = float(gap / count.sum()) if count.sum() else None
    return table
