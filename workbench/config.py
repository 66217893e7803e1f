"""Configuration: the keys of :mod:`workbench.config_keys`, read from YAML files and the command line and checked.

A config is an fvcore ``CfgNode``, so YAML files inherit with ``_BASE_`` and a published Mask2Former YAML loads
unchanged. Unlike yacs alone, an unknown key names the nearest known one and a wrong type names the key, the value
and what was expected.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from ast import literal_eval
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from workbench.config_keys import KEYS, NAME, READERS
from workbench.errors import WorkbenchError, is_number, nearest, shown
from workbench.yaml_files import read_yaml

# Mask2Former's names of mappers stand for one mapper here, which the other INPUT keys describe.
PUBLISHED_MAPPERS = (
    "coco_instance_lsj",
    "coco_panoptic_lsj",
    "mask_former_instance",
    "mask_former_panoptic",
    "mask_former_semantic",
)

PUBLISHED_MODELS = ("MaskFormer", "Mask2Former")

# Channels and the attention heads that share them.
_SHARED = (
    ("MODEL.MASK_FORMER.HIDDEN_DIM", "MODEL.MASK_FORMER.NHEADS"),
    ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS"),
)

# Values that configs and checkpoints of earlier versions hold, and what stands for them now.
SUCCESSORS = {("TEST.SCORER", "faster-coco-eval"): "hotcoco"}


def get_cfg() -> CfgNode:
    """Return a mutable config that holds every key with its default."""
    cfg = CfgNode()
    for name, key in KEYS.items():
        *parents, leaf = name.split(".")
        node = cfg
        for part in parents:
            node = node.setdefault(part, CfgNode())
        node[leaf] = copy.deepcopy(key.default)
    return cfg


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file over the defaults, then apply detectron2-style overrides.

    Args:
        path: the YAML file, which may name a ``_BASE_`` relative to itself; None for the defaults alone.
        overrides: ``["SOLVER.BASE_LR", "0.001", ...]``: keys and values in turn.

    Returns:
        A frozen config.

    Raises:
        WorkbenchError: unreadable file, unknown key (naming the nearest), wrong type, or value out of range.
    """
    cfg = get_cfg()
    if path is not None:
        if not isinstance(path, Path) and not NAME.fits(path):
            raise WorkbenchError(f"config file {shown(path)}: it must be the path of a YAML file")
        _merge_yaml(cfg, Path(path))
    return override(cfg, overrides)


def override(cfg: CfgNode, overrides: Sequence[str]) -> CfgNode:
    """Return a checked and frozen copy of a config with keys and values set, as :func:`load_config` does."""
    cfg = cfg.clone()
    cfg.defrost()
    if len(overrides) % 2:
        raise WorkbenchError(f"config overrides come in KEY VALUE pairs; {overrides[-1]!r} has no value")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        _set(cfg, key, _parse_value(text), "the command line")
    check(cfg)
    cfg.freeze()
    return cfg


