"""What to check where the AP is 0, as far as predictions and ground truth tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from workbench.evaluation.columns import EvaluationData, read_inputs, things_of

NOTHING = 0.5  # percent; an AP below it is shown as 0
LITTLE = 10.0  # percent; an AP below it may have such a cause too
_MOST_IMAGES = 200
_BEST = 10  # distinct boxes of an image, or twice as many as it has objects
_MANY = 0.3  # share of the objects from which on a check explains why nothing is found
_STEPS = 20  # places of a displacement along a side of the image
_SILENT = 0.98  # share of queries that say no-object
_UNSURE = 0.05  # a score that says "no object" too
_STILL = 0.02  # share of the image that boxes may move from image to image and count as the same

_Boxes = np.ndarray  # (N, 4) x, y, width, height as shares of the image
_MOVES: dict[str, Callable[[_Boxes], _Boxes]] = {
    "mirrored left to right": lambda b: np.stack([1 - b[:, 0] - b[:, 2], *b.T[1:]], axis=1),
    "turned upside down": lambda b: np.stack([b[:, 0], 1 - b[:, 1] - b[:, 3], *b.T[2:]], axis=1),
    "turned by 180 degrees": lambda b: np.stack([*(1 - b[:, :2] - b[:, 2:]).T, *b.T[2:]], axis=1),
    "with x and y swapped": lambda b: b[:, [1, 0, 3, 2]],
    "enlarged four times": lambda b: 4 * b,
    "enlarged twice": lambda b: 2 * b,
    "halved in size": lambda b: b / 2,
    "reduced to a quarter": lambda b: b / 4,
}


class Check(NamedTuple):
    """A question and its answer in words, whether it is yes, and whether it explains that nothing is found."""

    text: str
    yes: bool = False
    explains: bool = False


def check_predictions(gt: Mapping, results: Sequence[Mapping], no_object: float | None = None) -> list[Check]:
    """Look in predictions for what may be wrong where next to nothing is found, likeliest first.

    Args:
        gt: a COCO dict with at least one object.
        results: COCO results.
        no_object: the share of queries that say no-object, where it is known.

    Returns:
        masks moved, classes permuted, everything no-object, the same output for every image. Boxes are compared, of at
        most ``_MOST_IMAGES`` images.
    """
    data = read_inputs(*things_of(gt, results), iou_type="bbox")
    images = [_Image(data, i) for i in _with_objects(data)]
    return [_moved(images), _permuted(data, images), _silent(data, no_object), _same(images)]


def explain_nothing_found(gt: Mapping, results: Sequence[Mapping], no_object: float | None = None) -> list[str]:
    """Return :func:`check_predictions` as numbered lines, and what remains where none of them explains it."""
    checks = check_predictions(gt, results, no_object)
    lines = [f"{number}. {check.text}" for number, check in enumerate(checks, start=1)]
    if not any(check.explains for check in checks):
        lines.append(
            "None of these explains it, so the training was too short or its learning rate unfit: look whether the "
            "losses of notebook 03 fell, and whether the data look as in training."
        )
    return lines


class _Image:
    """The objects of one image and its best predictions, one a box: rows, and boxes as shares of the image."""

    def __init__(self, data: EvaluationData, number: int) -> None:
        objects = np.flatnonzero((data.objects.image == number) & ~data.objects.crowd)
        rows = np.flatnonzero(data.predictions.image == number)
        rows = rows[np.argsort(-data.predictions.scores[rows], kind="stable")]
        _, first = np.unique(data.predictions.boxes[rows].round(1), axis=0, return_index=True)
        height, width = data.sizes[number]
        scale = np.array([width, height, width, height])
        self.objects, self.rows = objects, rows[np.sort(first)][: max(_BEST, 2 * len(objects))]
        self.truth = data.objects.boxes[self.objects] / scale
        self.predicted = data.predictions.boxes[self.rows] / scale


def _with_objects(data: EvaluationData) -> list[int]:
    return np.unique(data.objects.image[~data.objects.crowd])[:_MOST_IMAGES].tolist()


def _overlaps(predicted: _Boxes, truth: _Boxes) -> np.ndarray:
    """Return the IoUs (predictions, objects)."""
    if not len(predicted) or not len(truth):
        return np.zeros((len(predicted), len(truth)))
    return np.asarray(coco_mask.iou(np.ascontiguousarray(predicted), np.ascontiguousarray(truth), [0] * len(truth)))


def _covered(images: Sequence[_Image], move: Callable[[_Boxes], _Boxes] = lambda boxes: boxes) -> float:
    """Return the share of the objects that a prediction, once moved, overlaps by half or more."""
    found = [_overlaps(move(i.predicted), i.truth).max(axis=0, initial=0.0) >= 0.5 for i in images]
    return float(np.concatenate(found).mean())


def _moved(images: Sequence[_Image]) -> Check:
    here = _covered(images)
    x, y = _displacement(images)
    shift = f"moved by {x:+.0%} of the width and {y:+.0%} of the height"
    moves = {**_MOVES, shift: lambda boxes: boxes + [x, y, 0, 0]}
    shares = {name: _covered(images, move) for name, move in moves.items()}
    best = max(shares, key=shares.get)
    if shares[best] >= _MANY and shares[best] > 2 * here:
        return Check(
            f"Masks moved? Yes: the predictions fit {shares[best]:.0%} of the objects once they are {best}, and "
            f"{here:.0%} as they are. Image and masks were not transformed alike, in training or here: look at the "
            "training images of notebook 03.",
            True,
            True,
        )
    text = "no transformation of the predictions (mirrored, turned, scaled, displaced) fits more objects"
    return Check(f"Masks moved? Not as far as boxes tell: {text}; the outlines of notebook 03 show it for certain.")


def _displacement(images: Sequence[_Image]) -> tuple[float, float]:
    """Return by how much most predictions are beside an object of their size, as shares of width and height."""
    offsets = []
    for image in images:
        ratio = image.predicted[:, None, 2:] / np.maximum(image.truth[None, :, 2:], 1e-9)
        alike = (np.abs(np.log(np.maximum(ratio, 1e-9))) < np.log(1.3)).all(axis=2)
        centres = [boxes[:, :2] + boxes[:, 2:] / 2 for boxes in (image.predicted, image.truth)]
        offsets.append((centres[1][None] - centres[0][:, None])[alike])
    offsets = np.concatenate(offsets)
    if not len(offsets):
        return 0.0, 0.0
    cells = np.rint(offsets * _STEPS).astype(int)
    commonest = Counter(map(tuple, cells.tolist())).most_common(1)[0][0]
    x, y = np.median(offsets[(np.abs(cells - commonest) <= 1).all(axis=1)], axis=0)
    return float(x), float(y)


def _permuted(data: EvaluationData, images: Sequence[_Image]) -> Check:
    pairs, right = Counter(), 0
    for image in images:
        ious = _overlaps(image.predicted, image.truth)
        for j, row in enumerate(image.objects):
            on_it = np.flatnonzero(ious[:, j] >= 0.5)
            if len(on_it):
                best = data.predictions.category[image.rows[on_it[0]]]
                true = data.objects.category[row]
                right += best == true
                pairs[data.category_names[true], data.category_names[best]] += 1
    objects = sum(len(image.objects) for image in images)
    share = pairs.total() / objects
    covered = f"{share:.0%} of the objects lie under a prediction of some category (box IoU of half or more)"
    if share < _MANY:
        return Check(f"Classes permuted? Not to be told: only {covered}.")
    if right > pairs.total() / 2:
        return Check(
            f"Classes permuted? No: {covered}, and most have the right category. So boxes are right and masks wrong, "
            "or the scores rank wrong predictions first.",
            explains=True,
        )
    wrong = Counter({pair: count for pair, count in pairs.items() if pair[0] != pair[1]}).most_common(3)
    listed = ", ".join(f"{true} as {predicted} ({count})" for (true, predicted), count in wrong)
    return Check(
        f"Classes permuted? Yes: {covered}, but under another: {listed}. Compare the order of the categories in "
        "checkpoint and dataset.",
        True,
        True,
    )


def _silent(data: EvaluationData, no_object: float | None) -> Check:
    best = float(data.predictions.scores.max(initial=0.0))
    said = f"the highest score is {best:.2f}" if len(data.predictions) else "there is no prediction"
    if no_object is not None:
        said = f"{no_object:.1%} of the queries say no-object, and {said}"
    if best < _UNSURE or (no_object or 0) >= _SILENT:
        reason = "trained too briefly, or with too few objects or too high a learning rate"
        return Check(f"Everything no-object? Yes: {said}. The model was {reason}.", True, True)
    return Check(f"Everything no-object? No: {said}.")


def _same(images: Sequence[_Image]) -> Check:
    best = np.array([image.predicted[0] for image in images if len(image.predicted)])
    truth = np.concatenate([image.truth for image in images])
    if len(best) < 3:
        return Check("The same output for every image? Not to be told: too few images have a prediction.")
    spread = float(np.median(best.std(axis=0)))
    if spread < _STILL < float(np.median(truth.std(axis=0))):
        return Check(
            "The same output for every image? Yes: the best prediction has the same box in each, so the model does not "
            "look at the image. Check that MODEL.PIXEL_MEAN and PIXEL_STD fit the images, and that the losses fell.",
            True,
            True,
        )
    return Check("The same output for every image? No: the best prediction has another box in each.")
