"""All numbers of one evaluation: `metrics.json`, and the tables people read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.coco import check_max_dets, scores_of
from workbench.evaluation.columns import read_inputs
from workbench.evaluation.results import rank_results
from workbench.evaluation.subcategories import has_subcategories, subcategory_scores
from workbench.files import write_json


def evaluate_results(
    gt: Mapping,
    results: Sequence[Mapping],
    vocabulary: Vocabulary,
    *,
    max_dets: Sequence[int] = (1, 10, 100),
    rank_by: str = "main",
    scorer: str = "hotcoco",
    stats: Mapping | None = None,
) -> dict:
    """Scores COCO results against a COCO ground truth and returns what `metrics.json` holds.

    {"segm", "bbox": {AP, AP50, AP75, APs, APm, APl, AR@k and AP@k for each k of max_dets}, "per_category":
    {name: mask AP}, "subcategories": {name: {accuracy, macro_f1, labelled, unmatched, AP}}, "joint": {AP,
    AP50}, "no_object_fraction", "images", "instances" (crowd regions aside), "rank_by", "seconds" (inference
    and scoring)}.

    Percent throughout, no_object_fraction apart; None where there is nothing to measure on. `results` are
    ranked by `rank_by` first. `stats` are those of `run_inference`. "subcategories" and "joint" are absent
    where the vocabulary has no subcategories or the results carry no attributes; results without any mask are
    scored by their boxes, and "segm" is None. WorkbenchError for malformed input.
    """
    start = time.perf_counter()
    check_max_dets(max_dets)
    ranked = rank_results(results, rank_by)
    iou_type = "bbox" if ranked and not any("segmentation" in row for row in ranked) else "segm"
    data = read_inputs(gt, ranked, iou_type=iou_type)
    how = {"max_dets": max_dets, "scorer": scorer}
    segm = scores_of(data, iou_type="segm", **how) if iou_type == "segm" else None
    bbox = scores_of(data, iou_type="bbox", **how)
    per_category = bbox.pop("per_category")
    if segm is not None:
        per_category = segm.pop("per_category")
    metrics: dict = {"segm": segm, "bbox": bbox, "per_category": per_category}
    if vocabulary.subcategories and has_subcategories(ranked):
        metrics["subcategories"], metrics["joint"] = subcategory_scores(
            data, vocabulary, iou_type=iou_type, scorer=scorer
        )
    stats = stats or {}
    return metrics | {
        "no_object_fraction": stats.get("no_object_fraction"),
        "images": len(data.image_ids),
        "instances": int((~data.objects.crowd).sum()),
        "rank_by": rank_by,
        "seconds": stats.get("seconds", 0.0) + time.perf_counter() - start,
    }


def save_metrics(path: str | Path, metrics: Mapping) -> Path:
    """Write metrics as JSON, NaN and infinity as null; complete or not at all, never half."""
    write_json(Path(path), _finite(metrics), indent=2, allow_nan=False)
    return Path(path)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metrics_frames(metrics: Mapping) -> dict[str, pd.DataFrame]:
    """Metrics as tables: "overall" (rows masks, boxes and joint), "per_category" and, where measured,
    "subcategories". NaN stands for what could not be measured."""
    rows = {"masks": metrics.get("segm"), "boxes": metrics.get("bbox"), "joint": metrics.get("joint")}
    overall = pd.DataFrame.from_dict(
        {name: scores for name, scores in rows.items() if scores is not None}, orient="index", dtype=float
    )
    frames = {
        "overall": overall,
        "per_category": pd.DataFrame(
            {"AP": metrics["per_category"]},
            index=pd.Index(metrics["per_category"], name="category"),
            dtype=float,
        ),
    }
    if metrics.get("subcategories"):
        frames["subcategories"] = pd.DataFrame.from_dict(
            metrics["subcategories"], orient="index", dtype=float
        ).rename_axis("subcategory")
    return frames


def metrics_table(metrics: Mapping) -> str:
    """Metrics as plain text for a terminal, "-" where nothing could be measured."""
    frames = metrics_frames(metrics)
    # AP@k is for looking into detection limits; beside AP it would fill the line with repetitions.
    overall = frames["overall"].drop(columns=[c for c in frames["overall"] if c.startswith("AP@")])
    parts = [_text(overall)]
    if "subcategories" in frames:
        parts.append(_text(frames["subcategories"], counts=("labelled", "unmatched")))
    parts.append(_text(frames["per_category"]))
    line = f"{metrics['images']} images, {metrics['instances']} objects, ranked by {metrics['rank_by']}"
    if metrics.get("no_object_fraction") is not None:
        line += f", {100 * metrics['no_object_fraction']:.1f} % of the queries say no object"
    parts.append(f"{line}, {metrics['seconds']:.1f} s")
    return "\n\n".join(parts)


def _text(frame: pd.DataFrame, counts: Sequence[str] = ()) -> str:
    formats = {
        name: (lambda v: "-" if math.isnan(v) else f"{v:.0f}")
        if name in counts
        else (lambda v: "-" if math.isnan(v) else f"{v:.1f}")
        for name in frame
    }
    cells = {name: [formats[name](value) for value in frame[name]] for name in frame}
    head = str(frame.index.name or "")
    first = max(map(len, [head, *map(str, frame.index)]))
    widths = {name: max(len(name), 6, *map(len, values)) if values else len(name) for name, values in cells.items()}
    lines = [head.ljust(first) + "".join(f"  {name:>{widths[name]}}" for name in frame)]
    for i, name in enumerate(frame.index):
        lines.append(f"{name!s:<{first}}" + "".join(f"  {cells[c][i]:>{widths[c]}}" for c in frame))
    return "\n".join(lines)
