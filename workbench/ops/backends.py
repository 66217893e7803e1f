"""Chooses, builds on first use and loads the back end of deform_attn for a device."""

from __future__ import annotations

import os
import threading
import warnings

import torch

from workbench.errors import WorkbenchError
from workbench.ops import build
from workbench.ops.native import DTYPES, Native

CHOICES = ("reference", "cpu", "cuda")
_COST = {
    "cpu": "ten to thirty times slower at multi-scale deformable attention, and needs several times its memory",
    "cuda": "several times slower at multi-scale deformable attention, and needs several times its memory",
}
_MEND = {
    "cpu": "install a C++ compiler (for example `apt install g++` or `conda install cxx-compiler`)",
    "cuda": "install nvcc (for example `pip install nvidia-cuda-nvcc nvidia-cuda-cccl` in torch's CUDA version)",
}
_lock = threading.Lock()
_loaded: dict[str, Native] = {}
_failed: dict[str, str] = {}  # why a back end cannot be used, so that it is tried and reported once


def forced() -> str | None:
    """$WORKBENCH_OPS, or None. Raises WorkbenchError when it names no back end."""
    name = os.environ.get("WORKBENCH_OPS") or None
    if name is not None and name not in CHOICES:
        raise WorkbenchError(f"WORKBENCH_OPS={name} is no back end: it is one of {', '.join(CHOICES)}.")
    return name


def load(name: str) -> Native:
    """The compiled back end `name` ("cpu" or "cuda"), built if need be. Raises WorkbenchError when it cannot be had."""
    native = _loaded.get(name)
    if native is not None:
        return native
    with _lock:
        if name in _loaded:
            return _loaded[name]
        if name in _failed:
            raise WorkbenchError(_failed[name])
        try:
            if name == "cuda":
                from workbench.ops.cuda import cuda_recipe

                recipe = cuda_recipe()
            else:
                recipe = build.cpu_recipe()
            try:
                _loaded[name] = Native(build.build(recipe))
            except OSError:  # a cached library that does not load, such as one cut short by a full disk
                _loaded[name] = Native(build.build(recipe, force=True))
        except (WorkbenchError, OSError) as error:
            _failed[name] = str(error)
            raise WorkbenchError(_failed[name]) from None
        return _loaded[name]


def choose(device: torch.device, dtype: torch.dtype) -> Native | None:
    """The compiled back end for tensors of this device and dtype, or None for the reference.

    Without a usable compiler this warns once and answers None; a back end forced by WORKBENCH_OPS that cannot be used
    is a WorkbenchError."""
    choice = forced()
    if choice == "reference":
        return None
    if choice is not None:
        if device.type != choice or dtype not in DTYPES:
            raise WorkbenchError(f"WORKBENCH_OPS={choice} cannot serve {dtype} tensors on {device}.")
        return load(choice)
    name = device.type
    if name not in _COST or dtype not in DTYPES or name in _failed:
        return None
    try:
        return load(name)
    except WorkbenchError as error:
        warnings.warn(
            f"deform_attn runs its PyTorch reference on {name}, which is {_COST[name]}. The {name} back end was not "
            f"built: {error} To mend it, {_MEND[name]} and start again; `workbench build-ops` shows the result.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
