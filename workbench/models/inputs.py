"""Batched inputs on their way into a model: images and targets as padded tensors, labels checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError


def collate_images(
    batched_inputs: Sequence[Mapping[str, Any]], pixel_mean: Tensor, pixel_std: Tensor, size_divisibility: int = 32
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Normalise the images of a batch and pad them at the right and bottom with zeros, the mean colour.

    Args:
        batched_inputs: one mapping an image, ``image`` (3, H, W) RGB 0-255 of any dtype and size.
        pixel_mean, pixel_std: (3, 1, 1) float32 on the device that the images are moved to.
        size_divisibility: height and width of the batch are multiples of it.

    Returns:
        (B, 3, H', W') float32, and each image's own (height, width).
    """
    sizes = [tuple(inputs["image"].shape[-2:]) for inputs in batched_inputs]
    height, width = (-(-max(size[axis] for size in sizes) // size_divisibility) * size_divisibility for axis in (0, 1))
    batch = pixel_mean.new_zeros(len(sizes), 3, height, width)
    for image, inputs, (h, w) in zip(batch, batched_inputs, sizes, strict=True):
        pixels = inputs["image"].to(pixel_mean.device, torch.float32, non_blocking=True)
        image[:, :h, :w] = (pixels - pixel_mean) / pixel_std
    return batch, sizes


def collate_targets(
    batched_inputs: Sequence[Mapping[str, Any]],
    images: Tensor,
    num_classes: int,
    num_subcategory_classes: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Check the labels of a batch, move its targets to the device of ``images`` and pad the masks to their size.

    Args:
        batched_inputs: one mapping an image, whose ``targets`` are ``labels`` (N,) int64, ``masks`` (N, H, W) bool and
            ``subcategories`` {name: (N,) int64, -1 unlabelled}.
        images: (B, 3, H', W'), from :func:`collate_images`.
        num_classes, num_subcategory_classes: as for :func:`check_labels`.

    Returns:
        the same three keys for each image, ``masks`` (N, H', W').
    """
    check_labels(batched_inputs, num_classes, num_subcategory_classes)
    collated = []
    for targets in (inputs["targets"] for inputs in batched_inputs):
        masks = targets["masks"].to(images.device, non_blocking=True)
        padding = (0, images.shape[-1] - masks.shape[-1], 0, images.shape[-2] - masks.shape[-2])
        collated.append(
            {
                "labels": targets["labels"].to(images.device, non_blocking=True),
                "masks": F.pad(masks, padding),
                "subcategories": {
                    name: targets["subcategories"][name].to(images.device, non_blocking=True)
                    for name in num_subcategory_classes
                },
            }
        )
    return collated


def check_labels(
    batched_inputs: Sequence[Mapping[str, Any]], num_classes: int, num_subcategory_classes: Mapping[str, int]
) -> None:
    """Raise WorkbenchError for a label that would index outside a head, before a device can assert on it."""
    for position, inputs in enumerate(batched_inputs):
        targets = inputs["targets"]
        checks = [("the main category", targets["labels"], 0, num_classes - 1)]
        for name, classes in num_subcategory_classes.items():
            if name not in targets["subcategories"]:
                raise WorkbenchError(f"{_where(inputs, position)} has no labels for subcategory {name!r}")
            checks.append((f"subcategory {name!r}", targets["subcategories"][name], -1, classes - 1))
        for what, labels, low, high in checks:
            wrong = ((labels < low) | (labels > high)).nonzero()
            if len(wrong):
                row = int(wrong[0])
                ids = targets.get("annotation_ids")
                annotation = f"annotation {int(ids[row])}" if ids is not None else f"object {row}"
                raise WorkbenchError(
                    f"{_where(inputs, position)}, {annotation}: label {int(labels[row])} of {what} is outside "
                    f"{low}..{high}{' (-1 is unlabelled)' if low < 0 else ''}"
                )


def _where(inputs: Mapping[str, Any], position: int) -> str:
    named = [f"image {inputs['image_id']}" if "image_id" in inputs else f"image at position {position} of the batch"]
    if "file_name" in inputs:
        named.append(f"({inputs['file_name']})")
    return " ".join(named)
