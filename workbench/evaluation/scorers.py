"""One COCO evaluation with either scorer: faster-coco-eval (C++) or pycocotools (the reference).

Both classes share their interface, so one small subclass serves for what the subcategory metrics need on top
of COCO: pairs that may not match, and ground truth that is not scored.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from workbench.errors import WorkbenchError

SCORERS = ("faster-coco-eval", "pycocotools")


@dataclass(frozen=True)
class Task:
    """One detection task in columns: ground truth (g) and detections (d), each with N_g or N_d entries.

    image_*, class_*: int64 positions; rles_*: RLEs (None when boxes are compared); boxes_*: (N, 4) XYWH;
    areas_*; crowd: (N_g,) bool, COCO's crowd regions; unscored: (N_g,) bool, objects that count neither as
    found nor as missed; scores: (N_d,). traits_g (N_g, S) and traits_d (N_d, S), int64: a detection may match
    an object only where they agree in every column that is not -1 in traits_g.
    """

    images: int
    classes: int
    image_g: np.ndarray
    class_g: np.ndarray
    rles_g: Sequence[dict] | None
    boxes_g: np.ndarray
    areas_g: np.ndarray
    crowd: np.ndarray
    unscored: np.ndarray
    image_d: np.ndarray
    class_d: np.ndarray
    rles_d: Sequence[dict] | None
    boxes_d: np.ndarray
    areas_d: np.ndarray
    scores: np.ndarray
    traits_g: np.ndarray | None = None
    traits_d: np.ndarray | None = None


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


def accumulate(
    task: Task, *, max_dets: Sequence[int], scorer: str = "faster-coco-eval", by_size: bool = True
) -> Accumulated:
    """Runs `scorer` on `task`, silently. `by_size=False` leaves out small, medium and large (A is 1)."""
    library, evaluator = _library(scorer)
    iou_type = "bbox" if task.rles_g is None else "segm"
    height_width = {"height": 1, "width": 1}  # the masks are RLEs already, so the scorers never use the size
    images = [{"id": i + 1, **height_width} for i in range(task.images)]
    categories = [{"id": i + 1, "name": str(i + 1)} for i in range(task.classes)]
    truth = _annotations(task.image_g, task.class_g, task.rles_g, task.boxes_g, task.areas_g)
    for row, crowd, unscored in zip(truth, task.crowd.tolist(), task.unscored.tolist(), strict=True):
        row["iscrowd"], row["unscored"] = int(crowd), unscored
    found = _annotations(task.image_d, task.class_d, task.rles_d, task.boxes_d, task.areas_d)
    for row, score in zip(found, task.scores.tolist(), strict=True):
        row["iscrowd"], row["score"] = 0, score

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        indexed = []
        for rows in (truth, found):
            coco = library()
            coco.dataset = {"info": {}, "images": images, "categories": categories, "annotations": rows}
            coco.createIndex()
            indexed.append(coco)
        evaluation = evaluator(*indexed, iouType=iou_type)
        evaluation.task = task
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


def _annotations(image, kind, rles, boxes, areas) -> list[dict]:
    """Annotations numbered from 1: both scorers mistake the id 0 for "unmatched"."""
    rles = [None] * len(image) if rles is None else rles
    columns = zip(image.tolist(), kind.tolist(), rles, boxes.tolist(), areas.tolist(), strict=True)
    return [
        {"id": i, "image_id": im + 1, "category_id": k + 1, "segmentation": rle, "bbox": box, "area": area}
        for i, (im, k, rle, box, area) in enumerate(columns, start=1)
    ]


@cache
def _library(scorer: str) -> tuple[type, type]:
    if scorer == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    elif scorer == "faster-coco-eval":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        raise WorkbenchError(f"The scorer {scorer!r} is not one of {', '.join(SCORERS)}.")

    class Evaluator(COCOeval):
        task: Task

        def _prepare(self):
            super()._prepare()
            for row in self.cocoGt.anns.values():
                if row["unscored"]:
                    row["ignore"] = 1
            self._g_rows, self._d_rows = defaultdict(list), defaultdict(list)
            if self.task.traits_g is not None:
                for rows, anns in ((self._g_rows, self.cocoGt.anns), (self._d_rows, self.cocoDt.anns)):
                    for row in anns.values():
                        rows[row["image_id"], row["category_id"]].append(row["id"] - 1)

        def computeIoU(self, imgId, catId):  # the scorers' own name
            ious = super().computeIoU(imgId, catId)
            if self.task.traits_g is None or not len(ious):
                return ious
            g_rows, d_rows = np.array(self._g_rows[imgId, catId]), np.array(self._d_rows[imgId, catId])
            # The scorers' order: by score, equal scores as listed, cut at the largest limit.
            d_rows = d_rows[np.argsort(-self.task.scores[d_rows], kind="stable")][: self.params.maxDets[-1]]
            wanted = self.task.traits_g[g_rows][None]
            agrees = (wanted == -1) | (wanted == self.task.traits_d[d_rows][:, None])
            return np.where(agrees.all(axis=2), ious, 0.0)

    return COCO, Evaluator
