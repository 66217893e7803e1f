"""The CUDA compiler that fits torch, from the machine or from PyPI, and how to build with it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from workbench.errors import WorkbenchError
from workbench.ops.build import Recipe, cxx_compiler, source_directory, version_text

TOOLKITS = Path("/usr/local")  # where NVIDIA's installers put cuda and cuda-13.0
CUDA_FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "4")


def cuda_recipe(
    capabilities: Sequence[tuple[int, int]] | None = None, name: str = "cuda", file: Path | None = None
) -> Recipe:
    """Return how to build the CUDA library.

    Args:
        capabilities: the compute capabilities to build for; those of the visible devices by default.
        name, file: for another library with the same C interface: "cuda-..." and its source file.

    Raises:
        WorkbenchError: torch has no CUDA, or there is no nvcc of its major version.
    """
    folder = file.parent if file else source_directory()
    file = file or folder / "cuda" / "deform_attn.cu"
    if torch.version.cuda is None:
        raise WorkbenchError("This torch was built without CUDA.")
    nvcc, version, why = find_nvcc(int(torch.version.cuda.split(".")[0]))
    if capabilities is None:
        capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    names = sorted({10 * major + minor for major, minor in capabilities})
    targets = tuple(f"-gencode=arch=compute_{name},code=sm_{name}" for name in names)
    root = Path(nvcc).parents[1]
    extra = [f"-I{folder}" for folder in (root / "include", root / "include" / "cccl") if folder.is_dir()]
    libraries = [f"-L{folder}" for folder in (root / "lib64", root / "lib") if folder.is_dir()]
    start = (nvcc, "-ccbin", cxx_compiler(), *CUDA_FLAGS, *targets, *extra)
    return Recipe(
        name=name,
        source=folder,
        suffixes=(".h", ".cu"),
        compiler=(nvcc, version, version_text(cxx_compiler())),
        compile=((*start, "-c", f"{{source}}/{file.relative_to(folder)}", "-o", "{out}/deform_attn.o"),),
        link=(*start, "-shared", "-cudart", "static", *libraries, "{out}/deform_attn.o", "-o", "{out}/library.so"),
        why=why,
    )


def find_nvcc(major: int) -> tuple[str, str, str]:
    """Return the path of an nvcc of this major version, its version text, and why it was chosen.

    The machine's own ($CUDA_HOME; where that is unset or empty the PATH, then /usr/local/cuda*) where its major version
    is right, else the one that the PyPI package nvidia-cuda-nvcc installs beside torch's CUDA libraries; a
    WorkbenchError where there is neither.
    """
    home = os.environ.get("CUDA_HOME")
    folders = [None, *sorted(TOOLKITS.glob("cuda*/bin"))] if not home else [Path(home) / "bin"]
    passed = "the machine has no nvcc"
    for folder in folders:
        own = shutil.which("nvcc", path=folder and str(folder))
        if own is None:
            continue
        version = version_text(own)
        present = _major(version)
        if present == major:
            return _real_path(own), version, f"the machine's nvcc has the major version of torch's CUDA, {major}"
        passed = f"the machine's nvcc has major version {present}, torch's CUDA {major}"
    for folder in _nvidia_folders():
        nvcc = folder / f"cu{major}" / "bin" / "nvcc"
        if nvcc.is_file() and os.access(nvcc, os.X_OK):
            version = version_text(str(nvcc))
            if _major(version) == major:
                return str(nvcc), version, f"PyPI's nvcc, because {passed}"
    raise WorkbenchError(f"There is no nvcc to build with: {passed}, and none of CUDA {major} was installed from PyPI.")


def _major(version: str) -> int:
    match = re.search(r"release (\d+)\.", version)
    return int(match.group(1)) if match else 0


def _nvidia_folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in spec.submodule_search_locations] if spec else []


def _real_path(nvcc: str) -> str:
    """Return the nvcc inside its toolkit; the PATH may hold a link or a wrapper script."""
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-E", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dry, re.MULTILINE)
    real = Path(top.group(1)) / "bin" / "nvcc" if top else None
    return str(real.resolve()) if real is not None and real.is_file() else nvcc
