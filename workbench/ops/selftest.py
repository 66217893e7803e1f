"""The operators' self-test: which back ends this machine has, how each was built, and its error against float64."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.ops import backends
from workbench.ops.native import Native
from workbench.ops.reference import deform_attn_reference

FORWARD_TOLERANCE, BACKWARD_TOLERANCE = 1e-5, 1e-4  # float32, of the largest element
_SHAPES = ((12, 9), (6, 5), (3, 1))


def run_selftest() -> dict:
    """Build what can be built here and check it. A back end that cannot be built is reported, not raised.

    Returns:
        "in_use": {device type: back end}; "forced": WORKBENCH_OPS or None; "unavailable": {back end: why};
        "builds": one dict a compiled back end: name, compiler, why (this compiler), seconds (of compiling), cached
        (whether the cache had it), library (path);
        "checks": one dict a back end and instruction set: backend, device, forward and backward (largest error over
        the largest element of the float64 reference), passed.
    """
    forced = backends.forced()
    result = {"in_use": {}, "forced": forced, "builds": [], "unavailable": {}, "checks": []}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        result["in_use"][device] = "reference"
        result["checks"].append(_check(None, device, "reference"))
        try:
            native = backends.load(device)
        except WorkbenchError as error:
            result["unavailable"][device] = str(error)
            continue
        if forced in (None, device):
            result["in_use"][device] = device
        result["builds"].append(asdict(native.build) | {"library": str(native.build.library)})
        result["checks"] += _check_native(native, device)
    if "cuda" not in devices:
        result["unavailable"]["cuda"] = "torch sees no CUDA device."
    return result


def format_selftest(result: dict) -> str:
    """Return the result of :func:`run_selftest` as lines of text."""
    lines = []
    for device, name in result["in_use"].items():
        forced = f" (forced by WORKBENCH_OPS={result['forced']})" if result["forced"] else ""
        lines.append(f"deform_attn on {device}: {name} back end{forced}")
    for build in result["builds"]:
        state = "in the cache, built" if build["cached"] else "built now"
        lines.append(f"  {build['name']}: {state} in {build['seconds']:.1f} s with {build['compiler']}; {build['why']}")
        lines.append(f"    {build['library']}")
    for check in result["checks"]:
        verdict = "passed" if check["passed"] else "FAILED"
        lines.append(
            f"  check {check['backend']} on {check['device']}: {verdict}, forward {check['forward']:.1e}, "
            f"backward {check['backward']:.1e} of float64"
        )
    lines += [f"  {name}: not available: {why}" for name, why in result["unavailable"].items()]
    return "\n".join(lines)


def build_ops(force: bool = False) -> str:
    """Build what this machine can build and return the result of the self-test as text.

    Args:
        force: also compile what the cache has.

    Raises:
        WorkbenchError: a back end fails its check, so that training with it would go wrong.
    """
    if force:
        backends.forget(rebuild=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the result says the same
        result = run_selftest()
    failed = [check["backend"] for check in result["checks"] if not check["passed"]]
    if failed:
        raise WorkbenchError(
            f"deform_attn computes wrong numbers with {', '.join(failed)}; set WORKBENCH_OPS=reference and "
            f"report this:\n{format_selftest(result)}"
        )
    return format_selftest(result)


def _inputs(device: str) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels, heads, channels, queries, points = sum(h * w for h, w in _SHAPES), 3, 20, 50, 4
    value = torch.randn(2, pixels, heads, channels, generator=generator)
    locations = torch.rand(2, queries, heads, len(_SHAPES), points, 2, generator=generator) * 1.5 - 0.25
    weights = torch.rand(2, queries, heads, len(_SHAPES), points, generator=generator)
    grad_output = torch.randn(2, queries, heads * channels, generator=generator)
    return [tensor.to(device) for tensor in (value, locations, weights)], grad_output.to(device)


def _reference(inputs: list[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        output = deform_attn_reference(leaves[0], _SHAPES, leaves[1], leaves[2])
        return output.detach(), *torch.autograd.grad(output, leaves, grad_output)


def _check_native(native: Native, device: str) -> list[dict]:
    if device != "cpu":
        return [_check(native, device, device)]
    chosen, checks = native.isa, []
    for name, isa in native.instruction_sets().items():
        native.isa = isa
        checks.append(_check(native, device, f"cpu ({name})"))
    native.isa = chosen
    return checks


def _check(native: Native | None, device: str, name: str) -> dict:
    inputs, grad_output = _inputs(device)
    exact = _reference([tensor.double() for tensor in inputs], grad_output.double())
    if native is None:
        results = _reference(inputs, grad_output)
    else:
        flat = [size for shape in _SHAPES for size in shape]
        value, locations, weights = inputs
        output = native.forward(value, flat, locations, weights)
        results = output, *native.backward(grad_output, value, flat, locations, weights)
    errors = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(results, exact, strict=True)]
    forward, backward = errors[0], max(errors[1:])
    passed = forward <= FORWARD_TOLERANCE and backward <= BACKWARD_TOLERANCE
    return {"backend": name, "device": device, "forward": forward, "backward": backward, "passed": passed}
