"""Tables that take a score apart: by category, by kind of error, by image, by confidence, and against other results.

Masks are compared, and of each image the best 100 predictions of a category count, as in COCO's AP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import hotcoco
import numpy as np
import pandas as pd

from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.coco import COCO_LIMIT, SUMMARY, average_precision
from workbench.evaluation.columns import EvaluationData, read_inputs
from workbench.evaluation.matching import match_predictions
from workbench.evaluation.scorers import accumulate, hotcoco_evaluation
from workbench.evaluation.subcategories import MISSED, NO_OBJECT, Subcategory, confusion_counts, read_subcategories

TIDE_ERRORS = {
    "Cls": "wrong category",
    "Loc": "poor overlap",
    "Both": "wrong category and poor overlap",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
MAIN = "main category"
SUSPICIONS = {"wrong_label": "wrong category", "missing_annotation": "not annotated"}


def category_table(gt: Mapping, results: Sequence[Mapping]) -> pd.DataFrame:
    """Return one row a main category: AP, AP50, AP75, APs, APm, APl in percent (NaN without ground truth), the number
    of ground-truth objects (crowd regions aside) and of predictions."""
    data = read_inputs(gt, results)
    arrays = accumulate(data, "segm", max_dets=[COCO_LIMIT])
    count = len(data.category_ids)
    table = pd.DataFrame(
        {name: [average_precision(arrays, category=k, **part) for k in range(count)] for name, part in SUMMARY.items()},
        index=pd.Index(data.category_names, name="category"),
        dtype=float,
    )
    table["objects"] = np.bincount(data.objects.category[~data.objects.crowd], minlength=count)
    table["predictions"] = np.bincount(data.predictions.category, minlength=count)
    return table


def confusion_matrices(gt: Mapping, results: Sequence[Mapping], vocabulary: Vocabulary) -> dict[str, pd.DataFrame]:
    """Return {"main category" or a subcategory: counts}, a row for each true class.

    The columns are each predicted class, "no-object" (of subcategories: the object is matched, but its prediction has
    no class there) and "missed" (no prediction matches the object). A row sums to the number of objects labelled with
    its class, crowd regions aside.
    """
    data = read_inputs(gt, results)
    matches = match_predictions(data, same_category=False)
    ones = np.ones(len(data.predictions))
    main = Subcategory(MAIN, data.category_names, data.objects.category, data.predictions.category, ones)
    tables = {
        each.name: pd.DataFrame(
            confusion_counts(data, each, matches),
            index=pd.Index(each.classes, name=f"true {each.name}"),
            columns=pd.Index([*each.classes, NO_OBJECT, MISSED], name=f"predicted {each.name}"),
        )
        for each in (main, *read_subcategories(data, vocabulary))
    }
    tables[MAIN] = tables[MAIN].drop(columns=NO_OBJECT)
    return tables


def confusions(gt: Mapping, results: Sequence[Mapping], vocabulary: Vocabulary) -> Iterator[tuple[int, str, str, str]]:
    """Yield (image id, "main category" or a subcategory, true class, predicted class) for each object off the diagonal
    of :func:`confusion_matrices`: matched to a prediction of another class, or of none ("no-object"), or "missed"."""
    data = read_inputs(gt, results)
    matches = match_predictions(data, same_category=False)
    d = np.flatnonzero(matches.object_of >= 0)
    kinds = [(MAIN, data.category_names, data.objects.category, data.predictions.category)]
    for each in read_subcategories(data, vocabulary):
        kinds.append((each.name, each.classes, each.truth, each.predicted))
    for kind, classes, true, predicted in kinds:
        names = [*classes, NO_OBJECT, MISSED]
        answer = np.full(len(true), len(names) - 1)
        answer[matches.object_of[d]] = predicted[d]
        for g in np.flatnonzero((true >= 0) & (true != answer) & ~data.objects.crowd):
            yield data.image_ids[data.objects.image[g]], kind, names[true[g]], names[answer[g]]


def tide_table(gt: Mapping, results: Sequence[Mapping]) -> pd.DataFrame:
    """Count the kinds of error and what each costs (TIDE; Bolya et al., ECCV 2020).

    Returns:
        One row a kind, the dearest first: ``count``, and ``AP50 lost``, by how much AP50 (in percent) would rise
        without the errors of this kind alone. "poor overlap" is an IoU of 0.1 to 0.5 with an object of the category,
        "background" an IoU below 0.1 with every object, "missed" an object that is neither matched nor counted as
        "wrong category" or "poor overlap".
    """
    errors = _evaluated(read_inputs(gt, results)).tide_errors()
    rows = {
        label: {"count": errors["counts"][kind], "AP50 lost": 100 * errors["delta_ap"][kind]}
        for kind, label in TIDE_ERRORS.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("error").astype({"count": int})
    return table.sort_values("AP50 lost", ascending=False, kind="stable")


def suspected_label_errors(
    gt: Mapping, results: Sequence[Mapping], *, score_threshold: float = 0.5, iou: float = 0.5
) -> pd.DataFrame:
    """List predictions that contradict the annotations: where to look for annotation mistakes.

    Returns:
        One row a prediction that scores at least ``score_threshold`` and matches no object, best first:
        ``image_id``, ``file_name``, ``suspicion`` ("wrong category": its box and that of an object of another category
        have an IoU, ``overlap``, of at least ``iou``; or "not annotated"), ``score``, ``predicted`` and ``annotated``
        (category names), ``annotation_id``. The last two are missing where nothing is annotated.
    """
    data = read_inputs(gt, results)
    file_names = {image["id"]: image.get("file_name") for image in gt["images"]}
    columns = ["image_id", "file_name", "suspicion", "score", "predicted", "annotated", "annotation_id", "overlap"]
    rows = []
    for case in _evaluated(data).image_diagnostics(iou_thr=iou, score_thr=score_threshold)["label_errors"]:
        image_id = data.image_ids[case["image_id"] - 1]
        annotation_id = None if case["gt_id"] is None else data.objects.rows[case["gt_id"] - 1].get("id")
        names = (SUSPICIONS[case["type"]], case["dt_score"], case["dt_category"], case["gt_category"])
        rows.append((image_id, file_names[image_id], *names, annotation_id, case["iou"]))
    table = pd.DataFrame(rows, columns=columns, dtype=object)  # a whole id beside a missing one stays whole
    return table.astype({"score": float, "overlap": float}).sort_values(
        "score", ascending=False, kind="stable", ignore_index=True
    )


def compare_results(
    gt: Mapping, first: Sequence[Mapping], second: Sequence[Mapping], *, resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Compare two results on the same ground truth.

    Returns:
        One row for each of COCO's scores that has ground truth: ``first``, ``second``, ``difference`` (second -
        first), ``low`` and ``high`` (the 95 % interval of the difference, from ``resamples`` bootstrap samples of the
        images), all in percent, and ``second is better`` (in how many percent of the samples).
    """
    sides = [_evaluated(read_inputs(gt, results)) for results in (first, second)]
    compared = hotcoco.compare(*sides, n_bootstrap=resamples, seed=seed)
    rows = {}
    for key, interval in compared["ci"].items():
        if compared["metrics_a"][key] >= 0:  # -1 without ground truth
            name = f"AR@{key[2:]}" if key[2:].isdigit() and key.startswith("AR") else key
            values = [compared[part][key] for part in ("metrics_a", "metrics_b", "deltas")]
            rows[name] = [*values, interval["lower"], interval["upper"], interval["prob_positive"]]
    columns = ["first", "second", "difference", "low", "high", "second is better"]
    return 100 * pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float).rename_axis("score")


