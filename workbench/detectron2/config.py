"""The workbench's config keys in detectron2's configs, and back."""

from __future__ import annotations

from functools import reduce

from fvcore.common.config import CfgNode

from workbench.config import config_from_dict, flatten, get_cfg
from workbench.config_keys import KEYS
from workbench.environment.device import choose_device

PREFIX = "workbench_"  # of parts whose name detectron2 has taken


def add_workbench_config(cfg: CfgNode, config: CfgNode | None = None, *, defaults: bool = True) -> None:
    """Add the workbench's keys to a config of detectron2's ``get_cfg()``, in place and before any file is merged.

    Their values are those of ``config``, a workbench config, or else the workbench's defaults; MODEL.DEVICE auto
    becomes cuda or cpu. ``defaults`` False only adds keys that ``cfg`` lacks: files of detectron2's own models rely on
    its defaults.
    """
    for name, value in flatten(config or get_cfg()).items():
        if (name, value) == ("MODEL.DEVICE", "auto"):
            value = choose_device("auto").type
        *parents, leaf = name.split(".")
        node = reduce(lambda node, part: node.setdefault(part, type(cfg)()), parents, cfg)
        if leaf not in node or config is not None or defaults:
            node[leaf] = value


def workbench_config(cfg: CfgNode, *, model: bool = True) -> CfgNode:
    """Return the workbench's frozen config of a detectron2 config: the keys that the workbench knows, checked.

    ``model`` False leaves those of MODEL and SOLVER at their defaults, as detectron2's own models have other values.
    WorkbenchError for a value that its key does not take, or keys that do not fit each other.
    """
    left_out = () if model else ("MODEL.", "SOLVER.")
    values = {name: v for name, v in flatten(cfg).items() if name in KEYS and not name.startswith(left_out)}
    for name in {"MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"} & set(values):
        values[name] = values[name].removeprefix(PREFIX)
    return config_from_dict(values, "the detectron2 config")
