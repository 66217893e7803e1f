"""What this machine can run, and which device a run uses.

``choose_device`` is the only place that turns ``MODEL.DEVICE`` into a ``torch.device``. ``inspect_machine``
collects what a person would otherwise look up with six commands; ``workbench.environment.problems`` turns what it finds
into sentences. Nothing here needs a GPU, a driver or even a working torch.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.environment.problems import find_problems
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import torch

GIB = 1024**3
SIMD_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve")
PACKAGES = (
    "accelerate",
    "fvcore",
    "numpy",
    "pycocotools",
    "hotcoco",
    "scipy",
    "contourpy",
    "pandas",
    "safetensors",
    "jupyterlab",
    "papermill",
    "transformers",
)


def choose_device(name: str = "auto") -> torch.device:
    """The device that ``name`` (``MODEL.DEVICE``) stands for.

    ``cpu`` never touches CUDA. ``cuda`` is the GPU with most free memory, or, in one of several processes
    started by ``accelerate launch`` or ``torchrun``, the GPU of this process's LOCAL_RANK. ``cuda:N`` is
    that GPU as this process sees it (after CUDA_VISIBLE_DEVICES). ``auto`` is ``cuda`` where there is one,
    else ``cpu``.

    Raises WorkbenchError, naming what is there, when the device is unknown or missing.
    """
    import torch

    wanted = str(name).strip().lower()
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted == "auto":
        return choose_device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise WorkbenchError(f"MODEL.DEVICE is {name!r}, but there is no Apple GPU; {_alternatives()}.")
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
    if local_rank.isdigit() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return torch.device("cuda", int(local_rank) % count)
    return torch.device("cuda", freest_gpu())


def freest_gpu() -> int:
    """Index, as torch counts, of the visible GPU with most free memory; 0 where that cannot be known.

    Free memory is asked of nvidia-smi and matched by UUID: asking torch would put a CUDA context of some
    hundred MB on every GPU, and nvidia-smi's own numbering ignores CUDA_VISIBLE_DEVICES and CUDA's ordering.
    """
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return 0
    free = free_memory_by_uuid()
    known = [(free.get(gpu_uuid(index), -1), -index) for index in range(count)]
    return -max(known)[1]


def gpu_uuid(index: int) -> str:
    """UUID of a GPU in nvidia-smi's spelling (``GPU-...``), or "" where torch does not tell."""
    import torch

    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    return uuid if not uuid or uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def free_memory_by_uuid() -> dict[str, int]:
    """Free MiB of each GPU of the machine, by UUID; empty without nvidia-smi."""
    free = {}
    query = ("nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits")
    for row in run_quietly(*query).splitlines():
        uuid, _, amount = row.partition(",")
        if amount.strip().isdigit():
            free[uuid.strip()] = int(amount)
    return free


def explain_missing_cuda() -> str:
    """Why torch sees no CUDA GPU in this process, as a clause."""
    import torch

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


