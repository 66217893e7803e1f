"""All numbers of one evaluation: metrics.json, and tables of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.data.reading import collector_paused
from workbench.data.vocabulary import Vocabulary
from workbench.errors import counted
from workbench.evaluation.coco import check_max_dets, scores_of
from workbench.evaluation.columns import read_inputs, things_of
from workbench.evaluation.results import rank_results
from workbench.evaluation.segments import panoptic_scores, semantic_scores
from workbench.evaluation.subcategories import has_subcategories, subcategory_scores
from workbench.files import write_json

if TYPE_CHECKING:
    import pandas as pd

_PER_CATEGORY = {"per_category": "AP", "panoptic_per_category": "PQ", "semantic_per_category": "IoU"}


@collector_paused()  # millions of JSON values, none in a cycle
def evaluate_results(
    gt: Mapping,
    results: Sequence[Mapping],
    vocabulary: Vocabulary,
    *,
    max_dets: Sequence[int] = (1, 10, 100),
    rank_by: str = "main",
    scorer: str = "hotcoco",
    instances: bool = True,
    stats: Mapping | None = None,
) -> dict:
    """Score COCO results, ranked by ``rank_by`` first, against a COCO ground truth.

    ``stats`` are those of ``run_inference``. Results without any mask are scored by their boxes, and "segm" is None.
    Only things (:func:`things_of`) are instances; where there are none, or ``instances`` is False, "segm" and "bbox"
    are None.

    Returns:
        What metrics.json holds: "segm" and "bbox" {AP, AP50, AP75, APs, APm, APl, AR@k and AP@k for each k of
        ``max_dets``}, "per_category" {name: mask AP}, "subcategories" {name: {accuracy, macro_f1, labelled, unmatched,
        AP}}, "joint" {AP, AP50}, "no_object_fraction", "images", "instances" (crowd regions aside), "rank_by",
        "seconds" (inference and scoring). Scores are in percent, None where there is nothing to measure on.
        "subcategories" and "joint" are absent where the vocabulary has no subcategories or the results no attributes.
        Where ``stats`` hold segments there are also "panoptic" and "semantic", and "panoptic_per_category" {name: PQ}
        and "semantic_per_category" {name: IoU}: see :mod:`workbench.evaluation.segments`.

    Raises:
        WorkbenchError: malformed input.
    """
    start = time.perf_counter()
    check_max_dets(max_dets)
    stats = stats or {}
    ranked = rank_results(results, rank_by)
    iou_type = "bbox" if ranked and not any("segmentation" in row for row in ranked) else "segm"
    data = read_inputs(*things_of(gt, ranked), iou_type=iou_type)
    metrics: dict = {"segm": None, "bbox": None, "per_category": {}}
    if instances and data.category_ids:
        how = {"max_dets": max_dets, "scorer": scorer}
        for kind in ("bbox", "segm") if iou_type == "segm" else ("bbox",):
            metrics[kind] = scores_of(data, kind, **how)
            metrics["per_category"] = metrics[kind].pop("per_category")
        if vocabulary.subcategories and has_subcategories(ranked):
            metrics["subcategories"], metrics["joint"] = subcategory_scores(
                data, vocabulary, iou_type=iou_type, scorer=scorer
            )
    score_kind = {"panoptic": panoptic_scores, "semantic": semantic_scores}
    for kind, rows in stats.get("segments", {}).items():
        metrics[kind], metrics[f"{kind}_per_category"] = score_kind[kind](gt, rows, vocabulary)
    return metrics | {
        "no_object_fraction": stats.get("no_object_fraction"),
        "images": len(data.image_ids),
        "instances": int((~data.objects.crowd).sum()),
        "rank_by": rank_by,
        "seconds": stats.get("seconds", 0.0) + time.perf_counter() - start,
    }


def save_metrics(path: str | Path, metrics: Mapping) -> Path:
    """Write metrics as JSON, NaN and infinity as null; the file is complete or absent, never half written."""
    write_json(Path(path), _finite(metrics), indent=2, allow_nan=False)
    return Path(path)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metrics_frames(metrics: Mapping) -> dict[str, pd.DataFrame]:
    """Return metrics as tables: "overall" (rows masks, boxes, joint, panoptic and semantic), "per_category" and, where
    measured, "subcategories". NaN stands for what could not be measured."""
    import pandas as pd  # half a second, which scoring a file does not need

    heads = {"overall": None, "per_category": "category", "subcategories": "subcategory"}
    frames = {
        name: pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis(heads[name])
        for name, rows in _rows(metrics).items()
    }
    if "subcategories" in frames:
        frames["subcategories"] = frames["subcategories"].astype({"labelled": int, "unmatched": int})
    return frames


def _rows(metrics: Mapping) -> dict[str, dict[str, Mapping]]:
    """Return the tables of :func:`metrics_frames` as {table: {row: {column: value}}}."""
    overall = {"masks": metrics.get("segm"), "boxes": metrics.get("bbox"), "joint": metrics.get("joint")}
    overall |= {kind: metrics.get(kind) for kind in ("panoptic", "semantic")}
    per_category: dict[str, dict] = {}
    for key, score in _PER_CATEGORY.items():
        for name, value in metrics.get(key, {}).items():
            per_category.setdefault(name, {})[score] = value
    tables = {
        "overall": {name: scores for name, scores in overall.items() if scores is not None},
        "per_category": per_category,
    }
    return tables | ({"subcategories": metrics["subcategories"]} if metrics.get("subcategories") else {})


def metrics_table(metrics: Mapping) -> str:
    """Return metrics as plain text for a terminal, "-" where nothing could be measured."""
    tables = _rows(metrics)
    # AP@k is for looking into detection limits; beside AP it would fill the line with repetitions.
    overall = tables["overall"]
    segments = [{kind: overall.pop(kind)} for kind in ("panoptic", "semantic") if kind in overall]
    parts = [_text(overall, leave_out="AP@")] if overall else []
    parts += [_text(rows) for rows in segments]
    if "subcategories" in tables:
        parts.append(_text(tables["subcategories"], "subcategory"))
    parts.append(_text(tables["per_category"], "category"))
    images, objects = counted(metrics.get("images", 0), "image"), counted(metrics.get("instances", 0), "object")
    line = f"{images}, {objects}, ranked by {metrics.get('rank_by', '-')}"
    if metrics.get("no_object_fraction") is not None:
        line += f", {100 * metrics['no_object_fraction']:.1f} % of the queries say no object"
    parts.append(f"{line}, {metrics.get('seconds', 0.0):.1f} s")
    return "\n\n".join(parts)


def _text(rows: Mapping[str, Mapping], head: str = "", leave_out: str = " ") -> str:
    """Return aligned columns, scores with one decimal, without the columns whose names start with ``leave_out``."""
    names = [name for name in dict.fromkeys(c for row in rows.values() for c in row) if not name.startswith(leave_out)]
    lines = [[head, *names]]
    for label, row in rows.items():
        values = [row.get(name) for name in names]
        missing = [value is None or math.isnan(value) for value in values]
        cells = [
            str(v) if isinstance(v, int) else "-" if m else f"{v:.1f}" for v, m in zip(values, missing, strict=True)
        ]
        lines.append([str(label), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{line[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{max(width, 6)}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )
