"""How well the subcategories are predicted, alone and together with mask and main category.

Three questions, three numbers, all in percent:

- **accuracy, macro_f1**: of the objects that were found, how many have the right subcategory class? Every
  prediction looks for an object by mask IoU >= 0.5, best score first, as in COCO but whatever its main
  category. The labelled objects found this way are `labelled`; a found object whose prediction says "no
  object" for the subcategory counts as wrong. `unmatched` is the number of labelled objects that no
  prediction found: an accuracy over few objects shows itself there.
- **AP** of a subcategory: COCO's AP with the subcategory's classes in place of the main categories. A
  prediction takes its subcategory class and the score (main score x mask score x probability of that class),
  whatever the ranking; a query that is reported under several main categories counts once. An unlabelled
  object is in every class neither to be found nor a mistake.
- **joint** AP and AP50: COCO's AP of the main categories where a prediction can match an object only if every
  subcategory the object is labelled with is right too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import hotcoco
import numpy as np
import pandas as pd

from workbench.data.vocabulary import Vocabulary, class_name
from workbench.errors import WorkbenchError, is_number
from workbench.evaluation.coco import COCO_IOUS, COCO_LIMIT, average_precision, main_task, mean_in_percent
from workbench.evaluation.columns import EvaluationData, read_inputs
from workbench.evaluation.matching import Matches, match_predictions
from workbench.evaluation.scorers import UNSCORED_AREA, Task, accumulate

NO_OBJECT = "no-object"
MISSED = "missed"


@dataclass(frozen=True)
class Subcategory:
    """One subcategory of a whole dataset.

    truth: (N objects,) int64 class, -1 unlabelled; predicted: (N predictions,) int64 class, K for no-object;
    probability: (N predictions,) float64 of the predicted class, 1 where the results give none.
    """

    name: str
    classes: tuple[str, ...]
    truth: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray


def has_subcategories(results: Sequence[Mapping]) -> bool:
    """Whether results speak of subcategories; no results at all say nothing against it."""
    return not len(results) or any("attributes" in row for row in results)


def read_subcategories(data: EvaluationData, vocabulary: Vocabulary) -> list[Subcategory]:
    """The subcategories of objects and predictions as class numbers.

    WorkbenchError for a value outside the class list, naming the annotation or the row of the results.
    """
    return [
        Subcategory(
            name,
            tuple(classes),
            truth=_truth(data, name, classes),
            predicted=(predicted := _predicted(data, name, classes)),
            probability=_probability(data, name, len(classes), predicted),
        )
        for name, classes in vocabulary.subcategories.items()
    ]


def _truth(data: EvaluationData, name: str, classes: Sequence[str]) -> np.ndarray:
    place: dict = {None: -1} | {value: k for k, value in enumerate(classes)}
    return np.array(
        [
            _class_number(row, name, place, f"Annotation {row.get('id')} of image {row['image_id']}")
            for row in data.objects.rows
        ],
        dtype=np.int64,
    )


def _predicted(data: EvaluationData, name: str, classes: Sequence[str]) -> np.ndarray:
    place: dict = {None: len(classes)} | {value: k for k, value in enumerate(classes)}
    return np.array(
        [
            _class_number(row, name, place, f"Row {i} of the results (image {row['image_id']})")
            for i, row in enumerate(data.predictions.rows)
        ],
        dtype=np.int64,
    )


def _class_number(row: Mapping, name: str, place: Mapping, where: str) -> int:
    attributes = row.get("attributes")
    value = attributes.get(name) if isinstance(attributes, Mapping) else None
    try:
        return place[class_name(value)]
    except (KeyError, TypeError):
        known = ", ".join(key for key in place if key is not None)
        raise WorkbenchError(f"{where} has the {name} {value!r}, which is not in the list {known}.") from None


def _probability(data: EvaluationData, name: str, count: int, predicted: np.ndarray) -> np.ndarray:
    probability = np.ones(len(data.predictions))
    for i, row in enumerate(data.predictions.rows):
        values = row["attribute_scores"].get(name) if isinstance(row.get("attribute_scores"), dict) else None
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != count + 1 or not all(map(is_number, values)):
            raise WorkbenchError(
                f"Row {i} of the results (image {row['image_id']}) has attribute_scores for {name} that "
                f"are not {count + 1} numbers: one for each class and one for no-object."
            )
        probability[i] = values[predicted[i]]
    return probability


def subcategory_scores(
    data: EvaluationData, vocabulary: Vocabulary, *, iou_type: str = "segm", scorer: str = "hotcoco"
) -> tuple[dict[str, dict], dict]:
    """Returns ({name: {"accuracy", "macro_f1", "labelled", "unmatched", "AP"}}, {"AP", "AP50"} joint).

    Percent, or None where there is nothing to measure on; `labelled` and `unmatched` are counts.
    """
    subcategories = read_subcategories(data, vocabulary)
    matches = match_predictions(data, iou_type=iou_type, same_category=False)
    scores = {}
    for subcategory in subcategories:
        confusion = _confusion(data, subcategory, matches)
        found = accumulate(
            _relabelled_task(data, subcategory, iou_type), max_dets=[COCO_LIMIT], scorer=scorer, by_size=False
        )
        scores[subcategory.name] = _agreement(confusion) | {"AP": average_precision(found)}
    return scores, _joint(data, subcategories, iou_type, scorer)


def confusion_matrices(
    gt: Mapping, results: Sequence[Mapping], vocabulary: Vocabulary, *, iou_type: str = "segm"
) -> dict[str, pd.DataFrame]:
    """{name: counts}: a row for each true class; columns for each predicted class, "no-object" (the object
    was found but its prediction has no class for the subcategory) and "missed" (no prediction found the
    object).

    A row sums to the number of objects labelled with its class, crowd regions aside.
    """
    data = read_inputs(gt, results, iou_type=iou_type)
    matches = match_predictions(data, iou_type=iou_type, same_category=False)
    return {
        subcategory.name: pd.DataFrame(
            _confusion(data, subcategory, matches),
            index=pd.Index(subcategory.classes, name=f"true {subcategory.name}"),
            columns=pd.Index([*subcategory.classes, NO_OBJECT, MISSED], name=f"predicted {subcategory.name}"),
        )
        for subcategory in read_subcategories(data, vocabulary)
    }


def _confusion(data: EvaluationData, subcategory: Subcategory, matches: Matches) -> np.ndarray:
    """(K, K + 2) counts over labelled objects: predicted class, then no-object, then missed."""
    count = len(subcategory.classes)
    answer = np.full(len(data.objects), count + 1, dtype=np.int64)
    found = matches.object_of >= 0
    answer[matches.object_of[found]] = subcategory.predicted[found]
    counted = (subcategory.truth >= 0) & ~data.objects.crowd
    flat = subcategory.truth[counted] * (count + 2) + answer[counted]
    return np.bincount(flat, minlength=count * (count + 2)).reshape(count, count + 2)


def _agreement(confusion: np.ndarray) -> dict:
    """Accuracy and macro F1 over found objects. The mean of F1 is over the classes that occur among them or
    were predicted for one of them.
    """
    matched = confusion[:, :-1]
    right, labelled = np.diag(matched), int(matched.sum())
    predicted, true = matched[:, :-1].sum(axis=0), matched.sum(axis=1)
    occurs = (predicted + true) > 0
    f1 = 2 * right[occurs] / (predicted + true)[occurs]
    return {
        "accuracy": 100 * float(right.sum() / labelled) if labelled else None,
        "macro_f1": 100 * float(f1.mean()) if labelled else None,
        "labelled": labelled,
        "unmatched": int(confusion[:, -1].sum()),
    }


def _relabelled_task(data: EvaluationData, subcategory: Subcategory, iou_type: str) -> Task:
    """The detection task whose categories are the subcategory's classes."""
    task, count = main_task(data, iou_type), len(subcategory.classes)
    rows = _one_row_a_query(data)
    rows = rows[subcategory.predicted[rows] < count]
    task = _select_predictions(task, rows)
    task = replace(
        task,
        class_d=subcategory.predicted[rows],
        scores=_ranking_free_scores(data)[rows] * subcategory.probability[rows],
    )
    # An unlabelled object may be of any class, so it stands in each of them, unscored.
    labelled = np.flatnonzero(subcategory.truth >= 0)
    unlabelled = np.flatnonzero(subcategory.truth < 0)
    rows = np.concatenate([labelled, np.tile(unlabelled, count)])
    return replace(
        task,
        classes=count,
        image_g=task.image_g[rows],
        class_g=np.concatenate([subcategory.truth[labelled], np.repeat(np.arange(count), len(unlabelled))]),
        rles_g=None if task.rles_g is None else [task.rles_g[i] for i in rows],
        boxes_g=task.boxes_g[rows],
        areas_g=np.where(np.arange(len(rows)) < len(labelled), task.areas_g[rows], UNSCORED_AREA),
        crowd=task.crowd[rows],
    )


