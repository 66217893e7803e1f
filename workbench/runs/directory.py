"""The run directory: everything that one training writes.

config.yaml   imports.json   data.json   metrics.csv   log.txt   events.out.tfevents.*
checkpoints/{last,best}   figures/   evaluations/<name>/{metrics,predictions}.json
metrics.json   predictions.json: the best checkpoint on the first of DATASETS.TEST
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from workbench.config import changes, load_config, to_yaml
from workbench.errors import WorkbenchError, errors_as
from workbench.files import write_json, write_text
from workbench.registry import Part, check_parts, imported_parts
from workbench.typed_files import Count, Number, Text, check_type, load_typed, read_json

# Keys that may change between a run and its continuation: they alter no step of the training and not which
# images choose the best checkpoint. DATASETS.VAL is not among them, nor is DATASETS.TEST where it stands in for VAL.
_FREE = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "DATASETS.ROOT", "TEST.")
_FREE += ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "VIS_PERIOD", "CUDNN_BENCHMARK")


class RunDirectory:
    """Paths of a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.imports = self.path / "config.yaml", self.path / "imports.json"
        self.data = self.path / "data.json"
        self.metrics, self.log = self.path / "metrics.csv", self.path / "log.txt"
        self.last, self.best = (self.path / "checkpoints" / n for n in ("last", "best"))
        self.figures, self.evaluations = self.path / "figures", self.path / "evaluations"
        self.scores, self.predictions = self.path / "metrics.json", self.path / "predictions.json"


def open_run(cfg: CfgNode, *, resume: bool, seed: int) -> tuple[RunDirectory, CfgNode]:
    """Make or reopen the run directory at OUTPUT_DIR.

    Args:
        cfg: the wanted config; SEED -1 takes the seed of the run that is continued, or ``seed``.
        resume: whether an existing run may be continued.
        seed: the seed of a new run with SEED -1.

    Returns:
        the directory, and the config with the seed filled in, which is what config.yaml holds.

    Raises:
        WorkbenchError: the directory holds another run, or one that ``resume`` forbids to continue, or is not
            writable.
    """
    run = RunDirectory(cfg.OUTPUT_DIR)
    saved = _saved_config(run)
    other = "choose another OUTPUT_DIR or delete it"
    if saved is not None and not resume:
        raise WorkbenchError(f"OUTPUT_DIR {run.path} holds a run already; resume it, {other}")
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.SEED < 0:
        cfg.SEED = saved.SEED if saved is not None else seed
    cfg.freeze()
    if saved is not None:
        if different := differences(saved, cfg):
            raise WorkbenchError(
                f"OUTPUT_DIR {run.path} holds another run ({'; '.join(different)}); {other}, or continue it with its "
                f"own {run.config.name}"
            )
        if run.imports.exists():
            check_parts(load_typed(list[Part], run.imports, f"run file {run.imports}"), f"the run {run.path}")
    with errors_as(f"OUTPUT_DIR {run.path} cannot be written", OSError):
        for directory in (run.path / "checkpoints", run.figures):
            directory.mkdir(parents=True, exist_ok=True)
        write_text(run.config, to_yaml(cfg))
        if parts := imported_parts():
            write_json(run.imports, [vars(part) for part in parts], indent=1)
    return run, cfg


def _saved_config(run: RunDirectory) -> CfgNode | None:
    """Return the config of a run that has begun, None for one that has not.

    A start that failed before the first step leaves a config.yaml that binds nobody. A config.yaml that was deleted is
    that of a checkpoint.
    """
    from workbench.runs.checkpoint import has_checkpoint, saved_config  # torch takes seconds; tables do without

    if has_checkpoint(run.path):
        return load_config(run.config, saved=True) if run.config.exists() else saved_config(run.path)
    if not read_metrics(run.metrics):
        return None
    if not run.config.exists():
        raise WorkbenchError(
            f"OUTPUT_DIR {run.path} holds a run without its config.yaml and without a checkpoint, which cannot go on; "
            "choose another OUTPUT_DIR or delete it"
        )
    return load_config(run.config, saved=True)


def run_of(checkpoint: Path) -> Path:
    """Return the run directory that a checkpoint lies in, or else the checkpoint's own directory."""
    run = checkpoint.resolve().parent.parent
    return run if (run / "config.yaml").is_file() else checkpoint


def report_dataset(cfg: CfgNode) -> str | None:
    """Return the dataset of a run's reported scores: the first of DATASETS.TEST, or else of DATASETS.VAL."""
    return (*cfg.DATASETS.TEST[:1], *cfg.DATASETS.VAL[:1], None)[0]


