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
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from workbench.config_keys import EDGE_MAPPERS, JITTER_MAPPERS, KEYS, NAME, NAMED_PARTS, READ_WITH
from workbench.errors import WorkbenchError, all_numbers, is_number, nearest, shown
from workbench.yaml_files import read_yaml

_log = logging.getLogger(__name__)

PUBLISHED_MAPPERS = (*JITTER_MAPPERS, *EDGE_MAPPERS)
PUBLISHED_MODELS = ("MaskFormer", "Mask2Former")

# Channels and the attention heads that share them.
_SHARED = (
    ("MODEL.MASK_FORMER.HIDDEN_DIM", "MODEL.MASK_FORMER.NHEADS"),
    ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS"),
)

# Keys of the schedule, which follow the number of images a step.
_FOLLOWING = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
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


def load_config(path: str | Path | None, overrides: Sequence[str] = (), *, saved: bool = False) -> CfgNode:
    """Read a YAML file over the defaults, then apply detectron2-style overrides.

    A learning rate and a schedule belong to the batch that they were written for: the IMS_PER_BATCH in force in the
    file, or on the command line, that sets them. Where another one is in force in the end, SOLVER.REFERENCE_BATCH_SIZE
    holds that of the learning rate, and the schedule is rescaled here unless LR_SCALING is none. Keys without effect
    are logged.

    Args:
        path: the YAML file, which may name a ``_BASE_`` relative to itself; None for the defaults alone.
        overrides: ``["SOLVER.BASE_LR", "0.001", ...]``: keys and values in turn.
        saved: the file is a run's config.yaml, which sets every key; those without effect are not logged again.

    Returns:
        A frozen config.

    Raises:
        WorkbenchError: unreadable file, unknown key (naming the nearest), wrong type, or value out of range.
    """
    cfg = get_cfg()
    recipe = _Recipe()
    if path is not None:
        if not isinstance(path, Path) and not NAME.fits(path):
            raise WorkbenchError(f"config file {shown(path)}: it must be the path of a YAML file")
        _merge_yaml(cfg, Path(path), recipe)
    recipe.read(cfg, _apply(cfg, overrides))
    check(cfg)
    recipe.rescale(cfg)
    cfg.freeze()
    if not saved and (unread := keys_without_effect(cfg, recipe.keys)):
        _log.warning("config keys without effect here: %s", ", ".join(sorted(unread)))
    return cfg


