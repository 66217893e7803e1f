"""What a training step takes, before the first one: memory from what autograd keeps, time from a dry run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from workbench.config import training_size
from workbench.data.coco import CocoDataset
from workbench.data.vocabulary import Vocabulary
from workbench.environment.system import Memory, busy_cores, usable_cores, usable_memory
from workbench.errors import WorkbenchError, counted
from workbench.training.distributed import Processes, world_size
from workbench.training.progress import log

PROBE = 128  # pixels; what a larger image takes grows linearly with its area
_PROBED = 2  # images: batch norm cannot train on one image whose last feature map is a single pixel
_STATES = {"ADAMW": 2, "MUON": 1, "SGD": 1}  # numbers that the optimiser keeps for each weight, at least
GB = 1e9


class Cost(NamedTuple):
    """What one forward and backward pass takes: seconds, and the bytes that autograd keeps between the two."""

    seconds: float
    kept: int


class Need(NamedTuple):
    """What a training step takes: ``memory`` is a lower bound in bytes, the weights aside; ``seconds`` are a dry run's,
    scaled to the size of the images; ``images`` are those that are in memory at once."""

    memory: float
    seconds: float
    images: int


def dry_run(model: nn.Module, vocabulary: Vocabulary, size: int, images: int, objects: int = 1) -> Cost:
    """Run a model forward and backward on noise, and leave its weights, buffers and all random states as they were.

    Args:
        model: a model that returns losses in training mode; its gradients are cleared.
        vocabulary: its classes.
        size: height and width of the images, pixels.
        images: how many.
        objects: how many on each image.
    """
    batch = [_noise(vocabulary, size, objects) for _ in range(images)]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with unchanged(model):
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(model(batch).values())
        loss.backward()
        loss.item()  # waits for a GPU
        seconds = time.perf_counter() - began
    return Cost(seconds, sum(storages.values()))


def _noise(vocabulary: Vocabulary, size: int, objects: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(objects, size, size, dtype=torch.bool)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = True
    labels = torch.zeros(objects, dtype=torch.int64)
    return {
        "image": torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator),
        "height": size,
        "width": size,
        "file_name": "noise",
        "image_id": 0,
        "targets": {
            "labels": labels,
            "masks": masks,
            "annotation_ids": torch.arange(objects),
            "subcategories": dict.fromkeys(vocabulary.subcategories, labels),
        },
    }


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put the model into training mode; afterwards restore mode, buffers and random states, and clear gradients."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    training = model.training
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=[*devices]):
            model.train()
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        model.zero_grad(set_to_none=True)
        model.train(training)


def estimate(model: nn.Module, cfg: CfgNode, vocabulary: Vocabulary, objects: int = 1) -> Need:
    """Estimate what a step of one process takes, from dry runs on small images; what is kept grows with their area."""
    _, size = training_size(cfg)
    images = max(1, cfg.SOLVER.IMS_PER_BATCH // (world_size() * cfg.SOLVER.ACCUMULATION_STEPS))
    large = min(size, PROBE)
    small = min(large, max(64, large // 64 * 32))
    dry_run(model, vocabulary, small, _PROBED, objects)  # loads operators, and is slower
    first, second = (dry_run(model, vocabulary, side, _PROBED, objects) for side in (small, large))
    steps = (size**2 - large**2) / (large**2 - small**2) if large > small else 0.0
    kept = second.kept + steps * (second.kept - first.kept)
    # Two times that were disturbed by other processes may have any difference.
    slowest = second.seconds * (size / large) ** 2
    seconds = min(slowest, max(slowest / 4, second.seconds + steps * (second.seconds - first.seconds)))
    share = images / _PROBED
    return Need(kept * share + fixed_memory(model, cfg), seconds * share * cfg.SOLVER.ACCUMULATION_STEPS, images)


def fixed_memory(model: nn.Module, cfg: CfgNode) -> int:
    """Return the bytes of gradients and optimiser state, which no number of images changes."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return trained * (1 + _STATES[cfg.SOLVER.OPTIMIZER])