def per_image_scores(
    gt: Mapping, results: Sequence[Mapping], *, score_threshold: float = 0.5, iou: float = 0.5
) -> pd.DataFrame:
    """Return one row an image, worst F1 first; of equal ones that with most errors, then that with fewest matches.

    Predictions that score at least ``score_threshold`` are matched as in COCO at ``iou``, within their main category;
    those on crowd regions count neither way.

    Returns:
        image_id, file_name, f1 (percent; 100 where there is nothing to find and nothing predicted), mean_iou (percent,
        of the matched pairs; NaN without any), n_gt (crowd regions aside), n_pred, matched, missed, false.
    """
    data = read_inputs(gt, results)
    drawn = data.predictions.scores >= score_threshold
    matches = match_predictions(data, iou=iou, candidates=drawn)
    images = len(data.image_ids)
    counted, hit = drawn & ~matches.ignored, matches.object_of >= 0
    n_gt = np.bincount(data.objects.image[~data.objects.crowd], minlength=images)
    n_pred = np.bincount(data.predictions.image[counted], minlength=images)
    matched = np.bincount(data.predictions.image[hit], minlength=images)
    overlap = np.bincount(data.predictions.image[hit], weights=matches.overlap[hit], minlength=images)
    with np.errstate(invalid="ignore"):
        f1 = np.where(n_gt + n_pred > 0, 200 * matched / (n_gt + n_pred), 100.0)
        mean_iou = 100 * overlap / matched
    names = {image["id"]: image.get("file_name") for image in gt["images"]}
    columns = {"image_id": data.image_ids, "file_name": [names[key] for key in data.image_ids]}
    columns |= {"f1": f1, "mean_iou": mean_iou}
    columns |= {"n_gt": n_gt, "n_pred": n_pred, "matched": matched, "missed": n_gt - matched, "false": n_pred - matched}
    order = np.lexsort((matched, matched * 2 - n_gt - n_pred, f1))
    return pd.DataFrame(columns).iloc[order].reset_index(drop=True)


def calibration_table(gt: Mapping, results: Sequence[Mapping], *, bins: int = 10, iou: float = 0.5) -> pd.DataFrame:
    """Return how often predictions of a score are right: one row for each of ``bins`` equal score intervals in [0, 1].

    Right means matched as in COCO at ``iou`` (0.5, 0.55, ... 0.95) within the main category; predictions on crowd
    regions are left out.

    Returns:
        low, high, predictions, mean_score and precision (fractions; NaN in an empty interval). The expected calibration
        error, the sum of predictions x |precision - mean_score| over all predictions, stands in
        ``table.attrs["expected_calibration_error"]`` (None without predictions).
    """
    measured = _evaluated(read_inputs(gt, results)).calibration(bins, iou)
    names = {"bin_lower": "low", "bin_upper": "high", "count": "predictions"}
    names |= {"avg_confidence": "mean_score", "avg_accuracy": "precision"}
    table = pd.DataFrame(measured["bins"])[[*names]].rename(columns=names)
    table.loc[table["predictions"] == 0, ["mean_score", "precision"]] = np.nan
    table.attrs["expected_calibration_error"] = measured["ece"] if measured["num_detections"] else None
    return table


def _evaluated(data: EvaluationData) -> hotcoco.COCOeval:
    """Return hotcoco's evaluation of ``data`` with predictions matched; its ids are positions + 1."""
    evaluation = hotcoco_evaluation(data, "segm")
    evaluation.evaluate()
    return evaluation
