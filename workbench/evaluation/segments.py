"""Panoptic and semantic predictions: as rows of COCO results, and their scores.

The ground truth is the annotations of a COCO file, one for each segment. Where they overlap, as objects of an instances
file may, the smaller is on top. Pixels of no annotation are unlabelled: neither score counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco.panoptic import PanopticEval
from hotcoco.semantic import SemanticEval
from pycocotools import mask as coco_mask

from workbench.data.masks import encode_labels, mask_areas, paint_labels, to_rles
from workbench.data.segments import read_label_map
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.evaluation.results import rounded

_GROUPS = {"": "All", "_th": "Things", "_st": "Stuff"}


def segment_rows(predictions: Mapping[str, Any], image_id: int | str, vocabulary: Vocabulary) -> dict[str, list[dict]]:
    """Return one image's ``panoptic`` and ``semantic`` predictions, as far as there are, as rows of COCO results.

    A row is a segment with its ``score``, or a category with all its pixels.
    """
    ids, rows = vocabulary.category_ids, {}
    if "panoptic" in predictions:
        segments, infos = predictions["panoptic"]
        rles = encode_labels(segments.cpu().numpy())
        scores = rounded(np.array([info["score"] for info in infos], dtype=np.float64))
        rows["panoptic"] = [
            _row(image_id, ids[info["category"]], rles[info["id"]]) | {"score": score}
            for info, score in zip(infos, scores, strict=True)
        ]
    if "semantic" in predictions:
        rles = encode_labels(predictions["semantic"].cpu().numpy())
        rows["semantic"] = [_row(image_id, ids[label], rle) for label, rle in rles.items()]
    return rows


def _row(image_id: int | str, category_id: int, rle: dict) -> dict:
    box = coco_mask.toBbox(rle).tolist()
    return {"image_id": image_id, "category_id": category_id, "segmentation": rle, "bbox": box}


def panoptic_scores(gt: Mapping, rows: Sequence[Mapping], vocabulary: Vocabulary) -> tuple[dict, dict]:
    """Return ({PQ, SQ, RQ, and these with _th for things and _st for stuff}, {category: PQ}).

    Scores are in percent, None where there is nothing to measure on (Kirillov et al., 2019, "Panoptic Segmentation").

    Args:
        gt: a COCO ground truth, as :func:`~workbench.evaluation.ground_truth.ground_truth` returns it.
        rows: of :func:`segment_rows`.
        vocabulary: the categories, and which are stuff.
    """
    categories = [
        {"id": number, "name": name, "isthing": int(name not in vocabulary.stuff)}
        for number, name in zip(vocabulary.category_ids, vocabulary.categories, strict=True)
    ]
    images = [{key: image[key] for key in ("id", "height", "width")} for image in gt["images"]]
    sides = [
        {
            "images": images,
            "categories": categories,
            "annotations": [
                {key: row[key] for key in ("image_id", "category_id", "segmentation")}
                | {"id": number, "iscrowd": row.get("iscrowd", 0)}
                for number, row in enumerate(each, start=1)
            ],
        }
        for each in (_largest_first(gt), rows)
    ]
    evaluation = PanopticEval(*sides)
    evaluation.evaluate()
    results = evaluation.results()
    scores = {
        f"{name}{suffix}": _percent(results[group][name.lower()])
        for suffix, group in _GROUPS.items()
        for name in ("PQ", "SQ", "RQ")
    }
    per_category = results["per_class"]
    return scores, {each["name"]: _percent(per_category[each["id"]]["pq"]) for each in categories}


def semantic_scores(gt: Mapping, rows: Sequence[Mapping], vocabulary: Vocabulary) -> tuple[dict, dict]:
    """Return ({mIoU, fwIoU, mAcc, aAcc}, {category: IoU}) in percent, None where there is nothing to measure on.

    Arguments are those of :func:`panoptic_scores`. An image whose ``label_map`` names a file is compared with that.

    Raises:
        WorkbenchError: a label map cannot be read, or has another size than its image.
    """
    labels = {number: label for label, number in enumerate(vocabulary.category_ids)}
    evaluation = SemanticEval(list(vocabulary.categories), ignore_index=len(labels))
    sides = _by_image(_largest_first(gt)), _by_image(rows)
    for image in gt["images"]:
        truth, predicted = (
            paint_labels(
                [row["segmentation"] for row in side.get(image["id"], ())],
                [labels[row["category_id"]] for row in side.get(image["id"], ())],
                np.full((image["height"], image["width"]), len(labels), dtype=np.int32),
            )
            for side in sides
        )
        file = image.get("label_map")
        if file is not None and Path(file).is_file():
            truth = read_label_map(Path(file)).astype(np.int32).clip(max=len(labels))
            if truth.shape != predicted.shape:
                raise WorkbenchError(
                    f"The label map {file} is {truth.shape[1]}x{truth.shape[0]} and its image "
                    f"{image['width']}x{image['height']} (width x height)."
                )
        evaluation.update(truth, predicted)
    results = evaluation.results()
    scores = {name: _percent(results[name]) for name in ("mIoU", "fwIoU", "mAcc", "aAcc")}
    return scores, {each["name"]: _percent(each["IoU"]) for each in results["per_class"]}


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)


def _largest_first(gt: Mapping) -> list[dict]:
    """Return the annotations with compressed RLEs, the largest first, so that painting leaves small ones on top."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in gt["images"]}
    annotations = gt["annotations"]
    rles, _ = to_rles([each["segmentation"] for each in annotations], [sizes[each["image_id"]] for each in annotations])
    for rle in rles:
        if isinstance(rle["counts"], bytes):
            rle["counts"] = rle["counts"].decode("ascii")
    order = np.argsort(-mask_areas(rles), kind="stable")
    return [{**annotations[i], "segmentation": rles[i]} for i in order.tolist()]


def _by_image(rows: Sequence[Mapping]) -> dict[int | str, list[Mapping]]:
    images: dict[int | str, list[Mapping]] = {}
    for row in rows:
        images.setdefault(row["image_id"], []).append(row)
    return images
