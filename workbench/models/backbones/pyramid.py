"""Channels and strides of a backbone's feature maps, measured on a dry run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torchvision.ops import FrozenBatchNorm2d

STAGES = ("res2", "res3", "res4", "res5")


class FeatureShape(NamedTuple):
    """Channels and stride (input pixels a feature pixel) of one feature map."""

    channels: int
    stride: int


class PyramidError(ValueError):
    """A backbone whose feature maps do not form the pyramid that a pixel decoder needs."""


def dry_run(module: nn.Module, height: int, width: int) -> Any:
    """Return what a module makes of an image (1, 3, height, width), as meta tensors, which hold no data."""
    on_meta = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return functional_call(module, on_meta, (torch.empty(1, 3, height, width, device="meta"),))
    finally:
        for part, training in modes:
            part.training = training


def measure(backbone: nn.Module, size: int = 256) -> dict[str, FeatureShape]:
    """Return channels and strides of a backbone's outputs, from a :func:`dry_run`.

    Args:
        backbone: maps (B, 3, H, W) to {name: (B, C, H / stride, W / stride)}; it is not changed.
        size: height and width of the image, a multiple of every stride.

    Raises:
        PyramidError: the backbone returns something else than a dict.
    """
    features = dry_run(backbone, size, size)
    if not isinstance(features, Mapping):
        raise PyramidError(f"a backbone returns a dict of feature maps, not {type(features).__name__}")
    return {name: FeatureShape(f.shape[1], round(size / f.shape[2])) for name, f in features.items()}


def freeze_stages(backbone: nn.Module, stages: Sequence[Sequence[str]], freeze_at: int) -> None:
    """Freeze the first ``freeze_at`` of a backbone's stages, as detectron2 does; the stem is the first.

    Their parameters get no gradients, and their batch norms become ``FrozenBatchNorm2d``, whose statistics stay.

    Args:
        backbone: changed in place, before its weights are loaded.
        stages: names of the modules of each stage.
        freeze_at: 0 freezes nothing.

    Raises:
        PyramidError: there are fewer stages.
    """
    if freeze_at > len(stages):
        raise PyramidError(f"it has {len(stages)} stages with its stem, so {freeze_at} of them cannot be frozen")
    for name in (name for stage in stages[:freeze_at] for name in stage):
        frozen = backbone.get_submodule(name).requires_grad_(False)
        for inner, module in list(frozen.named_modules(prefix=name)):
            if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                backbone.set_submodule(inner, FrozenBatchNorm2d(module.num_features, module.eps))


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
