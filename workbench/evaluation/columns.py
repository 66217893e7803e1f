"""Ground truth and results, checked once and put in the form every metric reads.

Files of other programs leave out ``area``, ``bbox`` and ``iscrowd`` and mix three mask encodings. The columns do not,
and the caller's objects stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import hotcoco
import numpy as np
from pycocotools import mask as coco_mask

from workbench.data.masks import MOST_PIXELS, to_rles
from workbench.data.reading import all_boxes, is_box, is_integer
from workbench.errors import WorkbenchError, all_numbers, is_number, kind_of, shown

IOU_TYPES = ("segm", "bbox")


@dataclass(frozen=True)
class Instances:
    """Objects or predictions of a whole dataset, one row each, as parallel columns.

    image: (N,) int64, position of the image in ``EvaluationData.image_ids``.
    category: (N,) int64, position of the main category in ``EvaluationData.category_ids``.
    rles: N compressed RLEs as pycocotools makes them; None for a row with a box only (``iou_type="bbox"``).
    boxes: (N, 4) float64 XYWH in pixels.
    areas: (N,) float64 in square pixels: of an object what its annotation says, of a prediction its mask's.
    scores: (N,) float64; ones for objects.
    crowd: (N,) bool; False for predictions.
    rows: the N dicts these columns were made from.
    """

    image: np.ndarray
    category: np.ndarray
    rles: list[dict | None]
    boxes: np.ndarray
    areas: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray
    rows: list[dict]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: np.ndarray) -> Instances:
        """Return the rows with these numbers, in this order."""
        columns = vars(self).items()
        return Instances(**{key: [c[i] for i in rows] if isinstance(c, list) else c[rows] for key, c in columns})


@dataclass(frozen=True)
class EvaluationData:
    """Ground truth and predictions of the same images and main categories, as :func:`read_inputs` returns them."""

    image_ids: tuple
    sizes: tuple[tuple[int, int], ...]
    category_ids: tuple
    category_names: tuple[str, ...]
    objects: Instances
    predictions: Instances

    @cached_property
    def ranked(self) -> np.ndarray:
        """(N,) rows of the predictions by image, then best score first; equal scores stay in file order."""
        return np.lexsort((-self.predictions.scores, self.predictions.image))

    @cached_property
    def _pairs(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return {}

    def pairs(self, iou_type: str = "segm") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the pairs of a prediction and an object that overlap, in the order in which COCO tries to match them.

        Predictions are in the order of ``ranked``, the objects of one by falling IoU, the last of equal ones first.

        Returns:
            The rows of the predictions and of the objects, (P,) int64 each, and (P,) float64 IoU; against a crowd
            region it is COCO's intersection over the prediction's own area.
        """
        if iou_type not in self._pairs:
            parts = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))]
            sides = (self.predictions, self.ranked), (self.objects, np.argsort(self.objects.image, kind="stable"))
            bounds = np.arange(1, len(self.image_ids))
            images = [np.split(order, np.searchsorted(side.image[order], bounds)) for side, order in sides]
            for detected, there in zip(*images, strict=True):
                if len(detected) and len(there):
                    shapes = [
                        [side.rles[i] for i in rows] if iou_type == "segm" else side.boxes[rows]
                        for side, rows in ((self.predictions, detected), (self.objects, there))
                    ]
                    # Of a few masks pycocotools is twice as fast as hotcoco.
                    ious = coco_mask.iou(*shapes, self.objects.crowd[there])
                    d, g = np.nonzero(ious)
                    order = np.lexsort((-g, -ious[d, g], d))
                    d, g = d[order], g[order]
                    parts.append((detected[d], there[g], ious[d, g]))
            self._pairs[iou_type] = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        return self._pairs[iou_type]


def things_of(gt: Mapping, results: Sequence[Mapping]) -> tuple[Mapping, Sequence[Mapping]]:
    """Return ground truth and results without categories that are stuff (``isthing`` 0), which has no instances."""
    stuff = {category["id"] for category in gt["categories"] if not category.get("isthing", 1)}
    if not stuff:
        return gt, results
    annotations = [each for each in gt["annotations"] if each["category_id"] not in stuff]
    categories = [each for each in gt["categories"] if each["id"] not in stuff]
    kept = [row for row in results if row.get("category_id") not in stuff]
    return {**gt, "annotations": annotations, "categories": categories}, kept


