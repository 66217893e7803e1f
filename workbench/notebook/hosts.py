"""Training in the workbench's own loop or in detectron2's."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fvcore.common.config import CfgNode

from workbench.errors import WorkbenchError

HOSTS = {"workbench": "workbench.workflows.train", "detectron2": "workbench.detectron2.train_net"}


def train(cfg: CfgNode, *, host: str = "workbench", resume: bool = True) -> Path:
    """Train what a config describes, or continue the run in its OUTPUT_DIR; return the run directory.

    Args:
        cfg: the workbench's config.
        host: whose loop trains: ``workbench`` or ``detectron2``.
        resume: False refuses an OUTPUT_DIR that holds a run.

    Raises:
        WorkbenchError: an unknown host, or detectron2 is not installed; or as ``workbench.workflows.train.train``.
    """
    if host not in HOSTS:
        raise WorkbenchError(f"host is {host!r}; it must be one of {', '.join(HOSTS)}")
    try:
        module = import_module(HOSTS[host])
    except ImportError as error:
        raise WorkbenchError(f"host {host!r} cannot be used: {error}") from error
    return module.train(cfg, resume=resume)
