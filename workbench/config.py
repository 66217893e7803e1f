"""Configuration: detectron2's keys and Mask2Former's published values as defaults, plus the workbench's own.

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
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from workbench.errors import WorkbenchError, is_number, nearest

_MODEL: dict[str, Any] = {
    "META_ARCHITECTURE": "MaskFormer",
    "DEVICE": "auto",  # auto | cpu | cuda | cuda:N | mps
    "WEIGHTS": "",  # a checkpoint directory, .safetensors, or a .pth state dict
    "MASK_ON": True,
    "PIXEL_MEAN": [123.675, 116.28, 103.53],
    "PIXEL_STD": [58.395, 57.12, 57.375],
    # Which subcategories of the dataset get a head: ["all"], a list of names, or [] for none.
    "SUBCATEGORIES": ["all"],
    "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 0},
    "RESNETS": {
        "DEPTH": 50,
        "WEIGHTS": "none",  # none | imagenet | a path
        "NORM": "FrozenBN",
        "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "STEM_TYPE": "basic",
        "STEM_OUT_CHANNELS": 64,
        "STRIDE_IN_1X1": False,
        "RES2_OUT_CHANNELS": 256,
        "NUM_GROUPS": 1,
        "WIDTH_PER_GROUP": 64,
        "RES4_DILATION": 1,
        "RES5_DILATION": 1,
        "RES5_MULTI_GRID": [1, 1, 1],
    },
    "MOBILENET": {
        "WEIGHTS": "none",  # none | imagenet | deeplabv3 | a path
        "TAPS": [3, 6, 10, 15],
        "DILATED": False,
        "NORM": "BN",
    },
    "SMALL_RESNET": {"WIDTHS": [32, 64, 96, 128], "DEPTHS": [1, 1, 1, 1], "NORM": "BN"},
    "SEM_SEG_HEAD": {
        "NAME": "MaskFormerHead",
        "NUM_CLASSES": 0,  # always taken from the dataset
        "IGNORE_VALUE": 255,
        "LOSS_WEIGHT": 1.0,
        "CONVS_DIM": 256,
        "MASK_DIM": 256,
        "NORM": "GN",
        "PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
        "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
        "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
        "COMMON_STRIDE": 4,
        "TRANSFORMER_ENC_LAYERS": 6,
        "TRANSFORMER_DIM_FEEDFORWARD": 1024,
    },
    "MASK_FORMER": {
        "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
        "DEEP_SUPERVISION": True,
        "NO_OBJECT_WEIGHT": 0.1,
        "CLASS_WEIGHT": 2.0,
        "MASK_WEIGHT": 5.0,
        "DICE_WEIGHT": 5.0,
        "SUBCATEGORY_WEIGHT": 1.0,  # loss weight of each subcategory head; 0 switches it off
        "SUBCATEGORY_COST": 1.0,  # matching cost of each subcategory head; 0 switches it off
        # Weight of "no object" in the subcategories' losses; with 0 only queries with an object are taught them.
        "SUBCATEGORY_NO_OBJECT_WEIGHT": 0.0,
        "HIDDEN_DIM": 256,
        "NUM_OBJECT_QUERIES": 100,
        "NHEADS": 8,
        "DROPOUT": 0.0,
        "DIM_FEEDFORWARD": 2048,
        "ENC_LAYERS": 0,
        "DEC_LAYERS": 10,  # nine decoder layers and the prediction of the learnable queries
        "PRE_NORM": False,
        "ENFORCE_INPUT_PROJ": False,
        "SIZE_DIVISIBILITY": 32,
        "TRAIN_NUM_POINTS": 12544,
        "OVERSAMPLE_RATIO": 3.0,
        "IMPORTANCE_SAMPLE_RATIO": 0.75,
        "TEST": {
            "SEMANTIC_ON": False,
            "INSTANCE_ON": True,
            "PANOPTIC_ON": False,
            "OVERLAP_THRESHOLD": 0.8,
            "OBJECT_MASK_THRESHOLD": 0.8,
            "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
        },
    },
}

_DEFAULTS: dict[str, Any] = {
    "VERSION": 2,
    "MODEL": _MODEL,
    "INPUT": {
        "FORMAT": "RGB",
        "DATASET_MAPPER_NAME": "coco_instance_lsj",
        "IMAGE_SIZE": 1024,
        "MIN_SCALE": 0.1,
        "MAX_SCALE": 2.0,
        "RANDOM_FLIP": "horizontal",  # horizontal | vertical | none
        "COLOR_JITTER": False,
        "COLOR_AUG_SSD": False,
        "SIZE_DIVISIBILITY": -1,
        "MIN_SIZE_TRAIN": (800,),
        "MIN_SIZE_TRAIN_SAMPLING": "choice",
        "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800,  # 0 keeps the image's own size
        "MAX_SIZE_TEST": 1333,
        "MASK_FORMAT": "polygon",
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9], "SINGLE_CATEGORY_MAX_AREA": 1.0},
    },
    "DATASETS": {
        "ROOT": "data",  # where the named datasets lie
        "TRAIN": (),
        "VAL": (),  # chooses the best checkpoint and thresholds; where it is empty, TEST does
        "TEST": (),  # reported, and nothing is chosen on it
        "SKIP_FAULTS": False,  # True leaves broken annotations out instead of stopping
        "CROWDS_ARE_OBJECTS": False,  # True reads iscrowd 1 as 0: CVAT marks its brush and SAM masks so
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "CACHE": False,  # True keeps reduced copies of photos larger than ever needed in OUTPUT_DIR/cache
        "FILTER_EMPTY_ANNOTATIONS": True,
        "ASPECT_RATIO_GROUPING": True,
        "SAMPLER_TRAIN": "TrainingSampler",
        "REPEAT_THRESHOLD": 0.0,
    },
    "SOLVER": {
        "OPTIMIZER": "ADAMW",
        "IMS_PER_BATCH": 16,
        "REFERENCE_BATCH_SIZE": 16,  # the batch BASE_LR was chosen for
        "LR_SCALING": "linear",  # linear | sqrt | none
        "BASE_LR": 0.0001,
        "BASE_LR_END": 0.0,
        "BACKBONE_MULTIPLIER": 0.1,
        "MAX_ITER": 368750,
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # WarmupMultiStepLR | WarmupCosineLR | WarmupPolyLR
        "STEPS": (327778, 355092),
        "GAMMA": 0.1,
        "POLY_LR_POWER": 0.9,
        "POLY_LR_CONSTANT_ENDING": 0.0,
        "WARMUP_FACTOR": 1.0,
        "WARMUP_ITERS": 10,
        "WARMUP_METHOD": "linear",  # linear | constant
        "WEIGHT_DECAY": 0.05,
        "WEIGHT_DECAY_NORM": 0.0,
        "WEIGHT_DECAY_EMBED": 0.0,
        "WEIGHT_DECAY_BIAS": None,  # None follows WEIGHT_DECAY
        "BIAS_LR_FACTOR": 1.0,
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 0.01, "NORM_TYPE": 2.0},
        "AMP": {"ENABLED": False, "DTYPE": "bfloat16"},
        "ACCUMULATION_STEPS": 1,
        "EMA_DECAY": 0.0,  # 0 switches the moving average off
        "CHECKPOINT_PERIOD": 5000,
        "REFERENCE_WORLD_SIZE": 0,
    },
    "TEST": {
        "EVAL_PERIOD": 5000,
        "DETECTIONS_PER_IMAGE": 100,
        "MAX_DETS": [1, 10, 100],
        "RANK_BY": "main",  # main | sum | geometric_mean
        "ONE_CLASS_PER_QUERY": False,
        "SCORER": "hotcoco",  # hotcoco | pycocotools
        "EXPECTED_RESULTS": [],
        "AUG": {"ENABLED": False, "MIN_SIZES": (400, 500, 600, 700, 800, 900), "MAX_SIZE": 4000, "FLIP": True},
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "CUDNN_BENCHMARK": False,
    "VIS_PERIOD": 0,
}

# Legal in a published YAML, and without effect here. Setting one away from its default is reported, not hidden.
WITHOUT_EFFECT = (
    *(f"MODEL.RESNETS.{key}" for key in ("STEM", "RES2", "RES5_MULTI_GRID", "NUM_GROUPS", "WIDTH_PER_GROUP")),
    *(f"MODEL.RESNETS.{key}" for key in ("OUT_FEATURES", "STRIDE_IN_1X1")),
    *(f"MODEL.SEM_SEG_HEAD.{key}" for key in ("NUM_CLASSES", "IGNORE_VALUE", "LOSS_WEIGHT")),
    *(f"MODEL.{key}" for key in ("MASK_ON", "MASK_FORMER.ENC_LAYERS", "MASK_FORMER.TEST.")),
    *(f"INPUT.{key}" for key in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MASK_FORMAT", "CROP.", "SIZE_DIVISIBILITY")),
    *(f"DATALOADER.{key}" for key in ("ASPECT_RATIO_GROUPING", "REPEAT_THRESHOLD")),
    *("SOLVER.REFERENCE_WORLD_SIZE", "TEST.EXPECTED_RESULTS", "TEST.AUG.", "VIS_PERIOD"),
)

# Mask2Former's names of mappers stand for one mapper here, which the other INPUT keys describe.
PUBLISHED_MAPPERS = (
    "coco_instance_lsj",
    "coco_panoptic_lsj",
    "mask_former_instance",
    "mask_former_panoptic",
    "mask_former_semantic",
)

NORMS = ("BN", "SyncBN", "FrozenBN", "GN")
CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.MOBILENET.NORM": NORMS,
    "MODEL.RESNETS.NORM": NORMS,
    "MODEL.SMALL_RESNET.NORM": NORMS,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": ("MSDeformAttnPixelDecoder",),
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": ("MultiScaleMaskedTransformerDecoder",),
    "INPUT.FORMAT": ("RGB",),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "SOLVER.OPTIMIZER": ("ADAMW", "SGD", "MUON"),
    "SOLVER.LR_SCALING": ("linear", "sqrt", "none"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
    "TEST.RANK_BY": ("main", "sum", "geometric_mean"),
    "TEST.SCORER": ("hotcoco", "pycocotools"),
}

# Values that configs and checkpoints of earlier versions hold, and what stands for them now.
SUCCESSORS = {("TEST.SCORER", "faster-coco-eval"): "hotcoco"}

_POSITIVE = (
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.REFERENCE_BATCH_SIZE",
    "SOLVER.ACCUMULATION_STEPS",
    "INPUT.IMAGE_SIZE",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    "MODEL.MASK_FORMER.DEC_LAYERS",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS",
    "TEST.DETECTIONS_PER_IMAGE",
)


def get_cfg() -> CfgNode:
    """Return a mutable config that holds every key with its default."""
    return CfgNode(copy.deepcopy(_DEFAULTS))


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
        plain[key] = list(value) if isinstance(value, tuple) else value
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
    """Raise WorkbenchError for a value outside its range, naming the key."""
    if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        raise WorkbenchError(
            "config key MODEL.BACKBONE.NAME is 'D2SwinTransformer': there is no Swin backbone here yet"
        )
    values = flatten(cfg)
    for key, allowed in CHOICES.items():
        if values[key] not in allowed:
            raise WorkbenchError(f"config key {key} is {values[key]!r}; it must be one of {', '.join(allowed)}")
    for key in _POSITIVE:
        if values[key] < 1:
            raise WorkbenchError(f"config key {key} is {values[key]}; it must be at least 1")
    if any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in cfg.TEST.MAX_DETS) or not cfg.TEST.MAX_DETS:
        raise WorkbenchError(f"config key TEST.MAX_DETS is {cfg.TEST.MAX_DETS}; it must list whole numbers above 0")
    if not 0 < cfg.INPUT.MIN_SCALE <= cfg.INPUT.MAX_SCALE:
        raise WorkbenchError(
            f"config keys INPUT.MIN_SCALE {cfg.INPUT.MIN_SCALE} and INPUT.MAX_SCALE {cfg.INPUT.MAX_SCALE}: "
            "0 < MIN_SCALE <= MAX_SCALE is needed"
        )


def changes(cfg: CfgNode, base: CfgNode | None = None) -> dict[str, tuple[Any, Any]]:
    """Return {key: (its value, that of ``base``)} where the two configs differ; ``base`` is the defaults if None."""
    before, after = (flatten(config_to_dict(each)) for each in (base or get_cfg(), cfg))
    return {key: (value, before[key]) for key, value in after.items() if value != before[key]}


def keys_without_effect(cfg: CfgNode) -> list[str]:
    """Return the keys that differ from their default and that nothing here reads (a published YAML may hold some)."""
    published = cfg.INPUT.DATASET_MAPPER_NAME in PUBLISHED_MAPPERS
    unread = (*WITHOUT_EFFECT, *(("INPUT.DATASET_MAPPER_NAME",) if published else ()))
    return [key for key in changes(cfg) if key.startswith(unread)]


def _merge_yaml(cfg: CfgNode, path: Path, including: tuple[Path, ...] = ()) -> None:
    """Set the file's keys in ``cfg``, after those of its ``_BASE_`` (a path relative to the file)."""
    if path.resolve() in including:
        raise WorkbenchError(f"config file {path}: its _BASE_ files include one another in a circle")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        named_by = f" (the _BASE_ of {including[-1]})" if including else ""
        raise WorkbenchError(f"config file {path}{named_by} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        hint = "; a config evaluates no code: write the value out" if "tag:yaml.org,2002:python" in text else ""
        raise WorkbenchError(f"config file {path} is not readable YAML: {text}{hint}") from None
    if not isinstance(values, dict):
        raise WorkbenchError(f"config file {path} holds no keys")
    base = values.pop("_BASE_", None)
    if base is not None:
        _merge_yaml(cfg, path.parent / Path(str(base)).expanduser(), (*including, path.resolve()))
    _merge(cfg, values, str(path))


def _merge(cfg: CfgNode, values: Mapping[str, Any], source: str) -> None:
    for key, value in flatten(values).items():
        if isinstance(value, str) and value[:1] in "([":  # YAML reads (1, 2) as text; yacs reads it as a tuple
            value = _parse_value(value)
        if not key.startswith("MODEL.SWIN."):  # read with a Swin backbone only, which check() refuses
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
    if default is None or value is None and key == "SOLVER.WEIGHT_DECAY_BIAS":
        return value
    if isinstance(default, CfgNode):
        raise WorkbenchError(f"{source}: config key {key} is a group of keys, not a value")
    if isinstance(default, bool) or isinstance(value, bool):
        fits = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float):
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
            with contextlib.suppress(ValueError):
                value = float(value)
        fits = is_number(value)
        value = float(value) if fits else value
    elif isinstance(default, (list, tuple)):
        fits = isinstance(value, (list, tuple))
        value = type(default)(value) if fits else value
    else:
        fits = isinstance(value, type(default))
    if not fits:
        names = {bool: "True or False", float: "a number", int: "a whole number", str: "text"}
        wanted = names.get(type(default), "a list")
        raise WorkbenchError(f"{source}: config key {key} must be {wanted}, not {value!r}")
    return value


def _parse_value(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        lowered = text.lower()
        return lowered == "true" if lowered in ("true", "false") else text
