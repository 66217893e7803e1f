"""The CUDA source without a GPU: it compiles with nvcc, and it computes right, a CPU thread for each of a block's."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.ops import build, cuda, deform_attn_reference
from workbench.ops.native import ABI, DTYPES, Arguments

SOURCES = {
    "workbench": build.source_directory() / "cuda" / "deform_attn.cu",
    "peer": Path(__file__).parents[2] / "benchmarks" / "deform_attn_baseline.cu",
}
SHAPES = [(7, 5), (3, 1), (1, 4)]


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA, so no version of nvcc fits it")
@pytest.mark.parametrize("name", SOURCES)
def test_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if not SOURCES[name].is_file():
        pytest.skip("the benchmarks are not installed")
    try:
        recipe = cuda.cuda_recipe([(9, 0)], f"cuda-{name}", None if name == "workbench" else SOURCES[name])
    except WorkbenchError as error:
        pytest.skip(str(error))
    _check_compiles(recipe, tmp_path, monkeypatch)


def test_pypis_nvcc_compiles_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))  # a machine without a toolkit of its own
    try:
        recipe = cuda.cuda_recipe([(7, 5)])  # the oldest that CUDA 13 knows; PyPI has no nvcc of an older CUDA
    except WorkbenchError as error:
        pytest.skip(str(error))
    assert recipe.why.startswith("PyPI's nvcc") and "site-packages" in recipe.compiler[0]
    _check_compiles(recipe, tmp_path, monkeypatch)


def _check_compiles(recipe: build.Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    library = build.build(recipe).library.read_bytes()
    assert b"wb_deform_attn_forward" in library and b"wb_deform_attn_backward" in library


def _on_cpu(source: str) -> str:
    """CUDA's own syntax in C++: the launches, the shared memory and the headers."""
    source = re.sub(r"#include <cuda_\w+\.h>", '#include "cuda_on_cpu.h"', source)
    source = re.sub(r'#include "\.\..*deform_attn\.h"', '#include "deform_attn.h"', source)
    source = re.sub(r"extern __shared__ (\w+) shared\[\];", r"\1* shared = (\1*)block->shared.data();", source)
    launch = re.compile(r"(\w+<[\w, ]+>)<<<(.*?)>>>\((.*?)\);", re.DOTALL)
    return launch.sub(r"launch_on_cpu(\2, [&] { \1(\3); });", source)


@pytest.fixture(scope="module", params=SOURCES)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not SOURCES[request.param].is_file():
        pytest.skip("the benchmarks are not installed")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "kernel.cpp").write_text(_on_cpu(SOURCES[request.param].read_text()))
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    includes = (f"-I{Path(__file__).parent}", f"-I{build.source_directory()}")
    command = (compiler, "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-pthread", *includes)
    done = subprocess.run(
        [*command, "kernel.cpp", "-o", "kernel.so"], cwd=folder, capture_output=True, text=True, check=False
    )
    if "std::barrier" in done.stderr or "'barrier' file not found" in done.stderr:
        pytest.skip(f"{compiler} lacks the barriers of C++20")
    assert done.returncode == 0, done.stderr
    result = ctypes.CDLL(str(folder / "kernel.so"))
    result.is_peer = request.param == "peer"
    return result


def _run(library: ctypes.CDLL, direction: str, **tensors: Tensor) -> None:
    value, locations = tensors["value"], tensors["locations"]
    flat = (ctypes.c_int64 * (2 * len(SHAPES)))(*(size for shape in SHAPES for size in shape))
    sizes = (*value.shape, locations.shape[1], locations.shape[3], locations.shape[4])
    scratch = torch.full(value.shape, 7.0)  # the kernel zeroes it
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    arguments = Arguments(
        ABI, DTYPES[value.dtype], *sizes, ctypes.addressof(flat), scratch=scratch.data_ptr(), **addresses
    )
    assert getattr(library, f"wb_deform_attn_{direction}")(ctypes.byref(arguments)) == 0


@pytest.mark.parametrize(
    ("dtype", "channels", "points"),
    [
        *((torch.float32, channels, 2) for channels in (1, 3, 8, 16, 32, 64, 132)),
        (torch.float32, 8, 30),  # fewer pairs a block than threads would allow
        *((torch.bfloat16, channels, 3) for channels in (5, 16, 32, 64)),
        (torch.float16, 32, 3),
    ],
    ids=str,
)
def test_it_computes_right(library: ctypes.CDLL, dtype: torch.dtype, channels: int, points: int) -> None:
    if library.is_peer and (dtype == torch.float16 or channels % 32 or points > 3):
        pytest.skip("the peer is for the benchmark's shapes")
    value = torch.randn(2, sum(height * width for height, width in SHAPES), 3, channels).to(dtype)
    sizes = (2, 5, 3, len(SHAPES), points)
    locations, weights = torch.rand(*sizes, 2) * 1.6 - 0.3, torch.randn(sizes)
    locations[:, 0, 0] = 1e30
    output, grad_output = (
        torch.empty(2, 5, 3 * channels, dtype=dtype),
        torch.randn(2, 5, 3 * channels).to(dtype),
    )
    grads = [torch.empty_like(tensor) for tensor in (value, locations, weights)]
    inputs = {"value": value, "locations": locations, "weights": weights}
    _run(library, "forward", **inputs, output=output)
    names = ("grad_value", "grad_locations", "grad_weights")
    _run(library, "backward", **inputs, grad_output=grad_output, **dict(zip(names, grads, strict=True)))

    leaves = [tensor.double().requires_grad_() for tensor in inputs.values()]
    exact = deform_attn_reference(leaves[0], SHAPES, *leaves[1:])
    rights = [exact, *torch.autograd.grad(exact, leaves, grad_output.double())]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for result, right in zip([output, *grads], rights, strict=True):
        right = right.detach()
        assert (result.double() - right).abs().max() <= tolerance * right.abs().max()
