"""Multi-scale deformable attention: ours against the PyTorch reference, and against what the machine could do at most.

    python benchmarks/deform_attn.py                 the CPU: time, ratio, peak extra memory, share of the ceiling
    python benchmarks/deform_attn.py --device cuda   a GPU: ours against the published design, one thread per channel

Ours and the peer take turns; each number is a median. Extra memory is the peak above the inputs, outputs and gradients
included. The CPU's ceiling is the time to touch the same rows of memory in the same order and do nothing with them
(backward: read one and add to another), plus the tensors' own bytes at the speed of a copy; the multiply-adds' share of
the measured peak stands beside it. The GPU's is the tensors' bytes, each once, at the speed of a copy.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from workbench.ops import backends, build, deform_attn, deform_attn_reference
from workbench.ops.native import Native

HEADS, POINTS = 8, 4
TURN = 5  # calls
PYRAMID = [(32, 32), (16, 16), (8, 8)]
LARGE = [(128, 128), (64, 64), (32, 32)]
CPU_CASES = {  # name: batch, channels a head, levels
    "B2 32²16²8² D32": (2, 32, PYRAMID),
    "B1 128²64²32² D32": (1, 32, LARGE),
    "B8 16²8²4² D16": (8, 16, [(16, 16), (8, 8), (4, 4)]),
    "B8 16²8²4² D8": (8, 8, [(16, 16), (8, 8), (4, 4)]),
}
NOTE = "time in ms, extra memory in MB, 'of ceiling' in percent"


def make_inputs(batch, channels, shapes, local: bool, device="cpu", dtype=torch.float32) -> list[Tensor]:
    """value, locations, weights of an encoder layer: uniform locations, or within a few pixels of each query's own."""
    generator = torch.Generator().manual_seed(0)
    pixels = sum(height * width for height, width in shapes)
    value = torch.randn(batch, pixels, HEADS, channels, generator=generator)
    sizes = (batch, pixels, HEADS, len(shapes), POINTS)
    weights = torch.randn(*sizes, generator=generator).flatten(3).softmax(-1).view(sizes)
    if local:
        own = [
            torch.stack(
                torch.meshgrid(
                    (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
                )[::-1],
                -1,
            ).view(-1, 2)
            for height, width in shapes
        ]
        extent = torch.tensor([(width, height) for height, width in shapes])[:, None]
        offsets = 2 * torch.randn(*sizes, 2, generator=generator) / extent
        locations = torch.cat(own)[None, :, None, None, None] + offsets
    else:
        locations = torch.rand(*sizes, 2, generator=generator)
    return [value.to(device, dtype), locations.to(device), weights.to(device)]


def take_turns(functions: list[Callable[[], None]], seconds: float) -> list[float]:
    """The median time of each, in ms, called in turn, a few times each, for about so many seconds."""
    for function in functions:
        function()
    times = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for function, taken in zip(functions, times, strict=True):
            for _ in range(TURN):  # the first finds the caches full of the peer's data, and its threads asleep
                start = time.perf_counter()
                function()
                taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def peak_memory(function: Callable[[], None]) -> float:
    """Peak resident memory above the present, in MB; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what free() kept would hide what the function needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def read(name: str) -> float:
        return int(status.read_text().split(f"{name}:")[1].split()[0]) / 1024

    before = read("VmRSS")
    function()
    return read("VmHWM") - before


# ---- the CPU's ceilings ----------------------------------------------------------------------------------------------


class Ceilings:
    """Measured limits of this machine (deform_attn_ceilings.cpp)."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        source = Path(__file__).with_name("deform_attn_ceilings.cpp")
        with tempfile.TemporaryDirectory() as folder:
            flags = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
            library = f"{folder}/ceilings.so"
            subprocess.run([build.cxx_compiler(), *flags, str(source), "-o", library], check=True)
            self.library = ctypes.CDLL(library)
        for name in ("touch", "copy", "multiply_add"):
            getattr(self.library, f"ceiling_{name}").restype = ctypes.c_double
        size = 1 << 28
        self.bytes_per_ms = 2e-3 * size / self.library.ceiling_copy(ctypes.c_int64(size), threads, 5)
        rounds = 1 << 22
        seconds = self.library.ceiling_multiply_add(ctypes.c_int64(rounds), threads, 5)
        self.fma_per_ms = 12e-3 * rounds * threads * self.library.ceiling_lanes() / seconds

    def touch_ms(self, inputs: list[Tensor], shapes, backward: bool) -> float:
        value, locations, _ = inputs
        batch, pixels, heads, channels = value.shape
        extent = torch.tensor([(width, height) for height, width in shapes])[:, None]
        cell = (locations * extent - 0.5).floor().clamp_min(0).minimum((extent - 2).clamp_min(0)).int()
        starts = torch.tensor([0, *(height * width for height, width in shapes)]).cumsum(0)[:-1].int()
        widths = extent[..., 0].int()
        pixel = (starts[:, None] + cell[..., 1] * widths + cell[..., 0]).transpose(1, 2).contiguous()
        steps = widths.expand(len(shapes), POINTS).repeat(locations.shape[1], 1, 1).contiguous()
        maps = value.transpose(1, 2).contiguous()
        grads = torch.zeros_like(maps)
        seconds = self.library.ceiling_touch(
            ctypes.c_void_p(maps.data_ptr()),
            ctypes.c_void_p(grads.data_ptr() if backward else None),
            ctypes.c_void_p(pixel.data_ptr()),
            ctypes.c_void_p(steps.data_ptr()),
            *(ctypes.c_int64(n) for n in (batch * heads, pixels, steps.numel(), channels)),
            self.threads,
            9,
        )
        return 1e3 * seconds

    def of_forward(self, inputs: list[Tensor], shapes) -> tuple[float, float]:
        """The least ms that a forward could take, and the ms of its multiply-adds alone."""
        value, locations, weights = inputs
        moved = sum(t.nbytes for t in inputs) + value.nbytes  # the output has value's size: a query a pixel
        arithmetic = 4 * weights.numel() * value.shape[-1] / self.fma_per_ms
        return self.touch_ms(inputs, shapes, False) + moved / self.bytes_per_ms, arithmetic

    def of_backward(self, inputs: list[Tensor], shapes) -> tuple[float, float]:
        value, locations, weights = inputs
        moved = 2 * sum(t.nbytes for t in inputs) + value.nbytes  # inputs, their gradients, the output's gradient
        arithmetic = 8 * weights.numel() * value.shape[-1] / self.fma_per_ms
        return self.touch_ms(inputs, shapes, True) + moved / self.bytes_per_ms, arithmetic


# ---- the tables ------------------------------------------------------------------------------------------------------


def on_cpu(seconds: float, only: str) -> None:
    native = backends.load("cpu")
    threads = torch.get_num_threads()
    ceilings = Ceilings(threads)
    print(
        f"{processor()}, {threads} threads, torch {torch.__version__}, {next(iter(native.instruction_sets()))}; {NOTE}"
    )
    print(f"measured ceilings: copy {ceilings.bytes_per_ms / 1e6:.1f} GB/s (read and written), ", end="")
    print(f"{2 * ceilings.fma_per_ms / 1e6:.0f} GFLOP/s in multiply-adds\n")
    row(
        *("case", "locations", "direction", "ours", "reference", "ratio", "extra", "its extra", "of it"),
        *("ceiling", "of ceiling", "of arithmetic"),
    )
    row(*["---"] * 12)
    for name, (batch, channels, shapes) in CPU_CASES.items():
        if only not in name:
            continue
        for local in (False, True):
            inputs = make_inputs(batch, channels, shapes, local)
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            grad_output = torch.randn(batch, inputs[0].shape[1], HEADS * channels)

            def forward(function, inputs=inputs, shapes=shapes):
                with torch.no_grad():
                    function(inputs[0], shapes, *inputs[1:])

            def both(function, leaves=leaves, shapes=shapes, grad_output=grad_output):
                torch.autograd.grad(function(leaves[0], shapes, *leaves[1:]), leaves, grad_output)

            for function in (deform_attn, deform_attn_reference):
                both(function)  # as in training: the allocator has seen the gradients, and keeps small blocks
            bounds = [ceilings.of_forward(inputs, shapes), ceilings.of_backward(inputs, shapes)]
            bounds[1] = tuple(a + b for a, b in zip(*bounds, strict=True))
            for direction, measure, (bound, arithmetic) in zip(
                ("forward", "forward+backward"), (forward, both), bounds, strict=True
            ):
                calls = [lambda m=measure: m(deform_attn), lambda m=measure: m(deform_attn_reference)]
                ours, peer = take_turns(calls, seconds)
                memory = [peak_memory(call) for call in calls]
                row(
                    name,
                    "local" if local else "uniform",
                    direction,
                    f"{ours:.2f}",
                    f"{peer:.1f}",
                    f"{peer / ours:.1f}x",
                    f"{memory[0]:.1f}",
                    f"{memory[1]:.1f}",
                    f"1/{memory[1] / max(memory[0], 0.1):.1f}",
                    f"{bound:.2f}",
                    f"{100 * bound / ours:.0f} %",
                    f"{100 * arithmetic / ours:.0f} %",
                )


def on_cuda(seconds: float) -> None:
    from workbench.ops.cuda import cuda_recipe

    ours = backends.load("cuda")
    file = Path(__file__).resolve().with_name("deform_attn_baseline.cu")
    peer = Native(build.build(cuda_recipe(name="cuda-baseline", file=file)))
    bytes_per_ms = gpu_copy()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {NOTE}")
    print(f"measured ceiling: copy {bytes_per_ms / 1e6:.0f} GB/s (read and written)\n")
    row(
        "case",
        "dtype",
        "locations",
        "direction",
        "ours",
        "published design",
        "ratio",
        "ceiling",
        "of ceiling",
    )
    row(*["---"] * 9)
    flat = [size for shape in LARGE for size in shape]
    for dtype in (torch.float32, torch.bfloat16):
        for local in (False, True):
            value, locations, weights = make_inputs(8, 32, LARGE, local, "cuda", dtype)
            grad_output = torch.randn(8, value.shape[1], HEADS * 32, device="cuda").to(dtype)

            def forward(native, inputs=(value, flat, locations, weights)):
                native.forward(*inputs)

            def both(native, inputs=(value, flat, locations, weights), grad_output=grad_output):
                native.forward(*inputs)
                native.backward(grad_output, *inputs)

            once = 2 * value.nbytes + locations.nbytes + weights.nbytes
            twice = once + value.nbytes + 2 * (value.nbytes + locations.nbytes + weights.nbytes)
            for direction, moved, call in (("forward", once, forward), ("forward+backward", twice, both)):
                mine, its = gpu_ms([lambda c=call: c(ours), lambda c=call: c(peer)], seconds)
                bound = moved / bytes_per_ms
                row(
                    "B8 128²64²32² D32",
                    str(dtype).removeprefix("torch."),
                    "local" if local else "uniform",
                    direction,
                    f"{mine:.3f}",
                    f"{its:.3f}",
                    f"{its / mine:.1f}x",
                    f"{bound:.3f}",
                    f"{100 * bound / mine:.0f} %",
                )


def gpu_copy() -> float:
    """Bytes read and written a ms by a copy far larger than the caches."""
    big = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(big)
    return 2 * big.nbytes / gpu_ms([lambda: other.copy_(big)], 1)[0]


def gpu_ms(functions: list[Callable[[], object]], seconds: float) -> list[float]:
    """As take_turns, by the GPU's own clock."""
    times = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 10:
        for function, taken in zip(functions, times, strict=True):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            stop.record()
            stop.synchronize()
            taken.append(start.elapsed_time(stop))
    return [statistics.median(taken[3:]) for taken in times]


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), "processor")


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=2, help="of measuring a row (default 2)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--case", default="", help="only the CPU's cases whose name contains this, such as B2")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no NVIDIA GPU that torch can use.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        on_cuda(arguments.seconds)
    else:
        on_cpu(arguments.seconds, arguments.case)


if __name__ == "__main__":
    main()
