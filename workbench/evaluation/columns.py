"""Ground truth and results, checked once and put in the form every metric reads.

Strangers' files leave out `area`, `bbox` and `iscrowd`, use 0 as an annotation id (which both scorers mistake
for "unmatched") and mix three mask encodings. Here that is settled in one place, without touching the
caller's objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import hotcoco
import numpy as np
from pycocotools import mask as coco_mask

from workbench.data.masks import covered_pixels, segmentation_problem, to_rle
from workbench.errors import WorkbenchError, is_number

IOU_TYPES = ("segm", "bbox")


@dataclass(frozen=True)
class Instances:
    """Objects or predictions of a whole dataset, one row each, as parallel columns.

    image: (N,) int64, position of the image in `EvaluationData.image_ids`.
    category: (N,) int64, position of the main category in `EvaluationData.category_ids`.
    rles: N compressed RLEs as pycocotools makes them; None for a row with a box only (`iou_type="bbox"`).
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

    def by_image(self, images: int) -> list[np.ndarray]:
        """Row numbers of each of `images` images, in file order."""
        order = np.argsort(self.image, kind="stable")
        return np.split(order, np.searchsorted(self.image[order], np.arange(1, images)))


@dataclass(frozen=True)
class EvaluationData:
    """What `read_inputs` makes: ground truth and predictions of the same images and main categories."""

    image_ids: tuple
    sizes: tuple[tuple[int, int], ...]
    category_ids: tuple
    category_names: tuple[str, ...]
    objects: Instances
    predictions: Instances

    @cached_property
    def objects_by_image(self) -> list[np.ndarray]:
        return self.objects.by_image(len(self.image_ids))

    @cached_property
    def predictions_by_image(self) -> list[np.ndarray]:
        """Row numbers of each image's predictions, best score first; equal scores stay in file order."""
        groups = self.predictions.by_image(len(self.image_ids))
        return [rows[np.argsort(-self.predictions.scores[rows], kind="stable")] for rows in groups]

    @cached_property
    def _ious(self) -> dict[tuple[int, str], np.ndarray]:
        return {}

    def ious(self, image: int, iou_type: str = "segm") -> np.ndarray:
        """(predictions of the image, best score first, objects of the image) float64 IoU, computed once; against a
        crowd region, COCO's intersection over the prediction's own area."""
        if (image, iou_type) not in self._ious:
            rows = self.predictions_by_image[image], self.objects_by_image[image]
            shapes = [
                [side.rles[i] for i in some] if iou_type == "segm" else side.boxes[some]
                for side, some in zip((self.predictions, self.objects), rows, strict=True)
            ]
            # hotcoco cannot tell an empty list of masks from one of boxes.
            ious = np.zeros([len(some) for some in rows])
            self._ious[image, iou_type] = hotcoco.mask.iou(*shapes, self.objects.crowd[rows[1]]) if ious.size else ious
        return self._ious[image, iou_type]


