"""Evaluations: what each one was of, where its results go, and which of them are current.

The best checkpoint of a run, under its own config on the run's first of DATASETS.TEST, writes metrics.json and
predictions.json of the run. Every other evaluation has a folder of its own, ``evaluations/<name>``. In each
metrics.json ``evaluation`` says what was evaluated, and a fingerprint tells whether that has changed since.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from workbench.config import changes, config_to_dict, flatten
from workbench.data.catalog import get_entry
from workbench.data.fingerprint import digest
from workbench.errors import WorkbenchError, errors_as
from workbench.evaluation.evaluate import save_metrics
from workbench.evaluation.results import save_predictions
from workbench.runs.checkpoint import DESCRIPTION, checkpoint_config, resolve_checkpoint, weights_digest
from workbench.runs.directory import load_metrics, read_metrics_json, report_dataset, run_of, selection_dataset

# What changes the results of a checkpoint on a dataset, beside its weights.
_SETTINGS = ("MODEL.", "INPUT.", "TEST.", "SOLVER.AMP.", "DATASETS.SKIP_FAULTS", "DATASETS.CROWDS_ARE_OBJECTS")
_NO_SETTINGS = ("MODEL.DEVICE", "MODEL.WEIGHTS", "TEST.EVAL_PERIOD")


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation is of.

    ``dataset`` is a catalog name or a path, None for the checkpoint's own; ``overrides`` are config keys and values
    in turn, over the checkpoint's config.
    """

    checkpoint: Path
    dataset: str | Path | None = None
    overrides: Sequence[str] = field(default_factory=tuple)

    @property
    def config(self) -> CfgNode:
        return checkpoint_config(self.checkpoint, self.overrides)


def find_evaluated(
    ckpt: str | Path, dataset: str | Path | None = None, overrides: Sequence[Any] = ()
) -> tuple[Evaluated, Path | None]:
    """Return what ``ckpt`` names, and where that lies if it is an evaluation.

    Args:
        ckpt: a checkpoint directory, a run (its best), or the folder of an evaluation, which stands for its
            checkpoint, dataset and overrides.
        dataset: catalog name or path, instead of the evaluation's.
        overrides: config keys and values in turn, over those of the evaluation.

    Raises:
        WorkbenchError: it is none of them.
    """
    folder, overrides = Path(ckpt), [*map(str, overrides)]
    itself = (folder / "checkpoints").is_dir() or (folder / DESCRIPTION).is_file()  # it may hold its own results
    metrics = load_metrics(folder) if not itself and (folder / "metrics.json").exists() else {}
    record = metrics.get("evaluation")
    if record is None:
        return Evaluated(resolve_checkpoint(ckpt), dataset, overrides), None
    # An evaluation in its run names the checkpoint of that run, wherever both were moved.
    run, checkpoint = folder.resolve().parent.parent, Path(str(metrics.get("checkpoint", "")))
    inside = run / "checkpoints" / checkpoint.name
    kept = [part for key, value in record["changed"].items() for part in (key, str(value))]
    of = dataset or str(record["dataset"])
    checkpoint = resolve_checkpoint(inside if inside.is_dir() else checkpoint)
    same = dataset is None and not overrides
    return Evaluated(checkpoint, of, [*kept, *overrides]), folder if same else None


def evaluation_directory(evaluated: Evaluated) -> Path:
    """Return where the results of an evaluation belong: its checkpoint's run, or ``evaluations/<name>`` in it.

    The run itself is for its best checkpoint, unchanged, on :func:`report_dataset`. The name of any other evaluation
    is made of the dataset, the checkpoint if that is not the best, and a few digits that differ for other settings
    and for another file of the same name.
    """
    run, own = run_of(evaluated.checkpoint), checkpoint_config(evaluated.checkpoint, ())
    reported, changed = report_dataset(own), _changed(evaluated)
    dataset = str(evaluated.dataset or reported)
    kind = evaluated.checkpoint.resolve().name.removesuffix(".old")
    is_best = kind == "best" or run == evaluated.checkpoint  # a checkpoint outside a run is its own best
    if is_best and not changed and dataset == str(reported):
        return run
    parts = [get_entry(dataset, evaluated.config.DATASETS.ROOT).name, *([] if is_best else [kind])]
    is_own = dataset in map(str, (reported, selection_dataset(own)))
    place = None if is_own or not _is_path(dataset) else os.path.abspath(dataset)
    if changed or place:
        parts.append(digest([changed, place])[:8])
    return run / "evaluations" / "_".join(parts)


def check_output(directory: Path, evaluated: Evaluated) -> None:
    """Raise WorkbenchError where ``directory`` is a run whose own scores this evaluation would replace."""
    if (directory / "checkpoints").is_dir() and directory.resolve() != evaluation_directory(evaluated).resolve():
        raise WorkbenchError(
            f"{directory} is a run, whose own scores are those of its best checkpoint under its own config; leave "
            f"the output out, and the results go to {evaluation_directory(evaluated)}"
        )


def _changed(evaluated: Evaluated) -> dict[str, Any]:
    """Return the settings, and DATASETS.ROOT, that differ from the checkpoint's own config."""
    different = changes(evaluated.config, checkpoint_config(evaluated.checkpoint, ()))
    return {key: value for key, (value, _) in different.items() if _is_setting(key) or key == "DATASETS.ROOT"}


def _is_path(dataset: str) -> bool:
    return dataset.rpartition("@")[0].endswith(".json") or dataset.endswith(".json")


def _is_setting(key: str) -> bool:
    return key.startswith(_SETTINGS) and key not in _NO_SETTINGS


def fingerprint(checkpoint: Path, cfg: CfgNode, data: Mapping[str, Any], weights: str | None = None) -> dict[str, Any]:
    """Return what the results of a checkpoint depend on: weights, settings, and ``data``, a dataset's fingerprint.

    ``weights`` is the digest of those that were used, where the checkpoint may have been replaced since.
    """
    settings = {key: value for key, value in flatten(config_to_dict(cfg)).items() if _is_setting(key)}
    return {"weights": weights or weights_digest(checkpoint), "settings": digest(settings), **data}


def saved_metrics(directory: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the metrics.json of a directory if it and predictions.json have the fingerprint ``wanted``, else None."""
    metrics = read_metrics_json(directory)
    record = (metrics or {}).get("evaluation")
    if record is None or record["fingerprint"] != wanted:
        return None
    return metrics if record.get("predictions") == _file_digest(directory / "predictions.json") else None


def save_evaluation(
    directory: Path,
    evaluated: Evaluated,
    metrics: Mapping[str, Any],
    results: Sequence[Mapping],
    wanted: Mapping[str, Any],
) -> dict[str, Any]:
    """Write predictions.json and then metrics.json, each whole or not at all; ``wanted`` is the :func:`fingerprint`.

    Returns:
        what metrics.json holds.

    Raises:
        WorkbenchError: the disk is full or not writable.
    """
    dataset = str(evaluated.dataset)
    record = {
        "dataset": os.path.abspath(dataset) if _is_path(dataset) else dataset,
        "changed": _changed(evaluated),
        "fingerprint": wanted,
    }
    with errors_as(f"the results cannot be saved in {directory}", OSError):
        record["predictions"] = _file_digest(save_predictions(directory / "predictions.json", results))
        own = {"checkpoint": str(evaluated.checkpoint), "evaluation": record}
        save_metrics(directory / "metrics.json", {**metrics, **own})
    return {**metrics, **own}


def _file_digest(path: Path) -> str | None:
    try:
        return f"{zlib.crc32(path.read_bytes()):08x}"
    except OSError:
        return None
