"""What this machine can run, as plain facts; :mod:`workbench.environment.problems` turns them into sentences.

Nothing here needs a GPU, a driver or a working torch.
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
import sys
from pathlib import Path
from typing import Any

import psutil

from workbench.environment.problems import find_problems
from workbench.environment.system import cpu_name, read_text, run_quietly, simd_flags, usable_cores

GIB = 1024**3
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


def inspect_machine() -> dict[str, Any]:
    """Return everything about this machine that decides what the workbench can run, ready for JSON.

    Returns:
        python, system, torch, torchvision, cuda, gpus (those that this process sees), detectron2, packages, problems.
        What cannot be determined is None, empty, or an ``error`` string; nothing raises.
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
    memory = psutil.virtual_memory()
    return {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch_facts.get("threads"),
        "simd": simd_flags(),
        "memory_gib": _in_gib(memory.total),
        "memory_free_gib": _in_gib(memory.available),
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
        "visible_devices_at_start": psutil.Process().environ().get("CUDA_VISIBLE_DEVICES"),
        "started": (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized(),
        "cuda_home": os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or None,
        "toolkits": find_toolkits(),
    }


def _inspect_gpus() -> list[dict[str, Any]]:
    import torch

    from workbench.environment.device import free_memory_by_uuid, freest_gpu, gpu_uuid

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
    """Return the CUDA compilers of this machine, in the order of a build's search: [{path, version, source}]."""
    places = []
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        places.append((Path(home) / "bin" / "nvcc", "CUDA_HOME"))
    if on_path := shutil.which("nvcc"):
        places.append((Path(on_path), "PATH"))
    places += [(nvcc, str(nvcc.parent.parent)) for nvcc in sorted(Path("/usr/local").glob("cuda*/bin/nvcc"))]
    for site in sys.path:
        places += [(nvcc, "PyPI package") for nvcc in sorted(Path(site).glob("nvidia/*/bin/nvcc"))]
    toolkits: dict[Path, dict[str, str]] = {}
    for nvcc, source in places:
        if not nvcc.is_file() or nvcc.resolve() in toolkits:
            continue
        if release := re.search(r"release (\d+\.\d+)", run_quietly(str(nvcc), "--version")):
            toolkits[nvcc.resolve()] = {"path": str(nvcc), "version": release[1], "source": source}
    return list(toolkits.values())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def _free_bytes(directory: str) -> int | None:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None


def _in_gib(amount: int | None) -> float | None:
    return None if amount is None else round(amount / GIB, 1)


def _driver_version() -> str | None:
    reported = run_quietly("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    match = re.search(r"Kernel Module\D*?([\d.]+)", read_text("/proc/driver/nvidia/version"))
    return reported[0].strip() if reported else match[1] if match else None


def _driver_cuda() -> str | None:
    """Return the newest CUDA version that the driver supports, from the driver itself, without a CUDA context."""
    try:
        version = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else None