def _select_predictions(task: Task, rows: np.ndarray) -> Task:
    return replace(
        task,
        image_d=task.image_d[rows],
        class_d=task.class_d[rows],
        rles_d=None if task.rles_d is None else [task.rles_d[i] for i in rows],
        boxes_d=task.boxes_d[rows],
        areas_d=task.areas_d[rows],
        scores=task.scores[rows],
    )


def _one_row_a_query(data: EvaluationData) -> np.ndarray:
    """Rows of the predictions, of several rows of one query only the best; rows without a query all count."""
    kept, seen = [], set()
    for i in np.argsort(-_ranking_free_scores(data), kind="stable").tolist():
        row = data.predictions.rows[i]
        key = (row["image_id"], row.get("query"))
        if key[1] is None or key not in seen:
            seen.add(key)
            kept.append(i)
    return np.array(sorted(kept), dtype=np.int64)


def _ranking_free_scores(data: EvaluationData) -> np.ndarray:
    """Main score x mask score of each prediction; its score where the results do not tell them apart."""
    return np.array(
        [
            row["main_score"] * row["mask_score"] if "main_score" in row and "mask_score" in row else row["score"]
            for row in data.predictions.rows
        ],
        dtype=np.float64,
    )


def _joint(data: EvaluationData, subcategories: list[Subcategory], iou_type: str, scorer: str) -> dict:
    traits = (
        np.array([s.truth for s in subcategories], dtype=np.int64).T,
        np.array([s.predicted for s in subcategories], dtype=np.int64).T,
    )
    task = replace(main_task(data, iou_type), traits_g=traits[0], traits_d=traits[1])
    if scorer == "pycocotools":
        found = accumulate(task, max_dets=[COCO_LIMIT], scorer=scorer, by_size=False)
        return {"AP": average_precision(found), "AP50": average_precision(found, iou=0.5)}
    # hotcoco takes no IoUs from outside, so it cannot keep pairs apart that may not match: matching is done here.
    predictions = data.predictions
    kept = _within_limit(predictions.image, predictions.category, predictions.scores)
    order = np.concatenate([np.zeros(0, dtype=np.int64), *data.predictions_by_image])  # COCO's: by image, then by score
    order = order[np.argsort(-predictions.scores[order], kind="stable")]
    objects = np.bincount(data.objects.category[~data.objects.crowd], minlength=len(data.category_ids))
    precision = np.full((len(COCO_IOUS), 101, len(objects)), -1.0)
    precision[:, :, objects > 0] = 0
    for t, iou in enumerate(COCO_IOUS):
        matches = match_predictions(data, iou=iou, iou_type=iou_type, candidates=kept, traits=traits)
        counted = order[(kept & ~matches.ignored)[order]]
        for k in np.flatnonzero(objects):
            right = matches.object_of[counted[predictions.category[counted] == k]] >= 0
            curve = hotcoco.metrics.precision_recall_curve(np.cumsum(right), np.cumsum(~right), int(objects[k]))[1]
            for place, value, _ in curve:
                precision[t, place, k] = value
    return {"AP": mean_in_percent(precision), "AP50": mean_in_percent(precision[0])}


def _within_limit(image: np.ndarray, category: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) bool, the best ``COCO_LIMIT`` predictions of each image and category; of equal ones the first."""
    order = np.lexsort((-scores, category, image))
    group = np.stack([image[order], category[order]])
    starts = np.flatnonzero(np.concatenate([[True], (group[:, 1:] != group[:, :-1]).any(axis=0)])) if len(order) else []
    rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    kept = np.zeros(len(order), dtype=bool)
    kept[order[rank < COCO_LIMIT]] = True
    return kept
