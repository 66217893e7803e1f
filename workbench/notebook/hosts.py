"""Training in the workbench's own loop or in detectron2's."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fvcore.common.config import CfgNode

from workbench.errors import WorkbenchError
from workbench.runs.checkpoint import has_checkpoint, read_description
from workbench.runs.directory import RunDirectory
from workbench.workflows.train import train as train_here

HOSTS = ("workbench", "detectron2")


def train(cfg: CfgNode, *, host: str = "workbench", resume: bool = True) -> Path:
    """Train what a config describes, or continue the run in its OUTPUT_DIR; return the run directory.

    A finished run is left as it is.

    Args:
        cfg: the workbench's config.
        host: whose loop trains: ``workbench`` or ``detectron2``.
        resume: False refuses an OUTPUT_DIR that holds a run.

    Raises:
        WorkbenchError: an unknown host, or detectron2 is not installed; or as ``workbench.workflows.train.train``.
    """
    if host not in HOSTS:
        raise WorkbenchError(f"host is {host!r}; it must be one of {', '.join(HOSTS)}")
    if host == "workbench":
        return train_here(cfg, resume=resume)
    try:
        train_net = import_module("workbench.detectron2.train_net")
    except ImportError as error:
        raise WorkbenchError(f"host {host!r} cannot be used: {error}") from error
    run = RunDirectory(cfg.OUTPUT_DIR)
    if has_checkpoint(run.last) and not resume:
        raise WorkbenchError(f"OUTPUT_DIR {run.path} holds a run already; resume it, or choose another")
    is_detectron2_run = has_checkpoint(run.last) and (run.path / "last_checkpoint").exists()
    if not (is_detectron2_run and run.scores.exists() and read_description(run.last).step == cfg.SOLVER.MAX_ITER):
        train_net.main(["--resume"], cfg)
    return run.path
