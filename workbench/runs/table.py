"""What run directories hold, for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import metrics_table
from workbench.runs.directory import RunDirectory, read_metrics

# The config keys that most often differ between the runs of a study, and their column names.
SHOWN_KEYS = {
    "MODEL.BACKBONE.NAME": "backbone",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "queries",
    "SOLVER.BASE_LR": "lr",
    "SOLVER.IMS_PER_BATCH": "batch",
    "SEED": "seed",
}


def find_runs(roots: Iterable[str | Path]) -> list[Path]:
    """Run directories among ``roots`` and below them, sorted by path."""
    found = set()
    for root in map(Path, roots):
        if not root.is_dir():
            raise WorkbenchError(f"There is no directory {root} to look for runs in.")
        found |= {file.parent for file in root.rglob("config.yaml") if (file.parent / "checkpoints").is_dir()}
    return sorted(found)


def runs_frame(runs: Iterable[str | Path]) -> pd.DataFrame:
    """One row a run: config keys that matter, steps done and wanted, and the key numbers of its metrics.json,
    NaN where there is none yet. A run that cannot be read has its reason under ``problem``."""
    return pd.DataFrame([_row(Path(run)) for run in runs])


def _row(run: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(run)}
    directory = RunDirectory(run)
    try:
        cfg = load_config(directory.config)
        for key, column in SHOWN_KEYS.items():
            value: Any = cfg
            for part in key.split("."):
                value = value[part]
            row[column] = value
        row["backbone"] = row["backbone"].removeprefix("build_").removesuffix("_backbone")
        rows = read_metrics(directory.metrics) if directory.metrics.exists() else []
        row |= {"step": int(rows[-1]["step"]) if rows else 0, "steps": cfg.SOLVER.MAX_ITER}
        if directory.scores.exists():
            row |= _key_numbers(json.loads(directory.scores.read_text(encoding="utf-8")))
    except (WorkbenchError, OSError, ValueError, AttributeError) as error:
        row["problem"] = str(error)
    return row


def _key_numbers(metrics: dict[str, Any]) -> dict[str, float]:
    segm, joint = metrics.get("segm") or {}, metrics.get("joint") or {}
    numbers = {"AP": segm.get("AP"), "AP50": segm.get("AP50"), "joint AP": joint.get("AP")}
    for name, scores in (metrics.get("subcategories") or {}).items():
        numbers[f"{name} accuracy"] = scores.get("accuracy")
    return {name: float("nan") if number is None else float(number) for name, number in numbers.items()}


def describe_run(directory: str | Path) -> str:
    """The metrics table of a run and the paths of what it left behind, as text.

    Raises WorkbenchError when the directory is missing or has no readable metrics.json.
    """
    run = Path(directory)
    scores = run / "metrics.json"
    if not run.is_dir():
        raise WorkbenchError(f"There is no run directory {run}.")
    try:
        metrics = json.loads(scores.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkbenchError(
            f"{run} has no metrics.json; score it first: workbench eval --ckpt {run / 'checkpoints' / 'best'}"
        ) from None
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{scores} cannot be read: {error}") from None
    places = {
        "checkpoint": run / "checkpoints" / "best",
        "scores": scores,
        "figures": run / "figures",
    }
    lines = [metrics_table(metrics), ""]
    lines += [f"{name:<10} {path}" for name, path in places.items() if path.exists()]
    lines += [f"{'notebook':<10} {path}" for path in sorted(run.glob("*.ipynb"))]
    return "\n".join(lines)


def metrics_frame(path: str | Path) -> pd.DataFrame:
    """metrics.csv as numbers, one row a logged step; empty where there is no file yet."""
    path = Path(path)
    rows = read_metrics(path) if path.exists() else []
    return pd.DataFrame(rows).apply(pd.to_numeric, errors="coerce")
