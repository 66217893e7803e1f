"""The image size and the queries that a dataset needs, each with its reason."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

CELL = 4  # pixels: the stride of the mask logits
_ACROSS = 16  # pixels that an object should measure across: four cells of the mask logits
STEP = 32  # what image sizes are multiples of
SMALLEST = 128  # pixels


class Choice(NamedTuple):
    """A value for a config, and why it is this one."""

    value: int
    reason: str


def image_size(relative: np.ndarray, edges: np.ndarray, largest: int | None = None) -> Choice:
    """Choose the size at which nine of ten objects measure 16 pixels or more across, no larger than the images are.

    Args:
        relative: (N,) the root of each object's area over its image's longest edge.
        edges: (M,) each image's longest edge, pixels.
        largest: what the machine is fit for, pixels; None where that does not matter.
    """
    needed = round_up(_ACROSS / max(_small(relative), 1e-6))
    own = round_up(float(np.median(edges)))
    size = max(SMALLEST, min(needed, own, largest or own))
    measured = across(relative, size)
    if needed <= size:
        return Choice(size, measured)
    limit = "which this machine is fit for" if (largest or own) < own else "which the images have"
    return Choice(size, f"{measured}; {needed} would give {_ACROSS}, but this is the most {limit}")


def across(relative: np.ndarray, size: int) -> str:
    """Return how large objects are at an image size, in words, and what to do where that is too small to be learnt;
    arguments as of :func:`image_size`."""
    pixels = _small(relative) * size
    text = f"nine of ten objects are then at least {pixels:.0f} pixels across"
    if pixels >= CELL:
        return text
    return f"{text}, too few to be learnt well: cut images into parts, about {math.ceil(2 * CELL / pixels)} a side"


def _small(relative: np.ndarray) -> float:
    return float(np.quantile(relative, 0.1)) if len(relative) else 1.0


def queries(objects: np.ndarray) -> Choice:
    """Choose the queries from the objects of each image, (M,): twice as many as the fullest images hold, at least 12,
    and never fewer than the most."""
    most, high = int(objects.max(initial=0)), float(np.quantile(objects, 0.99)) if len(objects) else 0.0
    value = max(12, math.ceil(2 * high), math.ceil(1.2 * most))
    value = math.ceil(value / 4) * 4
    return Choice(value, f"an image holds {np.mean(objects):.1f} objects on average and {most} at most")


def round_up(pixels: float) -> int:
    """Return the next image size that is a multiple of 32."""
    return int(min(math.ceil(pixels / STEP) * STEP, 1 << 16))
