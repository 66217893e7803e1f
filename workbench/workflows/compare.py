"""Compare the results of two runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from workbench.data.coco import load_data
from workbench.errors import WorkbenchError
from workbench.evaluation.analysis import compare_results
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.results import load_predictions
from workbench.runs.checkpoint import checkpoint_config, load_vocabulary, resolve_checkpoint
from workbench.runs.directory import report_dataset, saved_metrics


def compare_runs(first: str | Path, second: str | Path) -> pd.DataFrame:
    """Compare what two runs predict on the dataset that both report; :func:`compare_results` describes the table.

    Raises:
        WorkbenchError: a run has no current metrics.json and predictions.json, or they report different datasets.
    """
    datasets, results = [], []
    for run in (first, second):
        checkpoint = resolve_checkpoint(run)
        cfg = checkpoint_config(checkpoint, ())
        datasets.append(report_dataset(cfg))
        if datasets[-1] is None or saved_metrics(Path(run), checkpoint, datasets[-1]) is None:
            raise WorkbenchError(f"{run} has no current scores; write them first: workbench eval --ckpt {run}")
        results.append(load_predictions(Path(run) / "predictions.json"))
    if datasets[0] != datasets[1]:
        reports = " and ".join(f"{run} reports {name}" for run, name in zip((first, second), datasets, strict=True))
        raise WorkbenchError(f"{reports}; only runs on one dataset can be compared.")
    truth = ground_truth(load_data(cfg, datasets[:1], load_vocabulary(checkpoint)))
    return compare_results(truth, *results)
