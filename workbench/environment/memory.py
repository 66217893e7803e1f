"""What a config needs at the least is compared with the machine's memory before anything is allocated."""

from __future__ import annotations

import psutil
import torch
from fvcore.common.config import CfgNode

from workbench.config import PUBLISHED_MODELS, reads, training_size
from workbench.environment.system import read_text
from workbench.errors import WorkbenchError


def total_memory() -> int:
    """Return the bytes of memory that this process may use: in a container fewer than the machine has."""
    total = psutil.virtual_memory().total
    limit = read_text("/sys/fs/cgroup/memory.max").strip()  # cgroup v2; "max" is no limit
    return min(total, int(limit)) if limit.isdigit() else total


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held at once: on a GPU by tensors since the last call, elsewhere by this process so far."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    # Of the process alone: getrusage's peak may be that of the program which started it.
    status = dict(line.split(":", 1) for line in read_text("/proc/self/status").splitlines() if ":" in line)
    if "VmHWM" in status:
        return int(status["VmHWM"].split()[0]) * 1024
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)  # Windows knows a peak, others the present


def check_memory(cfg: CfgNode, *, processes: int | None = None) -> None:
    """Raise WorkbenchError where a single array that a config asks for exceeds the machine's memory.

    The sizes are lower bounds: a config that passes may still run out of memory.

    Args:
        cfg: the config.
        processes: processes that share the images of a training step; None leaves out what only training needs.
    """
    memory = total_memory()
    for what, needed, keys in _needs(cfg, processes):
        if needed > memory:
            values = ", ".join(f"{key} {_value(cfg, key)}" for key in keys)
            raise WorkbenchError(
                f"{what} needs at least {needed / 2**30:,.0f} GiB and this machine has {memory / 2**30:,.1f} GiB of "
                f"memory; config keys: {values}"
            )


def _needs(cfg: CfgNode, processes: int | None) -> list[tuple[str, float, tuple[str, ...]]]:
    """Return arrays with what they hold, their bytes, and the keys that decide their size."""
    inputs, head, former = cfg.INPUT, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    edge = min(inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST or inputs.MIN_SIZE_TEST)
    needs = [("an image of the evaluation", 3 * edge**2, ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"))]
    published = cfg.MODEL.META_ARCHITECTURE in PUBLISHED_MODELS
    if published:
        encoder = head.TRANSFORMER_ENC_LAYERS * head.CONVS_DIM * (head.CONVS_DIM + head.TRANSFORMER_DIM_FEEDFORWARD)
        decoder = (former.DEC_LAYERS - 1) * former.HIDDEN_DIM * (4 * former.HIDDEN_DIM + former.DIM_FEEDFORWARD)
        queries = former.NUM_OBJECT_QUERIES * former.HIDDEN_DIM
        names = ("HIDDEN_DIM", "DIM_FEEDFORWARD", "DEC_LAYERS", "NUM_OBJECT_QUERIES")
        keys = tuple(f"MODEL.MASK_FORMER.{name}" for name in names)
        keys += tuple(
            f"MODEL.SEM_SEG_HEAD.{name}"
            for name in ("CONVS_DIM", "TRANSFORMER_DIM_FEEDFORWARD", "TRANSFORMER_ENC_LAYERS")
        )
        needs.append(("the model", 4 * 2 * (encoder + decoder + queries), keys))
    if cfg.MODEL.META_ARCHITECTURE == "SOLOv2":
        keys, group = cfg.MODEL.SOLOV2, "MODEL.SOLOV2."
        weights = 2 * 9 * (keys.NUM_INSTANCE_CONVS - 1) * keys.INSTANCE_CHANNELS**2
        cells = sum(grid**2 for grid in keys.NUM_GRIDS) * max(keys.INSTANCE_CHANNELS, keys.NUM_KERNELS)
        needs += [
            ("the model", 4 * weights, (f"{group}INSTANCE_CHANNELS", f"{group}NUM_INSTANCE_CONVS")),
            ("the grids of an image", 4 * cells, tuple(f"{group}{n}" for n in ("NUM_GRIDS", "INSTANCE_CHANNELS"))),
        ]
    if processes is None:
        return needs
    key, size = training_size(cfg)
    if reads(cfg, "INPUT.MAX_SCALE"):
        scale, largest = "INPUT.MAX_SCALE", size * inputs.MAX_SCALE
    else:
        scale, largest = "INPUT.MIN_SIZE_TRAIN", max(inputs.MIN_SIZE_TRAIN)
    images = cfg.SOLVER.IMS_PER_BATCH / processes / cfg.SOLVER.ACCUMULATION_STEPS
    needs += [
        ("a step's images", 3 * images * size**2, ("SOLVER.IMS_PER_BATCH", key)),
        ("a training image", 3 * largest**2, (key, scale)),
    ]
    if published:
        count, points = former.NUM_OBJECT_QUERIES, former.TRAIN_NUM_POINTS
        keys = ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",)
        masks = 4 * count * (size / head.COMMON_STRIDE) ** 2
        needs += [
            ("the masks of an image", masks, (*keys, key, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE")),
            ("the matching of an image", 4 * count * points, (*keys, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS")),
        ]
    return needs


def _value(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
