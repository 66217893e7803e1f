"""Which thresholds to draw with: those with the best F1 on images whose ground truth is known.

F1 is the harmonic mean of precision (drawn instances that are right) and recall (objects that are drawn), so
the best threshold shows about as many false instances as it hides true ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.columns import EvaluationData, read_inputs
from workbench.evaluation.filters import Candidates, FilterSettings, SubcategoryFilter, apply_filters
from workbench.evaluation.matching import match_predictions
from workbench.evaluation.subcategories import Subcategory, read_subcategories

STEPS = 20  # thresholds tried for a subcategory
_DECIMALS = 2  # of a threshold, as sliders and words show them


@dataclass(frozen=True)
class Suggestion:
    """The thresholds that :func:`suggest_thresholds` suggests.

    settings: those it was given, with the suggested thresholds. curves: {rule: table with threshold,
    precision, recall, f1 (percent), thresholds rising}. note: the result in words, or why there is none.
    """

    settings: FilterSettings
    curves: dict[str, pd.DataFrame]
    note: str

    def table(self) -> pd.DataFrame:
        """Return one row a rule: the suggested threshold (NaN for none) and precision, recall and F1 with it."""
        lines = {}
        for rule, curve in self.curves.items():
            best = curve.iloc[_best(curve)]
            lines[rule] = best.where(np.isfinite(best), np.nan)
        columns = ["threshold", "precision", "recall", "f1"]
        return pd.DataFrame.from_dict(lines, orient="index", columns=columns).rename_axis("rule")


def suggest_thresholds(
    truth: Mapping | None,
    results: Sequence[Mapping],
    vocabulary: Vocabulary,
    settings: FilterSettings | None = None,
    *,
    iou: float = 0.5,
) -> Suggestion:
    """Return the thresholds with the best F1 of ``results`` on ``truth`` (None where there is no ground truth).

    The score comes first: an instance is right where it finds an object of its main category as in COCO, with
    a mask IoU of at least ``iou``. Then each subcategory in turn, with that score: here the object must have
    the subcategory's class too, where it is labelled. Everything else is as in ``settings``, other thresholds
    of subcategories aside. A subcategory for which no threshold is better than none gets none. Rows without a class of
    the subcategory are dropped where that is better still.
    """
    settings = chosen = settings or FilterSettings()
    if truth is None or all(annotation.get("iscrowd", 0) for annotation in truth["annotations"]):
        return Suggestion(settings, {}, "There is no ground truth, so no thresholds can be suggested.")
    if not len(results):
        return Suggestion(settings, {}, "There are no predictions, so no thresholds can be suggested.")
    rows, data = Candidates(results, vocabulary), read_inputs(truth, results)
    open_ = {name: replace(each, threshold=None) for name, each in settings.subcategories.items()}
    settings = replace(settings, score=0.0, subcategories=open_)
    curve = _score_curve(rows, data, settings, iou)
    curves = {"score": curve}
    if curve.empty:
        return Suggestion(chosen, {}, "The other filters leave no prediction, so no thresholds can be suggested.")
    if not curve.f1.max() > 0:
        return Suggestion(chosen, curves, "No prediction finds an object at any score, so none can be suggested.")
    settings = replace(settings, score=float(curve.threshold[_best(curve)]))
    for subcategory in read_subcategories(data, vocabulary):
        name = subcategory.name
        measure = settings.subcategories.get(name, SubcategoryFilter()).measure
        curve = _subcategory_curve(rows, data, settings, subcategory, iou)
        curves[f"{name} {measure}"] = curve
        best = float(curve.threshold[_best(curve)])
        settings = settings.with_subcategory(name, threshold=best if np.isfinite(best) else None)
        dropping = settings.with_subcategory(name, drop_no_object=True)
        without = [_f1(_subcategory_counts(rows, data, each, subcategory, iou), data) for each in (settings, dropping)]
        settings = dropping if without[1] > without[0] else settings
    suggestion = Suggestion(settings, curves, "")
    return replace(suggestion, note=_in_words(suggestion))


def _score_curve(rows: Candidates, data: EvaluationData, settings: FilterSettings, iou: float) -> pd.DataFrame:
    """Return the F1 at scores of at most ``_DECIMALS`` decimals, one for each set of predictions that they part.

    One matching serves all: a prediction's match, and what it overlaps, depend on better ones only.
    """
    kept = np.flatnonzero(apply_filters(rows, settings, rows.vocabulary).rule < 0)
    data = replace(data, predictions=data.predictions.select(kept))
    matches = match_predictions(data, iou=iou)
    scores, counted = data.predictions.scores, ~matches.ignored
    order = np.argsort(-scores[counted], kind="stable")
    falling, right = scores[counted][order], (matches.object_of[counted] >= 0)[order]
    last = np.flatnonzero(np.diff(falling, append=-np.inf))  # equal scores stand or fall together
    curve = _rates(np.cumsum(right)[last], last + 1, data)
    curve.insert(0, "threshold", falling[last])
    curve = curve[::-1].reset_index(drop=True)
    scores = curve.threshold.tolist()
    curve["threshold"] = [_between(*pair) for pair in zip([0.0, *scores], scores, strict=False)]
    return curve.dropna().reset_index(drop=True)


def _subcategory_curve(
    rows: Candidates, data: EvaluationData, settings: FilterSettings, subcategory: Subcategory, iou: float
) -> pd.DataFrame:
    """Return the F1 at thresholds spread over the predictions that are left; the first, -inf, is none at all."""
    name = subcategory.name
    measure = settings.subcategories.get(name, SubcategoryFilter()).measure
    left = apply_filters(rows, settings, rows.vocabulary).rule < 0
    values = rows.confidence(name, measure)[left]
    quantiles = np.quantile(values, np.linspace(0, 1, STEPS + 1)[1:-1]) if len(values) else []
    tried = [-np.inf, *np.unique(np.round(quantiles, _DECIMALS)).tolist()]
    true, drawn = [], []
    for threshold in tried:
        limit = threshold if np.isfinite(threshold) else None
        counts = _subcategory_counts(rows, data, settings.with_subcategory(name, threshold=limit), subcategory, iou)
        true.append(counts[0])
        drawn.append(counts[1])
    curve = _rates(np.array(true), np.array(drawn), data)
    curve.insert(0, "threshold", tried)
    return curve


def _subcategory_counts(
    rows: Candidates, data: EvaluationData, settings: FilterSettings, subcategory: Subcategory, iou: float
) -> tuple[int, int]:
    """Return how many instances are right, their subcategory too, and how many are drawn."""
    kept = np.flatnonzero(apply_filters(rows, settings, rows.vocabulary).rule < 0)
    matches = match_predictions(replace(data, predictions=data.predictions.select(kept)), iou=iou)
    found = matches.object_of >= 0
    wanted = subcategory.truth[matches.object_of[found]]
    right = (wanted < 0) | (wanted == subcategory.predicted[kept[found]])
    return int(right.sum()), int((~matches.ignored).sum())


def _f1(counts: tuple[int, int], data: EvaluationData) -> float:
    return float(_rates(np.array([counts[0]]), np.array([counts[1]]), data).f1[0])


def _rates(true: np.ndarray, drawn: np.ndarray, data: EvaluationData) -> pd.DataFrame:
    """Return precision, recall and F1 in percent from counts."""
    objects = int((~data.objects.crowd).sum())
    return pd.DataFrame(
        {
            "precision": 100 * true / np.maximum(drawn, 1),
            "recall": 100 * true / objects,
            "f1": 200 * true / (drawn + objects),
        }
    )


def _best(curve: pd.DataFrame) -> int:
    """Return the row with the best F1; of equal ones the lowest threshold, which hides least."""
    return int(curve.f1.to_numpy().argmax())


def _between(low: float, high: float) -> float:
    """Return a short number above ``low`` and at most ``high``, NaN where none has at most ``_DECIMALS`` decimals.

    Each such number drops and keeps the same predictions. Below the lowest score it is 0 where there is no other.
    """
    for decimals in range(1, _DECIMALS + 1):
        middle = round((high + low) / 2, decimals)
        if low < middle <= high:
            return middle
    largest = round(np.floor(high * 10**_DECIMALS + 1e-9) / 10**_DECIMALS, _DECIMALS)
    return largest if low < largest <= high or low == 0 else np.nan


def _in_words(suggestion: Suggestion) -> str:
    table, score = suggestion.table(), suggestion.settings.score
    best = table.loc["score"]
    parts = [
        f"With a score of at least {score:g}, {best.precision:.0f} % of what is drawn is right and "
        f"{best.recall:.0f} % of the objects are drawn (F1 {best.f1:.1f})."
    ]
    for name, chosen in suggestion.settings.subcategories.items():
        rule = f"{name} {chosen.measure}"
        if rule not in table.index:
            continue
        before, after = suggestion.curves[rule].f1[0], table.f1[rule]
        if chosen.threshold is None:
            parts.append(f"A threshold on the {name} would only hide right ones (F1 {after:.1f} without).")
        else:
            parts.append(
                f"A {name} {chosen.measure} of at least {chosen.threshold:g} raises the F1 of instances whose "
                f"{name} is right as well from {before:.1f} to {after:.1f}."
            )
        if chosen.drop_no_object:
            parts.append(f"Dropping rows without a {name} raises it further.")
    return " ".join(parts)