def read_inputs(gt: Mapping, results: Sequence[Mapping], *, iou_type: str = "segm") -> EvaluationData:
    """Checks a COCO ground truth and a list of COCO results and returns both as columns.

    With `iou_type="bbox"` a result may come without a segmentation and a ground truth without masks.
    WorkbenchError names the image, annotation or result row at fault: an unknown `image_id` or `category_id`,
    a score that is not a finite number, a mask that is damaged or of another size than its image.
    """
    if iou_type not in IOU_TYPES:
        raise WorkbenchError(f"iou_type {iou_type!r} is not one of {', '.join(IOU_TYPES)}.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(gt, Mapping) or not isinstance(gt.get(key), list):
            raise WorkbenchError(f"The ground truth has no list {key!r}, so it is not a COCO instances file.")
    images = _index(gt["images"], "image")
    categories = _index(gt["categories"], "category")
    sizes = tuple(_size(image) for image in images.values())
    names = [str(category.get("name", key)) for key, category in categories.items()]
    twice = {name for name, count in Counter(names).items() if count > 1}
    names = [f"{name} (id {key})" if name in twice else name for name, key in zip(names, categories, strict=True)]
    places = (list(images), sizes, list(categories), iou_type)
    return EvaluationData(
        image_ids=tuple(images),
        sizes=sizes,
        category_ids=tuple(categories),
        category_names=tuple(names),
        objects=_columns(gt["annotations"], *places, predicted=False),
        predictions=_columns(results, *places, predicted=True),
    )


def _index(items: list, kind: str) -> dict:
    found = {}
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or not isinstance(item.get("id"), (int, str)):
            raise WorkbenchError(f"{kind.capitalize()} number {number} of the ground truth has no id.")
        if item["id"] in found:
            raise WorkbenchError(f"The ground truth has two entries for {kind} id {item['id']}.")
        found[item["id"]] = item
    # COCO's scorers go through images by id, which decides the order of equal scores.
    keys = found if any(isinstance(key, str) for key in found) else sorted(found)
    return {key: found[key] for key in keys}


def _size(image: Mapping) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise WorkbenchError(f"Image id {image['id']} of the ground truth has no positive height and width.")
    return height, width


def _columns(
    rows: Sequence[Mapping],
    image_ids: list,
    sizes: tuple[tuple[int, int], ...],
    category_ids: list,
    iou_type: str,
    *,
    predicted: bool,
) -> Instances:
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Sequence):
        raise WorkbenchError(f"The results are {_a(rows)}, not a list of COCO results.")
    image_of = {key: place for place, key in enumerate(image_ids)}
    category_of = {key: place for place, key in enumerate(category_ids)}
    image, category, rles, boxes, areas = [], [], [], [], []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise WorkbenchError(f"{_where(number, row, predicted)} is {_a(row)}, not an object.")
        for key, known in (("image_id", image_of), ("category_id", category_of)):
            if not isinstance(row.get(key), (int, str)) or row[key] not in known:
                raise WorkbenchError(
                    f"{_where(number, row, predicted)} has the {key} {row.get(key)!r}, which the ground "
                    "truth does not list."
                )
        if predicted and not is_number(row.get("score")):
            raise WorkbenchError(
                f"{_where(number, row, predicted)} has the score {row.get('score')!r}, not a finite number."
            )
        place = image_of[row["image_id"]]
        rle, box, area = _shape(number, row, sizes[place], iou_type, predicted)
        image.append(place)
        category.append(category_of[row["category_id"]])
        boxes.append(box)
        areas.append(area)
        rles.append(rle)
    _check_compressed(rows, rles, sizes, image, predicted)
    for column, measure in ((areas, coco_mask.area), (boxes, coco_mask.toBbox)):
        absent = [i for i, value in enumerate(column) if value is None]
        # Many masks a call, as most of a call's cost is its own; pycocotools.mask.area overflows above 255.
        for start in range(0, len(absent), 255):
            part = absent[start : start + 255]
            for i, value in zip(part, measure([rles[i] for i in part]), strict=True):
                column[i] = value
    return Instances(
        image=np.array(image, dtype=np.int64),
        category=np.array(category, dtype=np.int64),
        rles=rles,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        areas=np.array(areas, dtype=np.float64),
        scores=np.array([row["score"] if predicted else 1 for row in rows], dtype=np.float64),
        crowd=np.array([not predicted and bool(row.get("iscrowd", 0)) for row in rows], dtype=bool),
        rows=list(rows),
    )


def _shape(
    number: int, row: Mapping, size: tuple[int, int], iou_type: str, predicted: bool
) -> tuple[dict | None, Sequence[float] | None, float | None]:
    """RLE, box and area; box and area are None where they are to be measured on the mask."""
    segmentation, box, area = row.get("segmentation"), row.get("bbox"), row.get("area")
    if box is not None and (
        not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(is_number, box)) or min(box[2:]) < 0
    ):
        raise WorkbenchError(f"{_where(number, row, predicted)} has the bbox {box!r}, not [x, y, width, height].")
    if segmentation or iou_type == "segm":
        # A prediction's area is measured, never believed; an object's is the annotation's, as in COCO.
        known = None if predicted or not is_number(area) else area
        if _is_compressed(segmentation, size):
            return segmentation, box, known
        problem = segmentation_problem(segmentation, *size)
        if problem:
            raise WorkbenchError(f"{_where(number, row, predicted)}: {problem[1]}.")
        return to_rle(segmentation, *size, checked=True), box, known
    if box is None:
        raise WorkbenchError(f"{_where(number, row, predicted)} has neither a bbox nor a segmentation.")
    return None, box, area if not predicted and is_number(area) else box[2] * box[3]


def _is_compressed(segmentation: object, size: tuple[int, int]) -> bool:
    return (
        isinstance(segmentation, Mapping)
        and isinstance(segmentation.get("counts"), (str, bytes))
        and isinstance(segmentation.get("size"), (list, tuple))
        and tuple(segmentation["size"]) == size
    )


def _check_compressed(
    rows: Sequence[Mapping],
    rles: list[dict | None],
    sizes: tuple[tuple[int, int], ...],
    image: list[int],
    predicted: bool,
) -> None:
    """All compressed masks at once; one at a time they would take most of an evaluation."""
    places = [i for i, rle in enumerate(rles) if rle is not None]
    counts = [rles[i]["counts"] for i in places]
    covered = covered_pixels(counts)
    wanted = np.array([sizes[image[i]][0] * sizes[image[i]][1] for i in places], dtype=np.int64)
    for k in np.flatnonzero(covered != wanted)[:1]:
        number = places[k]
        problem = segmentation_problem(rles[number], *sizes[image[number]])
        raise WorkbenchError(f"{_where(number, rows[number], predicted)}: {problem[1] if problem else 'damaged'}.")


def _where(number: int, row: object, predicted: bool) -> str:
    key = row.get("image_id") if isinstance(row, Mapping) else None
    place = f" (image {key})" if key is not None else ""
    if predicted:
        return f"Row {number} of the results{place}"
    name = row.get("id", f"number {number}") if isinstance(row, Mapping) else f"number {number}"
    return f"Annotation {name}{place} of the ground truth"


def _a(value: object) -> str:
    return {list: "a list", str: "text", dict: "an object", type(None): "null"}.get(type(value), type(value).__name__)