def check_memory(need: Need, memory: Memory, cfg: CfgNode, where: str) -> str | None:
    """Return a warning where a step may not fit into memory, None where it fits.

    ``need`` is a lower bound, so more than is free is likely to fail, and more than there is fails.

    Args:
        need: of all processes that share the memory. memory: what there is. cfg: for what could be changed.
        where: the memory's name, such as "this machine".

    Raises:
        WorkbenchError: it cannot fit; the sentence names what would.
    """
    key, size = training_size(cfg)
    sentence = (
        f"a step on {counted(need.images, 'image')} of {size}x{size} needs at least {need.memory / GB:.1f} GB of memory"
    )
    if need.memory < memory.free:
        return None
    smaller = int(size * (0.8 * min(memory.free, memory.total) / need.memory) ** 0.5) // 32 * 32
    remedies = [f"set {key} to {smaller}"] if smaller >= 64 else [f"set a smaller {key}"]
    if need.images > 1:
        remedies.append("raise SOLVER.ACCUMULATION_STEPS, which splits a step's images")
        remedies.append("lower SOLVER.IMS_PER_BATCH")
    remedy = ", or ".join(remedies)
    if need.memory > memory.total:
        raise WorkbenchError(f"{sentence}, and {where} has {memory.total / GB:.1f} GB: {remedy}")
    return (
        f"{sentence}, and {memory.free / GB:.1f} of {memory.total / GB:.1f} GB are free: close what uses it, {remedy}"
    )


def device_memory(device: torch.device) -> Memory:
    """Return the memory that a training on ``device`` can use, in bytes."""
    if device.type != "cuda":
        return usable_memory()
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Memory(free + unused, total)


def log_cost(cfg: CfgNode, model: nn.Module, data: CocoDataset, processes: Processes, steps: int) -> None:
    """Log what a step, and the ``steps`` that are left, will take; warn of scarce memory and of cores that are busy.

    Raises:
        WorkbenchError: a step cannot fit into memory.
    """
    device = processes.device
    model.to(device)
    if device.type == "cpu":
        crowded = crowding(torch.get_num_threads(), usable_cores(), busy_cores())
        if crowded:
            log.warning(crowded)
    objects = max(1, round(data_objects(data)))
    try:
        with processes.accelerator.autocast():
            need = estimate(model, cfg, data.vocabulary, objects)
    except Exception as error:  # a model of the user's own may not take noise; if it is broken, step 1 says so
        log.info(f"memory and time of a step are unknown: {' '.join(str(error).split())[:200]}")
        return
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    memory = device_memory(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    warning = check_memory(need._replace(memory=need.memory * sharing), memory, cfg, name)
    if warning:
        log.warning(warning)
    log.info(
        f"a step needs at least {need.memory / GB:.1f} GB of memory ({memory.free / GB:.1f} GB are free) and, by a dry "
        f"run, about {duration(need.seconds)}; {counted(steps, 'step takes', 'steps take')} about "
        f"{duration(need.seconds * steps)}, reading images and evaluation aside"
    )


def data_objects(data: CocoDataset) -> float:
    """Return how many objects an image of a dataset holds on average."""
    return sum(not a["iscrowd"] for d in data.dicts for a in d["annotations"]) / max(1, len(data))


def crowding(threads: int, cores: int, busy: float) -> str | None:
    """Return a warning where other processes leave fewer cores than torch has threads, else None.

    Args:
        threads: torch's. cores: those that this process may use. busy: how many of them other processes keep busy.
    """
    left = max(0.0, cores - busy)
    if threads == 1 or threads <= left + 0.5:
        return None
    fitting = max(1, int(left + 0.5))
    return (
        f"other processes keep {busy:.1f} of {cores} cores busy, and torch has {threads} threads: waiting for one "
        f"another makes each step 3 to 7 times as long; stop the others, or set OMP_NUM_THREADS={fitting}"
    )


def duration(seconds: float) -> str:
    """Return a time in words, such as ``0.25 s``, ``12 minutes`` or ``3.5 hours``."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            number = seconds / length
            return f"{round(number, 1 if number < 20 else None):g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
