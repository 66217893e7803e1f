"""The contents of run directories as tables and text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.config import flatten, load_config, reads
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import metrics_table
from workbench.runs.directory import (
    SEGMENT_SCORES,
    RunDirectory,
    describe_changes,
    list_evaluations,
    load_metrics,
    read_metrics,
)

# The config keys that most often differ between the runs of a study, and their column names.
SHOWN_KEYS = {
    "MODEL.META_ARCHITECTURE": "model",
    "MODEL.BACKBONE.NAME": "backbone",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "queries",
    "SOLVER.BASE_LR": "lr",
    "SOLVER.IMS_PER_BATCH": "batch",
    "SEED": "seed",
}


def find_runs(roots: Iterable[str | Path]) -> list[Path]:
    """Return the run directories among ``roots`` and below them, sorted by path.

    Raises:
        WorkbenchError: one of the roots is no directory.
    """
    runs = set()
    for root in map(Path, roots):
        if not root.is_dir():
            raise WorkbenchError(f"There is no directory {root} to look for runs in.")
        runs |= {file.parent for file in root.rglob("config.yaml") if is_run(file.parent)}
    return sorted(runs)


def is_run(directory: str | Path) -> bool:
    """Return whether ``directory`` is itself a run, not a folder of runs."""
    return (Path(directory) / "config.yaml").is_file() and (Path(directory) / "checkpoints").is_dir()


def runs_frame(runs: Iterable[str | Path], evaluations: bool = False) -> pd.DataFrame:
    """Return one row a run: :data:`SHOWN_KEYS`, steps done and wanted, and the key numbers of its metrics.json.

    Numbers are NaN where there is no metrics.json yet. Column ``problem`` says why a run cannot be read. With
    ``evaluations`` a run is followed by its other evaluations, and column ``evaluation`` says of what they are.
    """
    rows = []
    for run in map(Path, runs):
        row = _row(run)
        rows.append(row)
        for folder, metrics in list_evaluations(run) if evaluations else ():
            of = {"run": str(folder), "evaluation": describe_changes(metrics)}
            rows.append({**row, **of, **_key_numbers(metrics)})
    return pd.DataFrame(rows)


def _row(run: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(run)}
    directory = RunDirectory(run)
    try:
        cfg = load_config(directory.config, saved=True)
        values = flatten(cfg)
        row |= {column: values[key] if reads(cfg, key) else float("nan") for key, column in SHOWN_KEYS.items()}
        row["backbone"] = row["backbone"].removeprefix("build_").removesuffix("_backbone")
        rows = read_metrics(directory.metrics)
        row |= {"step": int(rows[-1]["step"]) if rows else 0, "steps": cfg.SOLVER.MAX_ITER}
        if directory.scores.exists():
            row |= _key_numbers(load_metrics(run))
    except (WorkbenchError, OSError, ValueError) as error:
        row["problem"] = str(error)
    return row


def _key_numbers(metrics: dict[str, Any]) -> dict[str, float]:
    segm, joint = metrics.get("segm") or {}, metrics.get("joint") or {}
    numbers = {"AP": segm.get("AP"), "AP50": segm.get("AP50"), "joint AP": joint.get("AP")}
    numbers |= {score: metrics[kind].get(score) for kind, score in SEGMENT_SCORES.items() if metrics.get(kind)}
    for name, scores in (metrics.get("subcategories") or {}).items():
        numbers[f"{name} accuracy"] = scores.get("accuracy")
    return {name: float("nan") if number is None else float(number) for name, number in numbers.items()}


def runs_text(frame: pd.DataFrame) -> str:
    """Return the rows of :func:`runs_frame` as text: scores with one decimal, settings as they are written."""

    def score(number: float) -> str:
        return "-" if pd.isna(number) else f"{number:.1f}"

    scores = {name: score for name in frame if name.endswith(("AP", "AP50", "accuracy"))}
    return frame.to_string(index=False, na_rep="-", float_format="{:g}".format, formatters=scores)


def describe_run(directory: str | Path) -> str:
    """Return the metrics table of a run, or of an evaluation in it, and the paths of its results, as text.

    Raises:
        WorkbenchError: the directory is missing or has no readable metrics.json.
    """
    run = RunDirectory(directory)
    if not run.path.is_dir():
        raise WorkbenchError(f"There is no run directory {run.path}.")
    if not run.scores.exists():
        raise WorkbenchError(f"{run.path} has no metrics.json; score it first: workbench eval --ckpt {run.best}")
    metrics = load_metrics(run.path)
    lines = []
    for folder, other in list_evaluations(run.path):
        ap = (other.get("segm") or {}).get("AP")
        lines.append(f"{'evaluation':<10} {folder}: {describe_changes(other)}: AP {'-' if ap is None else f'{ap:.1f}'}")
    places = [("checkpoint", run.best), ("scores", run.scores), ("figures", run.figures)]
    places += [("notebook", path) for path in sorted(run.path.glob("*.ipynb"))]
    lines = [f"{name:<10} {path}" for name, path in places if path.exists()] + lines
    return "\n".join([metrics_table(metrics), "", *lines])


def metrics_frame(path: str | Path) -> pd.DataFrame:
    """Return metrics.csv as numbers, one row a logged step; empty where there is no file yet."""
    return pd.DataFrame(read_metrics(Path(path))).apply(pd.to_numeric, errors="coerce")
