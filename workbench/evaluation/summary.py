"""The scores of one evaluation in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from workbench.errors import counted
from workbench.evaluation.nothing_found import LITTLE, NOTHING, check_predictions, explain_nothing_found

_log = logging.getLogger(__name__)
FEW_FOUND = 30  # percent of the objects; where fewer are found, recall is the thing to work on, not outlines
# Training is called far ahead of validation by more points of AP than this, and more than this many times its AP.
FAR_POINTS, FAR_TIMES = 10, 1.5


def main_score(metrics: Mapping) -> tuple[str, float | None]:
    """Return the name and the value of the score that checkpoints are chosen by: the mask AP where instances are
    predicted, else PQ, else mIoU."""
    for kind, score, name in (("segm", "AP", "segm AP"), ("panoptic", "PQ", "PQ"), ("semantic", "mIoU", "mIoU")):
        if metrics.get(kind) is not None:
            return name, metrics[kind].get(score)
    return "segm AP", None


def summarise(metrics: Mapping, truth: Mapping | None = None, results: Sequence[Mapping] = ()) -> str:
    """Return a few sentences on what metrics.json says: the overall score, its extremes and its likeliest cause.

    Where the AP is 0, ``truth`` and ``results``, a COCO dict and the COCO results, tell what to check, a line each;
    where it is low, what of that they confirm.
    """
    if not metrics["images"]:
        return "There is no image to evaluate on."
    scores = metrics.get("segm") or metrics["bbox"]
    kinds = _of_segments(metrics)
    if scores is None:
        return " ".join([f"{counted(metrics['images'], 'image was', 'images were')} evaluated.", *kinds])
    if not metrics["instances"] or scores["AP"] is None:
        return f"There is no object in {counted(metrics['images'], 'image')}, so there is nothing to measure."
    parts = [
        f"On {counted(metrics['images'], 'image')} with {counted(metrics['instances'], 'object')} the mask AP is "
        f"{scores['AP']:.1f} and AP50 {scores['AP50']:.1f}"
        + (f"; joint with all subcategories it is {joint:.1f}." if (joint := _joint(metrics)) is not None else "."),
        *kinds,
    ]
    if nothing_found(metrics):
        parts.append("Next to nothing was found. What to check, in this order:")
        return "\n".join([" ".join(parts), *what_to_check(metrics, truth, results)])
    if truth is not None:
        parts += _confirmed(metrics, truth, results)
    known = {name: ap for name, ap in metrics["per_category"].items() if ap is not None}
    if len(known) > 1:
        best, worst = max(known, key=known.get), min(known, key=known.get)
        parts.append(f"Best is {best} ({known[best]:.1f}), worst {worst} ({known[worst]:.1f}).")
    parts += _likeliest_cause(scores)
    for name, values in (metrics.get("subcategories") or {}).items():
        if values["accuracy"] is not None:
            parts.append(
                f"Of the objects found, {values['accuracy']:.1f} % have the right {name}"
                + (f" ({values['unmatched']} were not found)." if values["unmatched"] else ".")
            )
    return " ".join(parts)


def nothing_found(metrics: Mapping) -> bool:
    """Return whether there are objects and the AP is 0, as it is shown."""
    ap = _mask_or_box_ap(metrics)
    return bool(metrics["instances"]) and ap is not None and ap < NOTHING


def little_found(metrics: Mapping) -> bool:
    """Return whether there are objects and the AP is so low that a mistake in the data may explain it."""
    ap = _mask_or_box_ap(metrics)
    return bool(metrics["instances"]) and ap is not None and ap < LITTLE


def warn_of_nothing_found(metrics: Mapping, truth: Mapping, results: Sequence[Mapping]) -> None:
    """Log what to check where the AP is 0, a line each; where it is low, what of that the predictions confirm."""
    lines = summarise(metrics, truth, results).splitlines() if nothing_found(metrics) else []
    for line in lines or _confirmed(metrics, truth, results):
        _log.warning(line)


def _confirmed(metrics: Mapping, truth: Mapping, results: Sequence[Mapping]) -> list[str]:
    if not little_found(metrics):
        return []
    checks = check_predictions(truth, results, metrics.get("no_object_fraction"))
    return [check.text for check in checks if check.yes]


def what_to_check(metrics: Mapping, truth: Mapping | None, results: Sequence[Mapping]) -> list[str]:
    """Return a line a check where the AP is 0 (:func:`explain_nothing_found`); only their names without ``truth``."""
    if truth is None:
        return ["1. Masks moved?", "2. Classes permuted?", "3. Everything no-object?", "4. The same output everywhere?"]
    return explain_nothing_found(truth, results, metrics.get("no_object_fraction"))


def _of_segments(metrics: Mapping) -> list[str]:
    """Return a sentence each on the panoptic and the semantic scores, as far as there are."""
    sentences = []
    if (panoptic := metrics.get("panoptic")) and panoptic["PQ"] is not None:
        parts = {"things": panoptic["PQ_th"], "stuff": panoptic["PQ_st"]}
        known = [f"{name} {value:.1f}" for name, value in parts.items() if value is not None]
        sentences.append(f"The panoptic quality is {panoptic['PQ']:.1f} ({', '.join(known)}).")
    if (semantic := metrics.get("semantic")) and semantic["mIoU"] is not None:
        sentences.append(f"The mean IoU of the categories is {semantic['mIoU']:.1f}.")
    return sentences


def _likeliest_cause(scores: Mapping) -> list[str]:
    """Return a sentence on recall, ranking or outlines, in this order; none where nothing stands out."""
    recall = largest_recall(scores)
    # At least this share of the objects is found with half an overlap: neither score can exceed the recall there.
    if recall is not None and max(recall, scores["AP50"]) < FEW_FOUND:
        return [
            f"Few objects are found at all: the average recall is {recall:.1f} and AP50 {scores['AP50']:.1f}. Outlines "
            "come later; more training, more images or published weights come first."
        ]
    if scores["AP50"] > 2 * scores["AP"]:
        return ["AP50 is more than twice the AP: objects are found, their outlines are coarse."]
    if recall is not None and recall > 2 * scores["AP"]:
        return [
            f"The average recall, {recall:.1f}, is more than twice the AP: objects are found, but confident mistakes "
            "stand before them."
        ]
    return []


def largest_recall(scores: Mapping) -> float | None:
    """Return the average recall at the largest of TEST.MAX_DETS, in percent."""
    recalls = {int(name[3:]): value for name, value in scores.items() if name.startswith("AR@")}
    return recalls[max(recalls)] if recalls else None


def compare_with_training(training: Mapping, validation: Mapping, start: str, *, jitter: bool = False) -> str:
    """Return in words whether a model has learnt its training images by heart, and what helps.

    Args:
        training, validation: metrics.json on a sample of the training images, and on the validation set.
        start: which weights the training began with.
        jitter: whether INPUT.COLOR_JITTER was on.
    """
    here, there = (_mask_or_box_ap(metrics) for metrics in (training, validation))
    parts = [f"The training started from {start}."]
    if here is None or there is None:
        return " ".join([*parts, "The two scores cannot be compared, as one of them has no object to measure on."])
    counts = f"{here:.1f} on {training['images']} training images and {there:.1f} on {validation['images']} others"
    if here - there <= FAR_POINTS or here <= FAR_TIMES * there:
        parts.append(f"AP is {counts}.")
        if here < FEW_FOUND:
            parts.append("Both are low: the training was too short, or the objects too small at INPUT.IMAGE_SIZE.")
        return " ".join(parts)
    parts.append(f"AP is {counts}: the model has learnt these images by heart rather than what they show.")
    helps = []
    if "random" in start:
        helps.append("start from published weights (MODEL.RESNETS.WEIGHTS or MODEL.MOBILENET.WEIGHTS imagenet)")
    if not jitter:
        helps.append("vary the colours (INPUT.COLOR_JITTER True)")
    helps.append("annotate more images")
    return " ".join([*parts, f"What helps: {'; '.join(helps)}."])


def _mask_or_box_ap(metrics: Mapping) -> float | None:
    return (metrics.get("segm") or metrics["bbox"] or {}).get("AP")


def _joint(metrics: Mapping) -> float | None:
    return (metrics.get("joint") or {}).get("AP")
