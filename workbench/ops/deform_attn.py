"""Multi-scale deformable attention: one torch.library operator over every back end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from workbench.ops import backends
from workbench.ops.reference import deform_attn_reference, deform_attn_reference_backward

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_operators() -> Iterator[None]:
    """Run the unchecked reference, for exporters: its operators are torch's own, and sizes may be symbols."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample each head's feature maps at a few points a query and add them up, weighted.

    Deformable DETR (Zhu et al., 2021), equation 3, without the linear layers around it;
    :func:`deform_attn_reference` is the definition. The fastest back end that this machine has for the device runs it;
    WORKBENCH_OPS=reference|cpu|cuda forces one. It is differentiable once in all three tensors.

    Args:
        value: (B, S, M, D) float16, bfloat16, float32 or float64; S = sum of H*W over the levels, below 2^31.
        spatial_shapes: (H, W) of each of the L levels.
        sampling_locations: (B, Lq, M, L, P, 2) as (x, y), [0, 1] across the map; outside counts as 0.
            float32, or value's dtype; half precision cannot tell the pixels of a large map apart.
        attention_weights: (B, Lq, M, L, P), float32 or value's dtype; need not add up to 1.

    Returns:
        (B, Lq, M*D) in value's dtype. Half precision is accumulated in float32.

    Raises:
        ValueError: a shape or device that does not fit, naming the argument, the expected and the actual.
        TypeError: a dtype that does not fit.
    """
    if _plain.get():
        return deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)
    shapes = _check(value, spatial_shapes, sampling_locations, attention_weights)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    sampling_locations, attention_weights = sampling_locations.to(dtype), attention_weights.to(dtype)
    if not torch.compiler.is_compiling() and _is_reference(value):
        return deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)
    return torch.ops.workbench.deform_attn(value, shapes, sampling_locations, attention_weights)


def _is_reference(value: Tensor) -> bool:
    # Outside the operator autograd need not compute the reference's forward twice. Fake and meta tensors go to the
    # operator, which knows their shapes without a back end.
    real = type(value) in (Tensor, torch.nn.Parameter) and not value.is_meta
    return real and backends.choose(value.device, value.dtype) is None


def _check(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> list[int]:
    """Return the flattened spatial shapes; ValueError or TypeError where the arguments do not fit together."""
    if value.dim() != 4 or min(value.shape[2:]) < 1:
        raise ValueError(f"value: expected shape (B, S, M, D) with M, D >= 1, got {tuple(value.shape)}")
    shapes = [size for shape in spatial_shapes for size in shape]
    if len(shapes) < 2 or len(shapes) != 2 * len(spatial_shapes) or min(shapes) < 1:
        raise ValueError(f"spatial_shapes: expected one or more (H, W), each at least 1, got {spatial_shapes}")
    batch, pixels, heads, _ = value.shape
    total = sum(height * width for height, width in spatial_shapes)
    if total != pixels:
        raise ValueError(
            f"value: expected shape (B, {total}, M, D), as spatial_shapes has {total} pixels, got {tuple(value.shape)}"
        )
    if pixels >= 2**31:
        raise ValueError(f"value: expected fewer than 2^31 pixels, got {pixels}")
    queries = sampling_locations.shape[1] if sampling_locations.dim() == 6 else "Lq"
    points = sampling_locations.shape[4] if sampling_locations.dim() == 6 else "P"
    expected = (batch, queries, heads, len(spatial_shapes), points)
    for name, tensor, shape in (
        ("sampling_locations", sampling_locations, (*expected, 2)),
        ("attention_weights", attention_weights, expected),
    ):
        if tensor.shape != shape or points == 0:
            text = ", ".join(map(str, shape))
            raise ValueError(f"{name}: expected shape ({text}) with P >= 1, got {tuple(tensor.shape)}")
        if tensor.device != value.device:
            raise ValueError(f"{name}: expected device {value.device}, as value, got {tensor.device}")
        if tensor.dtype == torch.float64 and value.dtype != torch.float64 or not tensor.is_floating_point():
            raise TypeError(f"{name}: expected {value.dtype}, as value, or torch.float32, got {tensor.dtype}")
    if not value.is_floating_point():
        raise TypeError(f"value: expected a floating dtype, got {value.dtype}")
    return shapes


def _pairs(shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(shapes[::2], shapes[1::2], strict=True))


# `define` and `impl` rather than `custom_op`, which imports torch._dynamo, seconds of it, at the first call.
torch.library.define(
    "workbench::deform_attn",
    "(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "workbench::deform_attn_backward",
    "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("workbench::deform_attn", "CompositeExplicitAutograd")
def _forward(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    native = backends.choose(value.device, value.dtype)
    if native is None:
        return deform_attn_reference(value, _pairs(spatial_shapes), locations, weights)
    return native.forward(value.contiguous(), spatial_shapes, locations.contiguous(), weights.contiguous())


@torch.library.impl("workbench::deform_attn_backward", "CompositeExplicitAutograd")
def _backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    native = backends.choose(value.device, value.dtype)
    if native is None:
        return deform_attn_reference_backward(grad_output, value, _pairs(spatial_shapes), locations, weights)
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    return native.backward(grad_output.contiguous(), value, spatial_shapes, locations, weights)


@torch.library.register_fake("workbench::deform_attn")
def _(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, locations.shape[1], heads * channels))


@torch.library.register_fake("workbench::deform_attn_backward")
def _(grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))


def _save(ctx, inputs, output) -> None:
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx, grad_output: Tensor):
    value, locations, weights = ctx.saved_tensors
    backward = torch.ops.workbench.deform_attn_backward
    grad_value, grad_locations, grad_weights = backward(grad_output, value, ctx.spatial_shapes, locations, weights)
    return grad_value, None, grad_locations, grad_weights


torch.library.register_autograd("workbench::deform_attn", _differentiate, setup_context=_save)