def run_quietly(*command: str, timeout: float = 20.0) -> str:
    """Standard output of a command, or "" if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _visible(count: int) -> str:
    import torch

    names = ", ".join(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count))
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    because = "" if variable is None else f" under CUDA_VISIBLE_DEVICES={variable!r}"
    return f"this process sees {count} GPU{'s' if count > 1 else ''}{because}: {names}"


def _alternatives() -> str:
    import torch

    there = ["cpu"]
    if torch.cuda.is_available():
        there += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    return f"available here: {', '.join(there)} (set MODEL.DEVICE)"


def verify_device(device: torch.device | str) -> dict[str, Any]:
    """Computes something small on ``device`` and says where it really ran.

    Returns {requested, used, name, agrees_with_cpu, allocated_mib}; ``used`` is the device holding the
    result.
    """
    import torch

    wanted = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(64, 64, generator=generator)
    result = matrix.to(wanted) @ matrix.to(wanted)
    on_gpu = result.device.type == "cuda"
    return {
        "requested": str(wanted),
        "used": str(result.device),
        "name": torch.cuda.get_device_name(result.device) if on_gpu else _cpu_name(),
        "agrees_with_cpu": bool(torch.allclose(result.cpu(), matrix @ matrix, rtol=1e-2)),
        "allocated_mib": torch.cuda.memory_allocated(result.device) / 1024**2 if on_gpu else 0.0,
    }


def inspect_machine() -> dict[str, Any]:
    """Everything about this machine that decides what the workbench can run, ready for JSON.

    Keys: python, system, torch, torchvision, cuda, gpus (those this process sees), detectron2, packages,
    problems. Whatever cannot be found out is None, empty, or an ``error`` string; nothing raises.
    """
    machine: dict[str, Any] = {
        "python": _inspect_python(),
        "torch": _inspect_torch(),
        "torchvision": _inspect_torchvision(),
        "cuda": _inspect_cuda(),
        "gpus": [],
        "detectron2": _inspect_optional("detectron2"),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    machine["system"] = _inspect_system(machine["torch"])
    if machine["torch"].get("cuda_available"):
        machine["gpus"] = _inspect_gpus()
    machine["problems"] = find_problems(machine)
    return machine


def _inspect_python() -> dict[str, Any]:
    if (Path(sys.prefix) / "conda-meta").is_dir():
        kind = "conda"
    else:
        kind = "venv" if sys.prefix != sys.base_prefix else "system"
    version = platform.python_version()
    return {"version": version, "executable": sys.executable, "environment": sys.prefix, "kind": kind}


def _inspect_system(torch_facts: dict[str, Any]) -> dict[str, Any]:
    memory, flags = _memory(), _cpu_flags()
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": torch_facts.get("threads"),
        "simd": [flag for flag in SIMD_FLAGS if flag in flags],
        "memory_gib": memory.get("MemTotal"),
        "memory_free_gib": memory.get("MemAvailable"),
        "directory": os.getcwd(),
        "disk_free_gib": _in_gib(_free_bytes(".")),
        "shared_memory_free_gib": _in_gib(_free_bytes("/dev/shm")),
    }


def _inspect_torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a torch of another platform fails with OSError, ImportError or RuntimeError
        return {"version": _version("torch"), "error": _first_line(error)}
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "built_for": torch.cuda.get_arch_list() if torch.version.cuda else [],
        "cuda_available": torch.cuda.is_available(),
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "error": None,
    }


def _inspect_torchvision() -> dict[str, Any]:
    facts: dict[str, Any] = {"version": _version("torchvision"), "wants_torch": None, "error": None}
    try:
        for line in importlib.metadata.requires("torchvision") or []:
            if re.match(r"torch\b", line):
                facts["wants_torch"] = re.sub(r"^torch\s*|[()]", "", line.split(";")[0]).strip()
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 6.0, 6.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)
        if kept.tolist() != [1, 2]:
            facts["error"] = f"torchvision.ops.nms kept boxes {kept.tolist()} where it must keep [1, 2]"
    except Exception as error:  # a mismatched pair fails at import with RuntimeError, OSError or ImportError
        facts["error"] = _first_line(error)
    return facts


def _inspect_cuda() -> dict[str, Any]:
    gpus = [line.split(" (UUID")[0] for line in run_quietly("nvidia-smi", "-L").splitlines()]
    return {
        "driver": _driver_version(),
        "driver_cuda": _driver_cuda(),
        "machine_gpus": gpus,
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "visible_devices_at_start": _variable_at_start("CUDA_VISIBLE_DEVICES"),
        "started": _cuda_started(),
        "cuda_home": os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"),
        "toolkits": find_toolkits(),
    }


def _inspect_gpus() -> list[dict[str, Any]]:
    import torch

    free, freest, gpus = free_memory_by_uuid(), freest_gpu(), []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "index": index,
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / GIB, 1),
                "free_gib": _in_gib(free[gpu_uuid(index)] * 1024**2) if gpu_uuid(index) in free else None,
                "freest": index == freest,
            }
        )
    return gpus


def _inspect_optional(module: str) -> dict[str, Any]:
    if importlib.util.find_spec(module) is None:
        return {"version": None, "error": None}
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        return {"version": _version(module), "error": _first_line(error)}
    return {"version": getattr(loaded, "__version__", _version(module)), "error": None}


def find_toolkits() -> list[dict[str, str]]:
    """CUDA compilers on this machine: [{path, version, source}], the one a build would meet first first."""
    places = []
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        places.append((Path(home) / "bin" / "nvcc", "CUDA_HOME"))
    if on_path := shutil.which("nvcc"):
        places.append((Path(on_path), "PATH"))
    places += [(nvcc, str(nvcc.parent.parent)) for nvcc in sorted(Path("/usr/local").glob("cuda*/bin/nvcc"))]
    for site in sys.path:
        places += [(nvcc, "PyPI package") for nvcc in sorted(Path(site).glob("nvidia/*/bin/nvcc"))]
    found: dict[Path, dict[str, str]] = {}
    for nvcc, source in places:
        if not nvcc.is_file() or nvcc.resolve() in found:
            continue
        if release := re.search(r"release (\d+\.\d+)", run_quietly(str(nvcc), "--version")):
            found[nvcc.resolve()] = {"path": str(nvcc), "version": release[1], "source": source}
    return list(found.values())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _memory() -> dict[str, float]:
    """MemTotal and MemAvailable in GiB, where the kernel tells."""
    rows = re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {name: round(int(kib) * 1024 / GIB, 1) for name, kib in rows}


def _free_bytes(directory: str) -> int | None:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None


def _in_gib(amount: int | None) -> float | None:
    return None if amount is None else round(amount / GIB, 1)


def _cpu_name() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return set(match[1].split()) if match else set()


def usable_cores() -> int:
    """Cores this process may use, in a container or under a batch system fewer than the machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _cuda_started() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def _variable_at_start(name: str) -> str | None:
    """An environment variable as it was when this process started (Linux), else as it is now."""
    raw = _read("/proc/self/environ")
    if not raw:
        return os.environ.get(name)
    return dict(row.partition("=")[::2] for row in raw.split("\0") if row).get(name)


def _driver_version() -> str | None:
    reported = run_quietly("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    match = re.search(r"Kernel Module\D*?([\d.]+)", _read("/proc/driver/nvidia/version"))
    return reported[0].strip() if reported else match[1] if match else None


def _driver_cuda() -> str | None:
    """Newest CUDA version the driver supports, asked of the driver itself; starts no CUDA context."""
    try:
        version = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else None