def flatten(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Return nested mappings as one dict, whose keys are joined by ``separator``; an empty mapping leaves nothing."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            joined.update({f"{key}{separator}{name}": leaf for name, leaf in flatten(value, separator).items()})
        else:
            joined[str(key)] = value
    return joined


def config_to_dict(cfg: CfgNode) -> dict[str, Any]:
    """Return nested dictionaries, lists and scalars, as model.json and config.yaml hold them."""
    plain = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            value = config_to_dict(value)
        plain[key] = list(value) if isinstance(value, (list, tuple)) else value
    return plain


def config_from_dict(values: Mapping[str, Any], source: str = "the saved config") -> CfgNode:
    """Return the frozen config that :func:`config_to_dict` wrote; keys that it lacks take their defaults."""
    cfg = get_cfg()
    _merge(cfg, values, source)
    return override(cfg, ())


def to_yaml(cfg: CfgNode) -> str:
    """Return the whole config as YAML text that :func:`load_config` reads back."""
    return yaml.safe_dump(config_to_dict(cfg), sort_keys=True)


def check(cfg: CfgNode) -> None:
    """Raise WorkbenchError for a value that its key does not take, naming the key, the value and what it takes."""
    for name, value in flatten(cfg).items():
        rule = KEYS[name].rule
        if not rule.fits(value):
            raise WorkbenchError(f"config key {name} is {shown(value)}; it must be {rule.wanted}")
    _check_pairs(cfg)


def _check_pairs(cfg: CfgNode) -> None:
    """Raise WorkbenchError where two keys do not fit each other."""
    keys, solver = cfg.INPUT, cfg.SOLVER
    if keys.MIN_SCALE > keys.MAX_SCALE:
        raise WorkbenchError(
            f"config keys INPUT.MIN_SCALE {keys.MIN_SCALE} and INPUT.MAX_SCALE {keys.MAX_SCALE}: "
            "0 < MIN_SCALE <= MAX_SCALE is needed"
        )
    if solver.OPTIMIZER == "SGD" and solver.NESTEROV and not solver.MOMENTUM:
        raise WorkbenchError("config key SOLVER.NESTEROV is True; SOLVER.MOMENTUM must then be above 0")
    swin = cfg.MODEL.SWIN
    if any(swin.EMBED_DIM * 2**stage % heads for stage, heads in enumerate(swin.NUM_HEADS)):
        raise WorkbenchError(
            f"config keys MODEL.SWIN.EMBED_DIM {swin.EMBED_DIM} and MODEL.SWIN.NUM_HEADS {swin.NUM_HEADS}: the heads "
            "of each stage must divide its channels, EMBED_DIM and then twice those of the stage before"
        )
    widths, depths = cfg.MODEL.SMALL_RESNET.WIDTHS, cfg.MODEL.SMALL_RESNET.DEPTHS
    if len(widths) != len(depths):
        raise WorkbenchError(
            f"config keys MODEL.SMALL_RESNET.WIDTHS {widths} and MODEL.SMALL_RESNET.DEPTHS {depths} are of two lengths"
        )
    if cfg.MODEL.META_ARCHITECTURE == "SOLOv2":
        _check_solov2(cfg.MODEL.SOLOV2)
    if cfg.MODEL.META_ARCHITECTURE not in PUBLISHED_MODELS:
        return
    for channels, heads in _SHARED:
        dim, count = (reduce(getitem, name.split("."), cfg) for name in (channels, heads))
        if dim % count or dim % 4:
            raise WorkbenchError(
                f"config keys {channels} and {heads}: {dim} channels cannot be shared among {count} heads; "
                "the channels must be a multiple of 4 and of the heads"
            )
    encoded = cfg.MODEL.SEM_SEG_HEAD
    missing = set(encoded.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES) - set(encoded.IN_FEATURES)
    if missing:
        raise WorkbenchError(
            "config key MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES names "
            f"{', '.join(sorted(missing))}, which MODEL.SEM_SEG_HEAD.IN_FEATURES {encoded.IN_FEATURES} lacks"
        )


def _check_solov2(keys: CfgNode) -> None:
    group = "MODEL.SOLOV2."
    levels = ("INSTANCE_IN_FEATURES", "FPN_INSTANCE_STRIDES", "FPN_SCALE_RANGES", "NUM_GRIDS")
    if len({len(keys[name]) for name in levels}) > 1:
        lengths = ", ".join(f"{group}{name} has {len(keys[name])}" for name in levels)
        raise WorkbenchError(f"config keys of SOLOv2's levels need a value for each level: {lengths}")
    if keys.NUM_KERNELS != keys.NUM_MASKS:
        raise WorkbenchError(
            f"config keys {group}NUM_KERNELS {keys.NUM_KERNELS} and {group}NUM_MASKS {keys.NUM_MASKS} must be equal: "
            "kernels are 1x1"
        )
    if keys.MASK_IN_FEATURES[0] != "p2" or sorted(keys.MASK_IN_FEATURES) != keys.MASK_IN_FEATURES:
        raise WorkbenchError(
            f"config key {group}MASK_IN_FEATURES is {keys.MASK_IN_FEATURES}; it must begin with p2 and rise"
        )


def changes(cfg: CfgNode, base: CfgNode | None = None) -> dict[str, tuple[Any, Any]]:
    """Return {key: (its value, that of ``base``)} where the two configs differ; ``base`` is the defaults if None."""
    before, after = (flatten(config_to_dict(each)) for each in (base or get_cfg(), cfg))
    return {key: (value, before[key]) for key, value in after.items() if value != before[key]}


def keys_without_effect(cfg: CfgNode) -> list[str]:
    """Return the keys that differ from their default and that nothing here reads (a published YAML may hold some)."""
    published = cfg.INPUT.DATASET_MAPPER_NAME in PUBLISHED_MAPPERS
    unread = {name for name, key in KEYS.items() if key.unread or not reads(cfg, name)}
    unread |= {"INPUT.DATASET_MAPPER_NAME"} if published else set()
    return [key for key in changes(cfg) if key in unread]


def reads(cfg: CfgNode, name: str) -> bool:
    """Return whether the config's model reads the key ``name``; a model of the user's own may read any."""
    model = cfg.MODEL.META_ARCHITECTURE
    if not any(model in models for models in READERS.values()):
        return True
    return all(model in models for prefix, models in READERS.items() if name.startswith(prefix))


def _merge_yaml(cfg: CfgNode, path: Path, including: tuple[Path, ...] = ()) -> None:
    """Set the file's keys in ``cfg``, after those of its ``_BASE_`` (a path relative to the file)."""
    if path.resolve() in including:
        raise WorkbenchError(f"config file {path}: its _BASE_ files include one another in a circle")
    named_by = f" (the _BASE_ of {including[-1]})" if including else ""
    values = read_yaml(path, f"config file {path}{named_by}")
    if not isinstance(values, dict):
        raise WorkbenchError(f"config file {path} holds no keys")
    base = values.pop("_BASE_", None)
    if base is not None:
        if not NAME.fits(base):
            raise WorkbenchError(f"config file {path}: _BASE_ is {shown(base)}; it must be the path of a config file")
        _merge_yaml(cfg, path.parent / Path(base).expanduser(), (*including, path.resolve()))
    _merge(cfg, values, str(path))


def _merge(cfg: CfgNode, values: Mapping[str, Any], source: str) -> None:
    for key, value in flatten(values).items():
        if isinstance(value, str) and value[:1] in "([":  # YAML reads (1, 2) as text; yacs reads it as a tuple
            value = _parse_value(value)
        _set(cfg, key, value, source)


def _set(cfg: CfgNode, key: str, value: Any, source: str) -> None:
    *parents, leaf = key.split(".")
    node = cfg
    for part in parents:
        node = node.get(part) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or leaf not in node:
        raise WorkbenchError(f"{source}: unknown config key {key}{nearest(key.upper(), flatten(get_cfg()), cutoff=0)}")
    value = _coerce(key, value, node[leaf], source)
    successor = SUCCESSORS.get((key, value)) if isinstance(value, str) else None
    if successor is not None:
        logging.getLogger(__name__).warning("%s: %s %s is gone; %s takes its place", source, key, value, successor)
    node[leaf] = value if successor is None else successor


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    if value is None and default is None:
        return value
    if isinstance(default, CfgNode):
        raise WorkbenchError(f"{source}: config key {key} is a group of keys, not a value")
    if isinstance(default, bool) or isinstance(value, bool):
        fits = isinstance(default, bool) and isinstance(value, bool)
    elif default is None or isinstance(default, float):
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
            with contextlib.suppress(ValueError):
                value = float(value)
        fits = is_number(value)
        value = float(value) if fits else value
    elif isinstance(default, (list, tuple)):
        fits = isinstance(value, (list, tuple))
        if fits:  # YAML has no tuples, so that lists within lists stay equal through a file
            value = type(default)(list(each) if isinstance(each, tuple) else each for each in value)
    else:
        fits = isinstance(value, type(default))
    if not fits:
        names = {
            bool: "True or False",
            float: "a number",
            type(None): "a number or None",
            int: "a whole number",
            str: "text",
        }
        wanted = names.get(type(default), "a list")
        raise WorkbenchError(f"{source}: config key {key} must be {wanted}, not {shown(value)}")
    return value


def _parse_value(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        lowered = text.lower()
        return lowered == "true" if lowered in ("true", "false") else text
