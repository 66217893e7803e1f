"""What `workbench init` chooses for a dataset and a machine: pure functions, each with its reason in words."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from workbench.training.estimate import GB, duration

_CELL = 4  # pixels: the stride of the mask logits
_ACROSS = 16  # pixels that an object should measure across: four cells of the mask logits
_STEP = 32  # what image sizes are multiples of
_LEAST_STEPS = 1000  # with fewer, smaller images learn more in the same time
_FEWEST = 100
_PASSES = 100  # over the training images, after which more steps help little
_SMALLEST, _WORTHWHILE = 128, (2000, 50000)  # pixels; least and most steps that are worth taking
_TRAINING = 0.8  # share of the time that steps get; evaluations and reading images take the rest


class Choice(NamedTuple):
    """A value for a config, and why it is this one."""

    value: int
    reason: str


def image_size(relative: np.ndarray, edges: np.ndarray, largest: int) -> Choice:
    """Choose the size at which nine of ten objects measure 16 pixels or more across, no larger than the images are.

    Args:
        relative: (N,) the root of each object's area over its image's longest edge.
        edges: (M,) each image's longest edge, pixels.
        largest: what the machine is fit for, pixels.
    """
    needed = _up(_ACROSS / max(_small(relative), 1e-6))
    own = _up(float(np.median(edges)))
    size = max(_SMALLEST, min(needed, own, largest))
    measured = across(relative, size)
    if needed <= size:
        return Choice(size, measured)
    limit = "which this machine is fit for" if largest < own else "which the images have"
    return Choice(size, f"{measured}; {needed} would give {_ACROSS}, but this is the most {limit}")


def across(relative: np.ndarray, size: int) -> str:
    """Return how large objects are at an image size, in words, and what to do where that is too small to be learnt;
    arguments as of :func:`image_size`."""
    pixels = _small(relative) * size
    text = f"nine of ten objects are then at least {pixels:.0f} pixels across"
    if pixels >= _CELL:
        return text
    return f"{text}, too few to be learnt well: cut images into parts, about {math.ceil(2 * _CELL / pixels)} a side"


def _small(relative: np.ndarray) -> float:
    return float(np.quantile(relative, 0.1)) if len(relative) else 1.0


def queries(objects: np.ndarray) -> Choice:
    """Choose the queries from the objects of each image, (M,): twice as many as the fullest images hold, at least 12,
    and never fewer than the most."""
    most, high = int(objects.max(initial=0)), float(np.quantile(objects, 0.99)) if len(objects) else 0.0
    value = max(12, math.ceil(2 * high), math.ceil(1.2 * most))
    value = math.ceil(value / 4) * 4
    return Choice(value, f"an image holds {np.mean(objects):.1f} objects on average and {most} at most")


def batch(wanted: int, kept: float, fixed: float, free: float) -> Choice:
    """Choose the images of a step: ``wanted``, halved until a step takes at most 60 % of the free memory.

    Args:
        wanted: images, a power of two.
        kept: bytes that one image takes. fixed: bytes that gradients and optimiser take. free: bytes of memory.
    """
    value = wanted
    while value > 1 and fixed + value * kept > 0.6 * free:
        value //= 2
    return Choice(value, f"a step takes about {(fixed + value * kept) / GB:.1f} of {free / GB:.1f} GB that are free")


def smaller_for_time(size: int, seconds: float, minutes: float, reading: float = 0.0) -> int:
    """Return the image size at which the time allows a thousand steps, between ``size`` and its half: what objects
    need is not given up for time.

    Args:
        size: pixels.
        seconds: that a step takes at ``size``.
        minutes: at hand.
        reading: seconds of reading images that come on top of a step's at any size; at most half of the time is
            left to them, as a smaller image makes them no shorter.
    """
    allowed = minutes * 60 * _TRAINING / _LEAST_STEPS
    allowed -= min(reading, allowed / 2)
    if seconds <= allowed:
        return size
    fitting = int(size * math.sqrt(allowed / seconds)) // _STEP * _STEP
    return min(size, max(_SMALLEST, _up(size / 2), fitting))


def steps(images: int, per_step: int, seconds: float, minutes: float) -> Choice:
    """Choose how many steps: a hundred passes over ``images``, at least 2000, as far as the time allows.

    Args:
        images: of the training set. per_step: of a step. seconds: that a step takes. minutes: at hand.
    """
    wanted = min(max(_PASSES * images // per_step, _WORTHWHILE[0]), _WORTHWHILE[1])
    possible = int(minutes * 60 * _TRAINING / seconds)
    value = max(_FEWEST, min(wanted, possible) // 20 * 20)
    taken = f"{value * per_step / images:.0f} passes over {images} images in {duration(value * seconds)}"
    if possible < wanted:
        needed = wanted * seconds / _TRAINING / 60
        taken += f" of {minutes:g} at hand; --minutes {needed:.0f} would give {wanted} steps"
    return Choice(value, f"{taken}; a step took {duration(seconds)} here")


def points(size: int) -> Choice:
    """Choose the points at which masks are compared, from the image size: half of the logits' cells, as published."""
    cells = (size // _CELL) ** 2
    value = max(512, min(12544, cells // 2))
    return Choice(value, f"the masks have {cells} cells at this image size")


def workers(cores: int) -> Choice:
    """Choose the processes that read images, from the cores that this process may use."""
    value = min(4, cores - 2) if cores > 2 else 0
    return Choice(value, f"{cores} cores" + ", which the training itself needs" * (value == 0))


def _up(pixels: float) -> int:
    return int(min(math.ceil(pixels / _STEP) * _STEP, 1 << 16))
