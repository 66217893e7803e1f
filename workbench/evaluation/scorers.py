"""One COCO evaluation with either scorer: hotcoco (Rust), or pycocotools, the reference."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from workbench.errors import WorkbenchError
from workbench.evaluation.columns import EvaluationData, Instances

SCORERS = ("hotcoco", "pycocotools")
UNSCORED_AREA = 1e11  # outside COCO's largest size range: such an object counts neither as found nor as missed


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
    data: EvaluationData, iou_type: str, *, max_dets: Sequence[int], scorer: str = "hotcoco", by_size: bool = True
) -> Accumulated:
    """Run ``scorer`` on ``data``, silently. ``by_size=False`` leaves out small, medium and large (A is 1)."""
    if scorer not in SCORERS:
        raise WorkbenchError(f"The scorer {scorer!r} is not one of {', '.join(SCORERS)}.")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        load = hotcoco_evaluation if scorer == "hotcoco" else _pycocotools_evaluation
        evaluation = load(data, iou_type)
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


def hotcoco_evaluation(data: EvaluationData, iou_type: str) -> hotcoco.COCOeval:
    """Return ``data`` loaded into hotcoco, not yet evaluated. Its ids are positions + 1, of rows too."""
    objects, predictions = data.objects, data.predictions
    detections = [predictions.image + 1, predictions.boxes, predictions.scores, predictions.category + 1]
    truth = hotcoco.COCO.from_arrays(
        *_images_and_categories(data),
        objects.image + 1,
        objects.category + 1,
        objects.boxes,
        ids=np.arange(1, len(objects) + 1),
        area=objects.areas,
        iscrowd=objects.crowd,
        segmentation=objects.rles if iou_type == "segm" else None,
    )
    loaded = truth.load_res(np.column_stack(detections), segmentation=predictions.rles if iou_type == "segm" else None)
    # hotcoco, like pycocotools, measures the box where a row has box and mask.
    loaded.update_anns(ids=np.arange(1, len(predictions) + 1), area=_compared_areas(predictions, iou_type))
    return hotcoco.COCOeval(truth, loaded, iou_type)


def _compared_areas(predictions: Instances, iou_type: str) -> np.ndarray:
    """COCO sorts a prediction into small, medium or large by what is compared: its mask or its box."""
    return predictions.areas if iou_type == "segm" else predictions.boxes[:, 2] * predictions.boxes[:, 3]


def _images_and_categories(data: EvaluationData) -> tuple[list[dict], list[dict]]:
    # The masks are RLEs already, so the scorers never use an image's size.
    images = [{"id": i + 1, "height": 1, "width": 1} for i in range(len(data.image_ids))]
    return images, [{"id": k + 1, "name": name} for k, name in enumerate(data.category_names)]


def _pycocotools_evaluation(data: EvaluationData, iou_type: str) -> COCOeval:
    images, categories = _images_and_categories(data)
    loaded = []
    for side in (data.objects, replace(data.predictions, areas=_compared_areas(data.predictions, iou_type))):
        coco = COCO()
        columns = (side.image + 1, side.category + 1, side.boxes, side.areas, side.scores, side.crowd)
        keys = ("id", "image_id", "category_id", "bbox", "area", "score", "iscrowd", "segmentation")
        # The ids begin at 1: pycocotools mistakes the id 0 for "unmatched".
        rows = zip(range(1, len(side) + 1), *(column.tolist() for column in columns), side.rles, strict=True)
        coco.dataset = {"info": {}, "images": images, "categories": categories}
        coco.dataset["annotations"] = [dict(zip(keys, row, strict=True)) for row in rows]
        coco.createIndex()
        loaded.append(coco)
    return COCOeval(*loaded, iou_type)
