"""The back end of ``deform_attn`` for a device: chosen, built on first use, loaded."""

from __future__ import annotations

import os
import threading
import warnings

import torch

from workbench.errors import WorkbenchError
from workbench.ops import build
from workbench.ops.cuda import cuda_recipe
from workbench.ops.native import Native

CHOICES = ("reference", "cpu", "cuda")
_COST = {
    "cpu": "ten to thirty times slower at this step and needs several times its memory",
    "cuda": "several times slower at this step and needs several times its memory",
}
_COMPILER = "install a C++ compiler (such as `apt install g++` or `conda install -c conda-forge cxx-compiler`)"
_lock = threading.Lock()
_loaded: dict[str, Native] = {}
_rebuild = False
_failed: dict[str, str] = {}  # why a back end cannot be used, so that it is tried and reported once


def forced() -> str | None:
    """Return $WORKBENCH_OPS, or None where it is not set.

    Raises:
        WorkbenchError: it names no back end.
    """
    name = os.environ.get("WORKBENCH_OPS") or None
    if name is not None and name not in CHOICES:
        raise WorkbenchError(f"WORKBENCH_OPS={name} is no back end: it is one of {', '.join(CHOICES)}.")
    return name


def load(name: str) -> Native:
    """Return the compiled back end ``name`` ("cpu" or "cuda"), building it if the cache lacks it.

    Raises:
        WorkbenchError: it cannot be built or loaded.
    """
    native = _loaded.get(name)
    if native is not None:
        return native
    with _lock:
        if name in _loaded:
            return _loaded[name]
        if name in _failed:
            raise WorkbenchError(_failed[name])
        try:
            recipe = cuda_recipe() if name == "cuda" else build.cpu_recipe()
            made = build.build(recipe, force=_rebuild)
            try:
                _loaded[name] = Native(made)
            except OSError:  # a cached library that does not load, such as one cut short by a full disk
                _loaded[name] = Native(build.build(recipe, force=True))
        except (WorkbenchError, OSError) as error:
            _failed[name] = str(error)
            raise WorkbenchError(_failed[name]) from None
        return _loaded[name]


def forget(rebuild: bool = False) -> None:
    """Forget what was loaded, so that the next use of a back end loads it, or with ``rebuild`` compiles it, again."""
    global _rebuild
    with _lock:
        _loaded.clear()
        _failed.clear()
        _rebuild = rebuild


def choose(device: torch.device, dtype: torch.dtype) -> Native | None:
    """Return the compiled back end for tensors of this device and dtype, or None for the reference.

    Without a usable compiler this warns once and returns None.

    Raises:
        WorkbenchError: the back end that WORKBENCH_OPS forces cannot be used.
    """
    choice = forced()
    if choice == "reference":
        return None
    if choice is not None:
        if device.type != choice or dtype not in load(choice).dtypes:
            raise WorkbenchError(f"WORKBENCH_OPS={choice} cannot serve {dtype} tensors on {device}.")
        return load(choice)
    name = device.type
    if name not in _COST or name in _failed:
        return None
    try:
        native = load(name)
        return native if dtype in native.dtypes else None
    except WorkbenchError as error:
        warnings.warn(
            f"Multi-scale deformable attention runs its PyTorch reference on {name}, which is {_COST[name]}. "
            f"The {name} back end was not built: {error} "
            f"To mend it, {_mend(name)} and start again; `workbench build-ops` shows the result.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _mend(name: str) -> str:
    if name == "cpu" or torch.version.cuda is None:
        return _COMPILER
    if int(torch.version.cuda.split(".")[0]) >= 13:
        nvcc = f"`pip install 'cuda-toolkit[nvcc,cccl]=={torch.version.cuda}.*'`"
    else:  # PyPI's packages for these lack the program nvcc itself
        nvcc = f"`conda install -c conda-forge cuda-nvcc={torch.version.cuda}`, or your cluster's CUDA module"
    return f"{_COMPILER} and nvcc (such as {nvcc})"