def selection_dataset(cfg: CfgNode) -> str | None:
    """Return the dataset that checkpoints, thresholds and anything else are chosen on.

    It is the first of DATASETS.VAL, or of DATASETS.TEST where VAL is empty; the reported scores of what was chosen
    are then flattering.
    """
    return (*cfg.DATASETS.VAL[:1], *cfg.DATASETS.TEST[:1], None)[0]


def differences(saved: CfgNode, wanted: CfgNode) -> list[str]:
    """Return the keys that would change the training, with their saved and their wanted values."""
    free = (*_FREE, "DATASETS.TEST") if saved.DATASETS.VAL else _FREE
    return [
        f"{key} is {there!r} there and {here!r} here"
        for key, (here, there) in sorted(changes(wanted, saved).items())
        if not any(key == k or k.endswith(".") and key.startswith(k) for k in free)
    ]


_Scores = dict[Text, Number | None]
SEGMENT_SCORES = {"panoptic": "PQ", "semantic": "mIoU"}
"""The main score of each kind of predictions beside instances in metrics.json."""


@dataclass(frozen=True)
class _EvaluationRecord:
    """What :func:`workbench.runs.evaluations.save_evaluation` adds: what was evaluated, and the fingerprint of it.

    Paths may hold bytes that are no text.
    """

    dataset: Any
    changed: dict[Text, Any]
    fingerprint: dict[Text, Any]
    predictions: Text | None = None


@dataclass(frozen=True)
class _Metrics:
    """What metrics.json holds: :func:`workbench.evaluation.evaluate.evaluate_results`, and of what.

    A notebook of the user's, and so a sweep, may write some of it only.
    """

    segm: _Scores | None = None
    bbox: _Scores | None = None
    per_category: _Scores = field(default_factory=dict)
    images: Count = 0
    instances: Count = 0
    rank_by: Text = "main"
    seconds: Number = 0.0
    subcategories: dict[Text, _Scores] = field(default_factory=dict)
    joint: _Scores | None = None
    panoptic: _Scores | None = None
    semantic: _Scores | None = None
    panoptic_per_category: _Scores = field(default_factory=dict)
    semantic_per_category: _Scores = field(default_factory=dict)
    no_object_fraction: Number | None = None
    dataset: str | None = None
    checkpoint: Any = ""
    evaluation: _EvaluationRecord | None = None


def load_metrics(directory: Path) -> dict[str, Any]:
    """Return the metrics.json of a directory; WorkbenchError where it is absent or garbled."""
    path = directory / "metrics.json"
    content = read_json(path, str(path))
    check_type(_Metrics, content, str(path))
    return content


def read_metrics_json(directory: Path) -> dict[str, Any] | None:
    """Return the metrics.json of a directory, None where there is none that can be read."""
    try:
        return load_metrics(directory)
    except WorkbenchError:
        return None


def list_evaluations(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the folders below ``evaluations/`` of a run and their metrics, sorted by path."""
    folders = sorted(path.parent for path in (run / "evaluations").glob("*/metrics.json"))
    return [(folder, metrics) for folder in folders if (metrics := read_metrics_json(folder)) is not None]


def describe_changes(metrics: Mapping[str, Any]) -> str:
    """Return what an evaluation was of, in words: dataset, checkpoint and changed keys."""
    record = metrics.get("evaluation") or {}
    changed = [f"{key} {value}" for key, value in (record.get("changed") or {}).items()]
    checkpoint = Path(str(metrics.get("checkpoint", ""))).name
    return ", ".join([str(metrics.get("dataset")), f"checkpoint {checkpoint}", *changed])


class MetricsTable:
    """metrics.csv: one row a logged step, flushed at once; numbers read back exactly.

    Reopening drops rows after ``step`` (the checkpoint's), which the continued run writes again, and a row that a
    kill cut off. A new column (of the first evaluation) rewrites the file with the longer header.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self._rewrite([row for row in read_metrics(path) if int(row["step"]) <= step])

    def write(self, row: Mapping[str, Any]) -> None:
        """Append ``row``, whose keys are columns and include ``step``; OSError where the disk is full."""
        if row.keys() - set(self._writer.fieldnames):
            self.close()
            self._rewrite([*read_metrics(self.path), row])
        else:
            self._writer.writerow(row)
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, rows: list[Mapping[str, Any]]) -> None:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if columns:
            writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv as text, without a last row that has no line end; none without a file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [row for row in csv.DictReader(lines) if (row.get("step") or "").isdigit()]
