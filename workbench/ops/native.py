"""Calls the compiled libraries through their C interface (ops/deform_attn.h)."""

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
_TENSORS = (
    "value", "locations", "weights", "output", "grad_output", "grad_value", "grad_locations", "grad_weights",
)  # fmt: skip


class Arguments(ctypes.Structure):
    """wb_deform_attn_args."""

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
    """The address of GOMP_parallel in the OpenMP runtime torch has loaded, or None.

    Running on torch's own threads keeps its idle ones, which spin for a while after each of its operators, from
    competing with ours. Where there is no such runtime the library starts threads itself."""
    folder = Path(torch.__file__).parent / "lib"
    candidates = [str(path) for path in sorted(folder.glob("lib*omp*"))]
    if sys.platform == "linux":
        loaded = set(re.findall(r"\s(/\S*/lib[gi]?omp[^/\s]*)$", Path("/proc/self/maps").read_text(), re.MULTILINE))
        own = [path for path in candidates if str(Path(path).resolve()) in loaded or path in loaded]
        candidates = own or (list(loaded) if len(loaded) == 1 else [])
    for path in candidates:
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


class Native:
    """One loaded library: `forward` and `backward` over contiguous tensors that the caller has checked."""

    def __init__(self, build: Build) -> None:
        """Raises OSError when the library does not load."""
        self.build = build
        self.library = ctypes.CDLL(str(build.library))
        self.cuda = build.name == "cuda"
        self.isa = -1
        if not self.cuda:
            self.library.wb_isa_name.restype = ctypes.c_char_p

    def instruction_sets(self) -> dict[str, int]:
        """The CPU library's instruction sets that this processor has, best first."""
        names = ((self.library.wb_isa_name(index), index) for index in range(3))
        return {name.decode(): index for name, index in names if name}

    def forward(self, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        batch, _, heads, channels = value.shape
        output = value.new_empty((batch, locations.shape[1], heads * channels))
        self._call(
            self.library.wb_deform_attn_forward, value, shapes, locations, dict(weights=weights, output=output)
        )
        return output

    def backward(
        self, grad_output: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)
        tensors = dict(
            weights=weights,
            grad_output=grad_output,
            grad_value=grads[0],
            grad_locations=grads[1],
            grad_weights=grads[2],
        )
        self._call(self.library.wb_deform_attn_backward, value, shapes, locations, tensors)
        return grads

    def _call(self, function, value: Tensor, shapes: Sequence[int], locations: Tensor, tensors: dict) -> None:
        flat = (ctypes.c_int64 * len(shapes))(*shapes)
        sizes = (*value.shape, locations.shape[1], locations.shape[3], locations.shape[4])
        arguments = Arguments(
            ABI,
            DTYPES[value.dtype],
            *sizes,
            ctypes.addressof(flat),
            value.data_ptr(),
            locations.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            isa=self.isa,
        )
        if self.cuda:
            arguments.threads = value.device.index
            arguments.runner = torch.cuda.current_stream(value.device).cuda_stream
            if "grad_value" in tensors and value.dtype in (torch.float16, torch.bfloat16):
                scratch = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
                arguments.scratch = scratch.data_ptr()
        else:
            arguments.threads = torch.get_num_threads()
            arguments.runner = openmp_runner()
        status = function(ctypes.byref(arguments))
        if status:
            known = {-1: "it has another ABI", -2: "out of memory", -3: "unknown dtype or instruction set"}
            raise WorkbenchError(
                f"The {self.build.name} back end of deform_attn failed: {known.get(status, f'CUDA error {status}')}."
            )
