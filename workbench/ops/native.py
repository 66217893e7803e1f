"""Calls of the compiled libraries through their C interface (ops/deform_attn.h)."""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.ops.build import Build

ABI = 1  # WB_ABI
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_SIZES = ("batch", "pixels", "heads", "channels", "queries", "levels", "points")
_TENSORS = ("value", "locations", "weights", "output", "grad_output", "grad_value", "grad_locations", "grad_weights")
_FAILURES = {
    -1: "its library has another ABI",
    -2: "out of memory",
    -3: "unknown dtype or instruction set",
    -4: "more than 16 levels, or more samples a query than fit a block; set WORKBENCH_OPS=reference",
}


class Arguments(ctypes.Structure):
    """``wb_deform_attn_args`` of ops/deform_attn.h."""

    _fields_ = [
        ("abi", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("shapes", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _TENSORS),
        ("threads", ctypes.c_int64),
        ("runner", ctypes.c_void_p),
        ("isa", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
    ]


@functools.cache
def openmp_runner() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP runtime that torch has loaded, or None.

    torch's idle threads spin for a while after each of its operators and would compete with threads of our own. Without
    such a runtime the library starts threads itself.
    """
    folder = Path(torch.__file__).parent / "lib"
    candidates = [str(path) for path in sorted(folder.glob("lib*omp*"))]
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text()
        loaded = set(re.findall(r"\s(/.*/lib[gi]?omp[^/\s]*)$", maps, re.MULTILINE))
        own = [path for path in candidates if str(Path(path).resolve()) in loaded or path in loaded]
        candidates = own or (list(loaded) if len(loaded) == 1 else [])
    for path in candidates:
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


class Native:
    """One loaded library: ``forward`` and ``backward`` over contiguous tensors that the caller has checked."""

    def __init__(self, build: Build) -> None:
        """Load the library; OSError where it does not load."""
        self.build = build
        self.library = ctypes.CDLL(str(build.library))
        self.cuda = build.name.startswith("cuda")
        self.isa = -1  # the best instruction set the processor has
        self.dtypes = {dtype for dtype in DTYPES if not (self.cuda and dtype == torch.float64)}
        if not self.cuda:
            self.library.wb_isa_name.restype = ctypes.c_char_p

    def instruction_sets(self) -> dict[str, int]:
        """Return the CPU library's instruction sets that this processor has, best first."""
        names = ((self.library.wb_isa_name(index), index) for index in range(3))
        return {name.decode(): index for name, index in names if name}

    def forward(self, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        batch, _, heads, channels = value.shape
        output = value.new_empty((batch, locations.shape[1], heads * channels))
        self._call("forward", shapes, value=value, locations=locations, weights=weights, output=output)
        return output

    def backward(
        self, grad_output: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))
        inputs = {"value": value, "locations": locations, "weights": weights, "grad_output": grad_output}
        names = ("grad_value", "grad_locations", "grad_weights")
        self._call("backward", shapes, **inputs, **dict(zip(names, grads, strict=True)))
        return grads

    def _call(self, direction: str, shapes: Sequence[int], **tensors: Tensor) -> None:
        value, locations = tensors["value"], tensors["locations"]
        flat = (ctypes.c_int64 * len(shapes))(*shapes)
        sizes = (*value.shape, locations.shape[1], locations.shape[3], locations.shape[4])
        arguments = Arguments(ABI, DTYPES[value.dtype], *sizes, ctypes.addressof(flat), isa=self.isa)
        for name, tensor in tensors.items():
            if self.cuda and tensor.data_ptr() % 16:  # a view from the middle of a tensor: the loads are 16 bytes wide
                tensor = tensors[name] = tensor.clone()
            setattr(arguments, name, tensor.data_ptr())
        function = getattr(self.library, f"wb_deform_attn_{direction}")
        if self.cuda:
            arguments.threads = value.device.index
            if direction == "backward" and value.dtype != torch.float32:
                scratch = torch.empty(value.shape, dtype=torch.float32, device=value.device)
                arguments.scratch = scratch.data_ptr()
            with torch.cuda.device(value.device):
                arguments.runner = torch.cuda.current_stream().cuda_stream
                status = function(ctypes.byref(arguments))
        else:
            arguments.threads = torch.get_num_threads()
            arguments.runner = openmp_runner()
            status = function(ctypes.byref(arguments))
        if status:
            reason = _FAILURES.get(status, f"CUDA error {status}")
            raise WorkbenchError(f"The {self.build.name} back end of deform_attn failed: {reason}.")
