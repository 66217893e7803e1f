"""Outlines of masks as COCO polygons."""

from __future__ import annotations

import numpy as np

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEP = ((1, 0), (0, 1), (-1, 0), (0, -1))


def trace_loops(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of an (H, W) bool mask, each (P, 2) float (x, y) at the middles of the pixel sides it
    runs along, in COCO's coordinates (pixel (0, 0) covers 0..1).

    The walk keeps set pixels on its right, so outer outlines run clockwise on the screen (positive
    :func:`loop_area`) and outlines of holes counter-clockwise (negative). Pixels that touch only at a
    corner are kept apart (4-connectivity).
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    inside = padded[1:-1, 1:-1]
    sides: dict[tuple[int, int], int] = {}  # corner -> bit set of the directions that leave it
    for direction, neighbour, (dx, dy) in (
        (_RIGHT, padded[:-2, 1:-1], (0, 0)),
        (_DOWN, padded[1:-1, 2:], (1, 0)),
        (_LEFT, padded[2:, 1:-1], (1, 1)),
        (_UP, padded[1:-1, :-2], (0, 1)),
    ):
        ys, xs = np.nonzero(inside & ~neighbour)
        for corner in zip((xs + dx).tolist(), (ys + dy).tolist(), strict=True):
            sides[corner] = sides.get(corner, 0) | 1 << direction

    loops = []
    while sides:
        corner = next(iter(sides))
        direction = sides[corner].bit_length() - 1
        points = []
        while sides.get(corner):
            leaving = sides[corner]
            for turn in (1, 0, 3):  # right first: it stays at the same pixel
                if leaving >> (direction + turn) % 4 & 1:
                    direction = (direction + turn) % 4
                    break
            if leaving == 1 << direction:
                del sides[corner]
            else:
                sides[corner] = leaving & ~(1 << direction)
            dx, dy = _STEP[direction]
            points.append((corner[0] + dx / 2, corner[1] + dy / 2))
            corner = (corner[0] + dx, corner[1] + dy)
        loops.append(np.array(points))
    return loops


def loop_area(loop: np.ndarray) -> float:
    """Signed area of a closed (P, 2) outline (shoelace); positive when it runs clockwise on the screen."""
    x, y = loop[:, 0], loop[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def simplify_loop(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """Drop points of a closed outline that lie within ``tolerance`` pixels of the line they are dropped for
    (Douglas and Peucker 1973)."""
    count = len(loop)
    if count <= 4:
        return loop
    # A closed line has no ends: start from the two points farthest apart from point 0 and from each other.
    first = int(np.argmax(((loop - loop[0]) ** 2).sum(1)))
    loop = np.roll(loop, -first, axis=0)
    far = int(np.argmax(((loop - loop[0]) ** 2).sum(1)))
    closed = np.concatenate([loop, loop[:1]])
    keep = np.zeros(count + 1, dtype=bool)
    keep[[0, far, count]] = True
    stack = [(0, far), (far, count)]
    while stack:
        start, end = stack.pop()
        if end - start < 2:
            continue
        line = closed[end] - closed[start]
        offsets = closed[start + 1 : end] - closed[start]
        length = float(np.hypot(*line))
        if length:
            distance = np.abs(offsets[:, 0] * line[1] - offsets[:, 1] * line[0]) / length
        else:
            distance = np.hypot(offsets[:, 0], offsets[:, 1])
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance:
            middle = start + 1 + worst
            keep[middle] = True
            stack += [(start, middle), (middle, end)]
    return loop[keep[:-1]]


def mask_to_polygons(mask: np.ndarray, tolerance: float = 0.45) -> list[list[float]] | None:
    """COCO polygons of a bool mask, one per part, coordinates rounded to 0.01 pixel; None where the mask is
    empty, has a hole or a part too small for an outline: such a mask needs an RLE."""
    polygons = []
    for loop in trace_loops(mask):
        if loop_area(loop) < 6:  # holes are negative
            return None
        points = simplify_loop(loop, tolerance)
        if len(points) < 3:
            return None
        polygons.append([round(float(value), 2) for value in points.ravel()])
    return polygons or None
