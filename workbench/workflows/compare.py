"""Compare the results of two runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from workbench.data.coco import load_data
from workbench.data.fingerprint import data_fingerprint
from workbench.errors import WorkbenchError
from workbench.evaluation.analysis import compare_results
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.results import load_predictions
from workbench.runs.checkpoint import checkpoint_config, load_vocabulary, resolve_checkpoint
from workbench.runs.directory import report_dataset
from workbench.runs.evaluations import fingerprint, saved_metrics


def compare_runs(first: str | Path, second: str | Path) -> pd.DataFrame:
    """Compare what two runs predict on the dataset that both report; :func:`compare_results` describes the table.

    Raises:
        WorkbenchError: a run has no current metrics.json and predictions.json, or they report different datasets.
    """
    runs = {run: resolve_checkpoint(run) for run in (first, second)}
    configs = {run: checkpoint_config(checkpoint, ()) for run, checkpoint in runs.items()}
    datasets = {run: report_dataset(cfg) for run, cfg in configs.items()}
    if datasets[first] != datasets[second]:
        reports = " and ".join(f"{run} reports {name}" for run, name in datasets.items())
        raise WorkbenchError(f"{reports}; only runs on one dataset can be compared.")
    if datasets[first] is None:
        raise WorkbenchError(f"{first} and {second} name no dataset; only runs on one dataset can be compared.")
    data = load_data(configs[first], [datasets[first]], load_vocabulary(runs[first]))
    content, results = data_fingerprint(data), []
    for run, checkpoint in runs.items():
        if saved_metrics(Path(run), fingerprint(checkpoint, configs[run], content)) is None:
            raise WorkbenchError(
                f"{run} has no current scores on {datasets[run]} as it is now; write them first: workbench eval --ckpt "
                f"{run}"
            )
        results.append(load_predictions(Path(run) / "predictions.json"))
    return compare_results(ground_truth(data), *results)