def read_inputs(gt: Mapping, results: Sequence[Mapping], *, iou_type: str = "segm") -> EvaluationData:
    """Check a COCO ground truth and a list of COCO results and return both as columns.

    With ``iou_type="bbox"`` a result may come without a segmentation and a ground truth without masks.

    Raises:
        WorkbenchError: names the image, annotation or result row at fault: an unknown ``image_id`` or
            ``category_id``, a score that is not a finite number, a mask that is damaged or of another size than its
            image.
    """
    if iou_type not in IOU_TYPES:
        raise WorkbenchError(f"iou_type {iou_type!r} is not one of {', '.join(IOU_TYPES)}.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(gt, Mapping) or not isinstance(gt.get(key), list):
            raise WorkbenchError(f"The ground truth has no list {key!r}, so it is not a COCO instances file.")
    if isinstance(results, (str, Mapping)) or not isinstance(results, Sequence):
        raise WorkbenchError(f"The results are {kind_of(results)}, not a list of COCO results.")
    images = _index(gt["images"], "image")
    categories = _index(gt["categories"], "category")
    sizes = tuple(_size(image) for image in images.values())
    names = [str(category.get("name", key)) for key, category in categories.items()]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    names = [f"{name} (id {key})" if name in repeated else name for name, key in zip(names, categories, strict=True)]
    positions = [{key: i for i, key in enumerate(index)} for index in (images, categories)]
    return EvaluationData(
        image_ids=tuple(images),
        sizes=sizes,
        category_ids=tuple(categories),
        category_names=tuple(names),
        objects=_columns(gt["annotations"], positions, sizes, iou_type, predicted=False),
        predictions=_columns(results, positions, sizes, iou_type, predicted=True),
    )


def _index(items: list, kind: str) -> dict:
    """Return the images or categories by id, in the order of COCO's scorers, which decides between equal scores."""
    index = {}
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or not _is_id(item.get("id")):
            raise WorkbenchError(f"{kind.capitalize()} number {number} of the ground truth has no id.")
        if item["id"] in index:
            raise WorkbenchError(f"The ground truth has two entries for {kind} id {shown(item['id'])}.")
        index[item["id"]] = item
    keys = index if any(isinstance(key, str) for key in index) else sorted(index)
    return {key: index[key] for key in keys}


def _size(image: Mapping) -> tuple[int, int]:
    size = image.get("height"), image.get("width")
    if not all(is_integer(n) and n > 0 for n in size):
        raise WorkbenchError(f"Image id {shown(image['id'])} of the ground truth has no positive height and width.")
    if size[0] * size[1] > MOST_PIXELS:
        raise WorkbenchError(
            f"Image id {shown(image['id'])} of the ground truth is {size[0]}x{size[1]} (height x width), beyond what "
            "an image can have."
        )
    return size


def _is_id(value: object) -> bool:
    return isinstance(value, str) or is_integer(value)


def _columns(
    rows: Sequence[Mapping], positions: list[dict], sizes: Sequence[tuple[int, int]], iou_type: str, *, predicted: bool
) -> Instances:
    """Return the columns of annotations or, if ``predicted``, results.

    Each check runs over a whole column: row by row they would take most of an evaluation."""

    def check(sound: Iterable[bool], problem: Callable[[int], str]) -> None:
        for number, good in enumerate(sound):
            if not good:
                raise WorkbenchError(f"{row_name(number, rows[number], predicted)}{problem(number)}.")

    check((isinstance(row, dict) for row in rows), lambda i: f" is {kind_of(rows[i])}, not an object")
    columns = []
    for key, position in zip(("image_id", "category_id"), positions, strict=True):
        values = [row.get(key) for row in rows]
        columns.append([position.get(value, -1) if type(value) in (int, str) else -1 for value in values])
        check(
            (place >= 0 for place in columns[-1]),
            lambda i, key=key: f" has the {key} {shown(rows[i].get(key))}, which the ground truth does not list",
        )
    image, category = columns
    scores = [row.get("score") if predicted else 1 for row in rows]
    if not all_numbers(scores):
        check(map(is_number, scores), lambda i: f" has the score {shown(scores[i])}, not a finite number")
    boxes = [row.get("bbox") for row in rows]
    if not all_boxes([box for box in boxes if box is not None]):
        check(
            (box is None or is_box(box) for box in boxes),
            lambda i: f" has the bbox {shown(boxes[i])}, not [x, y, width, height]",
        )
    rles = [row.get("segmentation") for row in rows]
    if iou_type == "bbox":
        rles = [segmentation or None for segmentation in rles]
        check(
            (box is not None or rle is not None for box, rle in zip(boxes, rles, strict=True)),
            lambda i: " has neither a bbox nor a segmentation",
        )
    rles, problems = to_rles(rles, [sizes[i] for i in image])
    check(
        (i not in problems or (iou_type == "bbox" and rles[i] is None) for i in range(len(rles))),
        lambda i: f": {problems[i][1]}",
    )
    # An object's area is the annotation's, as in COCO. A prediction's is measured, whatever the file says.
    areas = [None if predicted else row.get("area") for row in rows]
    areas = [area if is_number(area) else None for area in areas]
    for column, measure in ((boxes, hotcoco.mask.to_bbox), (areas, hotcoco.mask.area)):
        absent = [i for i, value in enumerate(column) if value is None and rles[i] is not None]
        for i, value in zip(absent, measure([rles[i] for i in absent]) if absent else (), strict=True):
            column[i] = value
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    areas = np.array(areas, dtype=np.float64)  # None, of a row with a box alone, becomes NaN
    return Instances(
        image=np.array(image, dtype=np.int64),
        category=np.array(category, dtype=np.int64),
        rles=rles,
        boxes=boxes,
        areas=np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
        scores=np.array(scores, dtype=np.float64),
        crowd=np.array([not predicted and bool(row.get("iscrowd", 0)) for row in rows], dtype=bool),
        rows=list(rows),
    )


def row_name(number: int, row: object, predicted: bool) -> str:
    """Return how a message names row ``number`` of the results, or else of the annotations."""
    key = row.get("image_id") if isinstance(row, Mapping) else None
    place = f" (image {shown(key)})" if key is not None else ""
    if predicted:
        return f"Row {number} of the results{place}"
    name = shown(row["id"]) if isinstance(row, Mapping) and "id" in row else f"number {number}"
    return f"Annotation {name}{place} of the ground truth"
