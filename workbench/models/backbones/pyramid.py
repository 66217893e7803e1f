"""Channels and strides of a backbone's feature maps, measured on a dry run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call

STAGES = ("res2", "res3", "res4", "res5")


class FeatureShape(NamedTuple):
    """Channels and stride (input pixels a feature pixel) of one feature map."""

    channels: int
    stride: int


class PyramidError(ValueError):
    """A backbone whose feature maps do not form the pyramid that a pixel decoder needs."""


def measure(backbone: nn.Module, size: int = 256) -> dict[str, FeatureShape]:
    """Return channels and strides of a backbone's outputs, from a run on meta tensors, which hold no data.

    Args:
        backbone: maps (B, 3, H, W) to {name: (B, C, H / stride, W / stride)}; it is not changed.
        size: height and width of the image, a multiple of every stride.

    Raises:
        PyramidError: the backbone returns something else than a dict.
    """
    on_meta = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        with torch.no_grad():
            features = functional_call(backbone, on_meta, (torch.empty(1, 3, size, size, device="meta"),))
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(features, Mapping):
        raise PyramidError(f"a backbone returns a dict of feature maps, not {type(features).__name__}")
    return {name: FeatureShape(f.shape[1], round(size / f.shape[2])) for name, f in features.items()}


def check_pyramid(shapes: Mapping[str, FeatureShape], table: str = "") -> None:
    """Raise PyramidError unless res2 to res5 have strides 4, 8, 16, 32, or 4, 8, 16, 16 or 4, 8, 8, 8 (dilated).

    A backbone may also end at res4, with strides 4, 8, 16.

    Args:
        shapes: from :func:`measure`.
        table: appended to the message: the backbone's layers, so that the right ones can be read off.
    """
    names = [name for name in STAGES if name in shapes]
    strides = tuple(shapes[name].stride for name in names)
    allowed = ((4, 8, 16, 32), (4, 8, 16, 16), (4, 8, 8, 8), (4, 8, 16))
    if strides not in allowed or tuple(names) != STAGES[: len(names)]:
        present = ", ".join(f"{name} {shape.channels} channels at 1/{shape.stride}" for name, shape in shapes.items())
        raise PyramidError(
            "the backbone's stages must have strides 4, 8, 16, 32 (or repeat the last one when dilated), "
            f"but they are: {present}.{table and chr(10)}{table}"
        )