class _Recipe:
    """The keys that files and the command line set, and the images a step that each was written for."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.images: dict[str, int] = dict.fromkeys(_FOLLOWING, KEYS["SOLVER.IMS_PER_BATCH"].default)

    def read(self, cfg: CfgNode, keys: Sequence[str], *, first: bool = False) -> None:
        """Note which keys a source has set in ``cfg``; the ``first`` file takes the others from the defaults."""
        images = cfg.SOLVER.IMS_PER_BATCH
        if first:
            self.images = dict.fromkeys(_FOLLOWING, images)
        self.images |= {key: images for key in _FOLLOWING if key in keys}
        self.keys |= set(keys)
        if "SOLVER.BASE_LR" in keys and "SOLVER.REFERENCE_BATCH_SIZE" not in self.keys:
            cfg.SOLVER.REFERENCE_BATCH_SIZE = images

    def rescale(self, cfg: CfgNode) -> None:
        """Rescale what was written for another number of images a step."""
        for key, images in self.images.items():
            if images != cfg.SOLVER.IMS_PER_BATCH and cfg.SOLVER.LR_SCALING != "none":
                follow(cfg, images / cfg.SOLVER.IMS_PER_BATCH, [key])


def follow(cfg: CfgNode, factor: float, keys: Sequence[str] = _FOLLOWING) -> None:
    """Multiply a schedule's numbers of steps, as detectron2's ``auto_scale_workers`` does, and log each."""
    for key in keys:
        group, leaf = key.split(".")
        before = cfg[group][leaf]
        several = isinstance(before, (list, tuple))
        scaled = [round(steps * factor) for steps in (before if several else [before])]
        cfg[group][leaf] = type(before)(scaled) if several else scaled[0]
        if cfg[group][leaf] != before:
            _log.info("%s %s × %g = %s", key, before, factor, cfg[group][leaf])


def override(cfg: CfgNode, overrides: Sequence[str]) -> CfgNode:
    """Return a checked and frozen copy of a config with keys and values set; nothing is rescaled."""
    cfg = cfg.clone()
    cfg.defrost()
    _apply(cfg, overrides)
    check(cfg)
    cfg.freeze()
    return cfg


def _apply(cfg: CfgNode, overrides: Sequence[str]) -> list[str]:
    """Set keys and values that follow one another; return the keys."""
    if len(overrides) % 2:
        raise WorkbenchError(f"config overrides come in KEY VALUE pairs; {overrides[-1]!r} has no value")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        _set(cfg, key, _parse_value(text), "the command line")
    return list(overrides[::2])


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
    if len(keys.MIN_SIZE_TRAIN) != 2 and keys.MIN_SIZE_TRAIN_SAMPLING == "range":
        raise WorkbenchError(
            f"config key INPUT.MIN_SIZE_TRAIN is {keys.MIN_SIZE_TRAIN}; with INPUT.MIN_SIZE_TRAIN_SAMPLING range it "
            "must be the least and the greatest edge"
        )
    crop, whole = keys.CROP, keys.CROP.TYPE.startswith("absolute")
    if any(side < 1 if whole else side > 1 for side in crop.SIZE) and crop.ENABLED:
        raise WorkbenchError(
            f"config key INPUT.CROP.SIZE is {crop.SIZE}; with INPUT.CROP.TYPE {crop.TYPE} it must be "
            f"{'pixels, at least 1' if whole else 'shares, at most 1'}"
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
    kinds = cfg.MODEL.MASK_FORMER.TEST
    if not (kinds.INSTANCE_ON or kinds.SEMANTIC_ON or kinds.PANOPTIC_ON):
        raise WorkbenchError(
            "config keys MODEL.MASK_FORMER.TEST.INSTANCE_ON, SEMANTIC_ON and PANOPTIC_ON are False; one must be True"
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


def keys_without_effect(cfg: CfgNode, keys: Iterable[str] | None = None) -> list[str]:
    """Return those of ``keys``, by default all that differ from their default, that nothing reads with this config."""
    return [key for key in (changes(cfg) if keys is None else keys) if KEYS[key].unread or not reads(cfg, key)]


def reads(cfg: CfgNode, name: str) -> bool:
    """Return whether the key ``name`` is read with this config; parts of the user's own may read any."""
    for prefix, key, values in READ_WITH:
        if not name.startswith(prefix):
            continue
        chosen = reduce(getitem, key.split("."), cfg)
        if chosen not in values and (key not in NAMED_PARTS or _is_known(key, chosen)):
            return False
    return name != "MODEL.TIMM.PRETRAINED" or cfg.MODEL.BACKBONE.NAME.startswith("timm/")


def training_size(cfg: CfgNode) -> tuple[str, int]:
    """Return the key that decides the size of training images, and the side in pixels that none exceeds."""
    keys = cfg.INPUT
    if keys.DATASET_MAPPER_NAME not in EDGE_MAPPERS:
        return "INPUT.IMAGE_SIZE", keys.IMAGE_SIZE
    if keys.SIZE_DIVISIBILITY > 0:
        return "INPUT.SIZE_DIVISIBILITY", keys.SIZE_DIVISIBILITY
    if keys.CROP.ENABLED and keys.CROP.TYPE.startswith("absolute"):
        return "INPUT.CROP.SIZE", int(max(keys.CROP.SIZE))
    return "INPUT.MAX_SIZE_TRAIN", keys.MAX_SIZE_TRAIN


def _is_known(key: str, part: str) -> bool:
    return part.startswith("timm/") or any(part in values for _, other, values in READ_WITH if other == key)


def _merge_yaml(cfg: CfgNode, path: Path, recipe: _Recipe, including: tuple[Path, ...] = ()) -> None:
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
        _merge_yaml(cfg, path.parent / Path(base).expanduser(), recipe, (*including, path.resolve()))
    _merge(cfg, values, str(path))
    recipe.read(cfg, list(flatten(values)), first=base is None)


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
        _log.warning("%s: %s %s is gone; %s takes its place", source, key, value, successor)
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
            if set(map(type, default)) == {float} and all_numbers(value):
                value = type(default)(map(float, value))
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
