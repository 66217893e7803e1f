"""One COCO evaluation with either scorer: hotcoco (Rust), or pycocotools, the reference."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from workbench.errors import WorkbenchError

SCORERS = ("hotcoco", "pycocotools")
UNSCORED_AREA = 1e11  # outside COCO's largest size range: such an object counts neither as found nor as missed


@dataclass(frozen=True)
class Task:
    """One detection task in columns: ground truth (g) and detections (d), each with N_g or N_d entries.

    image_*, class_*: int64 positions; rles_*: compressed RLEs (None when boxes are compared); boxes_*: (N, 4) XYWH;
    areas_*: square pixels, ``UNSCORED_AREA`` for an object that counts neither as found nor as missed; crowd: (N_g,)
    bool, COCO's crowd regions; scores: (N_d,). traits_g (N_g, S) and traits_d (N_d, S), int64: a detection may match an
    object only where they agree in every column that is not -1 in traits_g; pycocotools only.
    """

    images: int
    classes: int
    image_g: np.ndarray
    class_g: np.ndarray
    rles_g: Sequence[dict] | None
    boxes_g: np.ndarray
    areas_g: np.ndarray
    crowd: np.ndarray
    image_d: np.ndarray
    class_d: np.ndarray
    rles_d: Sequence[dict] | None
    boxes_d: np.ndarray
    areas_d: np.ndarray
    scores: np.ndarray
    traits_g: np.ndarray | None = None
    traits_d: np.ndarray | None = None

    @property
    def iou_type(self) -> str:
        return "bbox" if self.rles_g is None else "segm"


@dataclass(frozen=True)
class Accumulated:
    """COCO's accumulated arrays; -1 where a class has no ground truth of that size.

    precision, scores: (T, R, K, A, M) for T IoU thresholds 0.5..0.95, R = 101 recalls 0..1, K classes, A size
    ranges (all, small, medium, large), M detection limits; recall: (T, K, A, M).
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    iou_thresholds: np.ndarray
    recall_thresholds: np.ndarray
    max_dets: tuple[int, ...]


def accumulate(task: Task, *, max_dets: Sequence[int], scorer: str = "hotcoco", by_size: bool = True) -> Accumulated:
    """Run ``scorer`` on ``task``, silently. ``by_size=False`` leaves out small, medium and large (A is 1)."""
    if scorer not in SCORERS:
        raise WorkbenchError(f"The scorer {scorer!r} is not one of {', '.join(SCORERS)}.")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = hotcoco_evaluation(task) if scorer == "hotcoco" else _pycocotools_evaluation(task)
        evaluation.params.maxDets = sorted(max_dets)
        if not by_size:
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    arrays = {name: np.asarray(evaluation.eval[name]) for name in ("precision", "recall", "scores")}
    return Accumulated(
        **arrays,
        iou_thresholds=np.asarray(evaluation.params.iouThrs),
        recall_thresholds=np.asarray(evaluation.params.recThrs),
        max_dets=tuple(evaluation.params.maxDets),
    )


def hotcoco_evaluation(task: Task, names: Sequence[str] | None = None) -> hotcoco.COCOeval:
    """``task`` loaded into hotcoco, not yet evaluated. Ids of images, classes, objects and detections are their
    positions + 1; ``names`` are those of the classes."""
    detections = np.column_stack([task.image_d + 1, task.boxes_d, task.scores, task.class_d + 1])
    truth = hotcoco.COCO.from_arrays(
        *_images_and_categories(task, names),
        task.image_g + 1,
        task.class_g + 1,
        task.boxes_g,
        ids=np.arange(1, len(task.image_g) + 1),
        area=task.areas_g,
        iscrowd=task.crowd,
        segmentation=task.rles_g,
    )
    found = truth.load_res(detections, segmentation=task.rles_d)
    # hotcoco, like pycocotools, measures the box where a row has box and mask.
    found.update_anns(ids=np.arange(1, len(task.scores) + 1), area=task.areas_d)
    return hotcoco.COCOeval(truth, found, task.iou_type)


def _images_and_categories(task: Task, names: Sequence[str] | None = None) -> tuple[list[dict], list[dict]]:
    # The masks are RLEs already, so the scorers never use an image's size.
    images = [{"id": i + 1, "height": 1, "width": 1} for i in range(task.images)]
    names = names or [str(k + 1) for k in range(task.classes)]
    return images, [{"id": k + 1, "name": name} for k, name in enumerate(names)]


def _pycocotools_evaluation(task: Task) -> COCOeval:
    images, categories = _images_and_categories(task)
    loaded = []
    for rows in (
        _annotations(task.image_g, task.class_g, task.rles_g, task.boxes_g, task.areas_g, iscrowd=task.crowd),
        _annotations(task.image_d, task.class_d, task.rles_d, task.boxes_d, task.areas_d, score=task.scores),
    ):
        coco = COCO()
        coco.dataset = {"info": {}, "images": images, "categories": categories, "annotations": rows}
        coco.createIndex()
        loaded.append(coco)
    return COCOeval(*loaded, task.iou_type) if task.traits_g is None else _TraitsEvaluation(*loaded, task)


def _annotations(image, kind, rles, boxes, areas, **more: np.ndarray) -> list[dict]:
    """Annotations numbered from 1: pycocotools mistakes the id 0 for "unmatched"."""
    ((key, values),) = more.items()
    rles = [None] * len(image) if rles is None else rles
    columns = (image.tolist(), kind.tolist(), rles, boxes.tolist(), areas.tolist(), values.tolist())
    return [
        {"id": i, "image_id": im + 1, "category_id": k + 1, "segmentation": rle, "bbox": box, "area": area}
        | {"iscrowd": 0, key: value}
        for i, (im, k, rle, box, area, value) in enumerate(zip(*columns, strict=True), start=1)
    ]


class _TraitsEvaluation(COCOeval):
    """pycocotools with an IoU of 0 between a detection and an object whose traits differ."""

    def __init__(self, truth: COCO, found: COCO, task: Task) -> None:
        super().__init__(truth, found, task.iou_type)
        self.task = task

    def computeIoU(self, imgId, catId):  # pycocotools' own name
        ious = super().computeIoU(imgId, catId)
        if not len(ious):
            return ious
        g_rows, d_rows = (
            np.array([row["id"] - 1 for row in rows[imgId, catId]], dtype=np.int64) for rows in (self._gts, self._dts)
        )
        # pycocotools' order: by score, equal scores as listed, cut at the largest limit.
        d_rows = d_rows[np.argsort(-self.task.scores[d_rows], kind="stable")][: self.params.maxDets[-1]]
        wanted = self.task.traits_g[g_rows][None]
        agrees = (wanted == -1) | (wanted == self.task.traits_d[d_rows][:, None])
        return np.where(agrees.all(axis=2), ious, 0.0)
