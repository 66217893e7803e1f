"""How well the subcategories are predicted, alone and together with mask and main category.

Three questions, three numbers, all in percent:

- **accuracy, macro_f1**: of the matched objects, how many have the right subcategory class? Predictions and objects
  are matched as in COCO at a mask IoU of 0.5, but whatever their main categories. ``labelled`` counts the matched
  objects that are labelled; one whose prediction says "no object" for the subcategory is wrong. ``unmatched`` counts
  the labelled objects without a prediction, which accuracy leaves out.
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

from workbench.data.vocabulary import Vocabulary, class_name
from workbench.errors import WorkbenchError, shown
from workbench.evaluation.coco import COCO_IOUS, COCO_LIMIT, average_precision, mean_in_percent
from workbench.evaluation.columns import EvaluationData, row_name
from workbench.evaluation.matching import Matches, match_predictions
from workbench.evaluation.scorers import UNSCORED_AREA, accumulate

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
    """Return whether any result has attributes, or there are no results at all."""
    return not len(results) or any("attributes" in row for row in results)


def read_subcategories(data: EvaluationData, vocabulary: Vocabulary) -> list[Subcategory]:
    """Return the subcategories of objects and predictions as class numbers.

    Raises:
        WorkbenchError: a value is not in the class list; it names the annotation or the row of the results.
    """
    subcategories = []
    for name, classes in vocabulary.subcategories.items():
        truth = _class_numbers(data.objects.rows, name, classes, predicted=False)
        predicted = _class_numbers(data.predictions.rows, name, classes, predicted=True)
        probability = _probability(data, name, len(classes), predicted)
        subcategories.append(Subcategory(name, tuple(classes), truth, predicted, probability))
    return subcategories


def _class_numbers(rows: Sequence[Mapping], name: str, classes: Sequence[str], *, predicted: bool) -> np.ndarray:
    """(N,) int64 class of each row; without one -1, or for a prediction the number of classes."""
    place: dict = {None: len(classes) if predicted else -1} | {value: k for k, value in enumerate(classes)}
    numbers = []
    for i, row in enumerate(rows):
        attributes = row.get("attributes")
        value = attributes.get(name) if isinstance(attributes, Mapping) else None
        try:
            numbers.append(place[class_name(value)])
        except (KeyError, TypeError):
            where, known = row_name(i, row, predicted), ", ".join(classes)
            raise WorkbenchError(f"{where} has the {name} {shown(value)}, which is not in the list {known}.") from None
    return np.array(numbers, dtype=np.int64)


def _probability(data: EvaluationData, name: str, count: int, predicted: np.ndarray) -> np.ndarray:
    probability = np.ones(len(data.predictions))
    for i, row in enumerate(data.predictions.rows):
        values = (row.get("attribute_scores") or {}).get(name)
        if values is None:
            continue
        if len(values) != count + 1:
            raise WorkbenchError(
                f"{row_name(i, row, True)} has attribute_scores for {name} that are not {count + 1} numbers: one for "
                "each class and one for no-object."
            )
        probability[i] = values[predicted[i]]
    return probability


def subcategory_scores(
    data: EvaluationData, vocabulary: Vocabulary, *, iou_type: str = "segm", scorer: str = "hotcoco"
) -> tuple[dict[str, dict], dict]:
    """Return ({name: {"accuracy", "macro_f1", "labelled", "unmatched", "AP"}}, {"AP", "AP50"} joint).

    Percent, or None where there is nothing to measure on; ``labelled`` and ``unmatched`` are counts.
    """
    subcategories = read_subcategories(data, vocabulary)
    matches = match_predictions(data, iou_type=iou_type, same_category=False)
    main_scores = _ranking_free_scores(data)
    rows = _one_row_a_query(data, main_scores)
    scores = {}
    for subcategory in subcategories:
        confusion = confusion_counts(data, subcategory, matches)
        relabelled = _relabelled(data, subcategory, main_scores, rows)
        arrays = accumulate(relabelled, iou_type, max_dets=[COCO_LIMIT], scorer=scorer, by_size=False)
        scores[subcategory.name] = _agreement(confusion) | {"AP": average_precision(arrays)}
    return scores, _joint(data, subcategories, iou_type)


def confusion_counts(data: EvaluationData, subcategory: Subcategory, matches: Matches) -> np.ndarray:
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


def _relabelled(data: EvaluationData, subcategory: Subcategory, scores: np.ndarray, rows: np.ndarray) -> EvaluationData:
    """Return ``data`` with the subcategory's classes as its categories and, of the predictions, only ``rows``."""
    count = len(subcategory.classes)
    rows = rows[subcategory.predicted[rows] < count]
    scores = scores[rows] * subcategory.probability[rows]
    predictions = replace(data.predictions.select(rows), category=subcategory.predicted[rows], scores=scores)
    # An unlabelled object may be of any class, so it stands in each of them, unscored.
    labelled, unlabelled = np.flatnonzero(subcategory.truth >= 0), np.flatnonzero(subcategory.truth < 0)
    objects = data.objects.select(np.concatenate([labelled, np.tile(unlabelled, count)]))
    objects.category[:] = [*subcategory.truth[labelled], *np.repeat(np.arange(count), len(unlabelled))]
    objects.areas[len(labelled) :] = UNSCORED_AREA
    names = subcategory.classes
    return replace(data, category_ids=names, category_names=names, objects=objects, predictions=predictions)


def _one_row_a_query(data: EvaluationData, scores: np.ndarray) -> np.ndarray:
    """Return the row numbers of the predictions, only the best of each query's; rows without a query all count."""
    best: dict[tuple, int] = {}
    for i in np.argsort(-scores, kind="stable").tolist():
        row = data.predictions.rows[i]
        query = row.get("query")
        best.setdefault((i,) if query is None else (row["image_id"], query), i)
    return np.array(sorted(best.values()), dtype=np.int64)


def _ranking_free_scores(data: EvaluationData) -> np.ndarray:
    """Return main score x mask score of each prediction, or its score where a row does not have both."""
    scores = [
        row["main_score"] * row["mask_score"] if "main_score" in row and "mask_score" in row else row["score"]
        for row in data.predictions.rows
    ]
    return np.array(scores, dtype=np.float64)


def _joint(data: EvaluationData, subcategories: list[Subcategory], iou_type: str) -> dict:
    """Return AP and AP50 in percent, matched here: no scorer can keep apart pairs that may not match."""
    traits = (
        np.array([s.truth for s in subcategories], dtype=np.int64).T,
        np.array([s.predicted for s in subcategories], dtype=np.int64).T,
    )
    predictions = data.predictions
    kept = _within_limit(predictions.image, predictions.category, predictions.scores)
    order = data.ranked[np.argsort(-predictions.scores[data.ranked], kind="stable")]  # COCO's
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
