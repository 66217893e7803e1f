"""What `workbench init` chooses for a dataset and a machine: pure functions, each with its reason in words."""

from __future__ import annotations

import math

from workbench.data.needs import CELL, SMALLEST, STEP, Choice, round_up
from workbench.errors import counted
from workbench.training.estimate import GB, duration

_LEAST_STEPS = 1000  # with fewer, smaller images learn more in the same time
_FEWEST = 100
_PASSES = 100  # over the training images, after which more steps help little
_WORTHWHILE = (2000, 50000)  # least and most steps that are worth taking
_TRAINING = 0.8  # share of the time that steps get; evaluations and reading images take the rest


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
    fitting = int(size * math.sqrt(allowed / seconds)) // STEP * STEP
    return min(size, max(SMALLEST, round_up(size / 2), fitting))


def steps(images: int, per_step: int, seconds: float, minutes: float) -> Choice:
    """Choose how many steps: a hundred passes over ``images``, at least 2000, as far as the time allows.

    Args:
        images: of the training set. per_step: of a step. seconds: that a step takes. minutes: at hand.
    """
    wanted = min(max(_PASSES * images // per_step, _WORTHWHILE[0]), _WORTHWHILE[1])
    possible = int(minutes * 60 * _TRAINING / seconds)
    value = max(_FEWEST, min(wanted, possible) // 20 * 20)
    taken = f"{value * per_step / images:.0f} passes over {counted(images, 'image')} in {duration(value * seconds)}"
    if possible < wanted:
        needed = wanted * seconds / _TRAINING / 60
        taken += f" of {minutes:g} at hand; --minutes {needed:.0f} would give {wanted} steps"
    return Choice(value, f"{taken}; a step took {duration(seconds)} here")


def points(size: int) -> Choice:
    """Choose the points at which masks are compared, from the image size: half of the logits' cells, as published."""
    cells = (size // CELL) ** 2
    value = max(512, min(12544, cells // 2))
    return Choice(value, f"the masks have {cells} cells at this image size")


def workers(cores: int) -> Choice:
    """Choose the processes that read images, from the cores that this process may use."""
    value = min(4, cores - 2) if cores > 2 else 0
    return Choice(value, f"{cores} cores" + ", which the training itself needs" * (value == 0))
