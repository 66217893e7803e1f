"""Which device a run uses: :func:`choose_device` is the one place that turns ``MODEL.DEVICE`` into a ``torch.device``.

Nothing here starts CUDA on a GPU that the run does not use.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F

from workbench.environment.system import cpu_name, memory_below_limit, run_quietly
from workbench.errors import WorkbenchError

_LEAST_MEMORY = 2**28  # bytes that must be left below a limit


def choose_device(name: str = "auto") -> torch.device:
    """Return the device that ``name`` (``MODEL.DEVICE``) stands for.

    Args:
        name: ``cpu``, which never touches CUDA; ``cuda``, the GPU with most free memory, or, in one of several
            processes started by ``accelerate launch`` or ``torchrun``, the GPU of this process's LOCAL_RANK;
            ``cuda:N``, that GPU as this process sees it (after CUDA_VISIBLE_DEVICES); ``mps``; ``auto``, which is
            ``cuda`` where a GPU can be used and else ``cpu``.

    Raises:
        WorkbenchError: the device is unknown or missing, and the message lists those that are available; it computes
            wrongly; or a limit leaves this process hardly any memory.
    """
    _check_limit()
    wanted = str(name).strip().lower()
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted == "auto":
        return choose_device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise WorkbenchError(f"MODEL.DEVICE is {name!r}, but there is no Apple GPU; {_alternatives()}.")
        if not samples_rightly("mps"):
            raise WorkbenchError(
                f"MODEL.DEVICE is {name!r}, but this torch samples images wrongly there; set MODEL.DEVICE to cpu, or "
                "install a newer torch."
            )
        return torch.device("mps")
    if wanted != "cuda" and not (wanted.startswith("cuda:") and wanted[5:].isdigit()):
        raise WorkbenchError(f"MODEL.DEVICE is {name!r}, which is none of cpu, cuda, cuda:0, mps and auto.")
    if not torch.cuda.is_available():
        raise WorkbenchError(f"MODEL.DEVICE is {name!r}, but {explain_missing_cuda()}; {_alternatives()}.")
    count = torch.cuda.device_count()
    if wanted != "cuda":
        index = int(wanted[5:])
        if index >= count:
            raise WorkbenchError(f"MODEL.DEVICE is {name!r}, but {_visible(count)}; {_alternatives()}.")
        return torch.device("cuda", index)
    local_rank = os.environ.get("LOCAL_RANK", "")
    if local_rank.isdigit() and launched_processes() > 1:
        return torch.device("cuda", int(local_rank) % count)
    return torch.device("cuda", freest_gpu())


def _check_limit() -> None:
    left = memory_below_limit()
    if left is not None and left < _LEAST_MEMORY:  # libraries in C end the process where they get no memory
        raise WorkbenchError(
            f"the limit on this process's memory (ulimit -v) leaves {left // 2**20} MiB, and at least "
            f"{_LEAST_MEMORY // 2**20} MiB are needed: raise it."
        )


def samples_rightly(device: torch.device | str) -> bool:
    """Return whether ``device`` samples and enlarges images as the CPU does.

    The model is built on these two operations. They were wrong, or not there, in several releases for Apple GPUs.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 2, 7, 9, generator=generator)
    grid = torch.rand(1, 5, 4, 2, generator=generator) * 2.4 - 1.2  # some points lie outside
    try:
        expected, computed = (
            (F.grid_sample(x, g, align_corners=False), F.interpolate(x, (13, 20), mode="bilinear"))
            for x, g in ((image, grid), (image.to(device), grid.to(device)))
        )
        return all(torch.allclose(a, b.cpu(), atol=1e-4) for a, b in zip(expected, computed, strict=True))
    except (NotImplementedError, RuntimeError):
        return False


def launched_processes() -> int:
    """Return WORLD_SIZE, the number of processes that a launcher started; 1 where it is not set."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise WorkbenchError(f"WORLD_SIZE is {text!r}, which is no number of processes; unset it.")
    return int(text)


def freest_gpu() -> int:
    """Return the index, as torch counts, of the visible GPU with most free memory; 0 where that is unknown.

    Free memory is read from nvidia-smi and matched by UUID: torch would create a CUDA context of some hundred MB on
    every GPU, and nvidia-smi's own numbering ignores CUDA_VISIBLE_DEVICES and CUDA's ordering.
    """
    count = torch.cuda.device_count()
    if count < 2:
        return 0
    free = free_memory_by_uuid()
    known = [(free.get(gpu_uuid(index), -1), -index) for index in range(count)]
    return -max(known)[1]


def gpu_uuid(index: int) -> str:
    """Return the UUID of a GPU in nvidia-smi's spelling (``GPU-...``), or "" where torch does not know it."""
    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    return uuid if not uuid or uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def free_memory_by_uuid() -> dict[str, int]:
    """Return the free MiB of each GPU of the machine, by UUID; empty without nvidia-smi."""
    free = {}
    query = ("nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits")
    for row in run_quietly(*query).splitlines():
        uuid, _, amount = row.partition(",")
        if amount.strip().isdigit():
            free[uuid.strip()] = int(amount)
    return free


def explain_missing_cuda() -> str:
    """Return why torch sees no CUDA GPU in this process, as a clause."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not run_quietly("nvidia-smi", "-L") and not os.path.exists("/proc/driver/nvidia/version"):
        return "this machine has no NVIDIA driver, so no GPU can be used"
    if visible is not None and visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
    return (
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU, most often because the "
        "driver is too old for that CUDA version (see `workbench env`)"
    )


def _visible(count: int) -> str:
    names = ", ".join(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count))
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    because = "" if variable is None else f" under CUDA_VISIBLE_DEVICES={variable!r}"
    return f"this process sees {count} GPU{'s' if count > 1 else ''}{because}: {names}"


def _alternatives() -> str:
    there = ["cpu"]
    if torch.cuda.is_available():
        there += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    return f"available here: {', '.join(there)} (set MODEL.DEVICE)"


def verify_device(device: torch.device | str) -> dict[str, Any]:
    """Multiply two small matrices on ``device`` and return where that really ran.

    Returns:
        {requested, used, name, agrees_with_cpu, allocated_mib}; ``used`` is the device that holds the result.
    """
    wanted = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(64, 64, generator=generator)
    result = matrix.to(wanted) @ matrix.to(wanted)
    on_gpu = result.device.type == "cuda"
    return {
        "requested": str(wanted),
        "used": str(result.device),
        "name": torch.cuda.get_device_name(result.device) if on_gpu else cpu_name(),
        "agrees_with_cpu": bool(torch.allclose(result.cpu(), matrix @ matrix, rtol=1e-2)),
        "allocated_mib": torch.cuda.memory_allocated(result.device) / 1024**2 if on_gpu else 0.0,
    }
