"""Masks and their COCO encodings: polygons, compressed and uncompressed run lengths."""

from __future__ import annotations

import math

import contourpy
import numpy as np
from pycocotools import mask as coco_mask

from workbench.errors import WorkbenchError


def encode_mask(mask: np.ndarray) -> dict:
    """(H, W) bool or 0/1 array -> compressed RLE ``{"size": [H, W], "counts": str}``, ready for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def encode_uncompressed(mask: np.ndarray) -> dict:
    """(H, W) bool array -> uncompressed RLE ``{"size": [H, W], "counts": [int, ...]}``: column by column, the
    first count is of zeros (it is 0 when the first pixel is set)."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(bounds).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": counts}


def encode_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """(H, W) bool array -> COCO polygons that decode to exactly this mask, one for each 4-connected part.

    A polygon joins the middles of the pixel sides that bound its part, in COCO's coordinates (pixel (0, 0) covers
    0..1). None where polygons cannot say it: the mask is empty or has a hole.
    """
    height, width = mask.shape
    padded = np.pad(np.asarray(mask, dtype=np.float32), 1)
    tracer = contourpy.contour_generator(np.arange(width + 2) - 0.5, np.arange(height + 2) - 0.5, padded)
    polygons = []
    for line in tracer.lines(0.51):  # a little above one half, so that pixels that touch at a corner stay apart
        points = np.round(2 * line[:-1]) / 2
        steps = np.diff(points, axis=0, append=points[:1])
        polygons.append(points[(steps != np.roll(steps, 1, axis=0)).any(axis=1)].ravel().tolist())
    return polygons if polygons and np.array_equal(decode_mask(polygons, height, width), mask) else None


def segmentation_problem(segmentation: object, height: int, width: int) -> tuple[str, str] | None:
    """Why ``segmentation`` cannot be decoded on a (height, width) image, as (kind, what is wrong); None
    when it can.

    Everything is checked here before pycocotools' C code sees it: that code trusts its input.
    """
    if isinstance(segmentation, list):
        return _polygon_problem(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _rle_problem(segmentation, height, width)
    return (
        "segmentation",
        f"its segmentation is {type(segmentation).__name__}, not a list of polygons or an RLE",
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _polygon_problem(polygons: list, height: int, width: int) -> tuple[str, str] | None:
    if not polygons:
        return "empty mask", "its segmentation is an empty list"
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
            return "segmentation", f"polygon {number} is not a flat list of numbers"
        if not all(map(math.isfinite, polygon)):
            return "not a number", f"polygon {number} has a coordinate that is NaN or infinite"
        if len(polygon) < 6 or len(polygon) % 2:
            return "degenerate polygon", (
                f"polygon {number} has {len(polygon)} coordinates; it takes an even number, 6 or more"
            )
        if len(set(zip(polygon[::2], polygon[1::2], strict=True))) < 3:
            return "degenerate polygon", f"polygon {number} has fewer than 3 different points"
        if max(map(abs, polygon)) > 10 * (height + width):  # drawing it would take time and memory without end
            return "mask outside image", f"polygon {number} has a coordinate far outside the image"
    return None


def _rle_problem(rle: dict, height: int, width: int) -> tuple[str, str] | None:
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(map(_is_number, size))):
        return "segmentation", "its RLE has no size [height, width]"
    if [size[0], size[1]] != [height, width]:
        return (
            "mask size",
            f"its RLE is {size[0]}x{size[1]} but the image is {height}x{width} (height x width)",
        )
    if isinstance(counts, list):
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts):
            return "segmentation", "its RLE counts are not all whole numbers of 0 or more"
        total = sum(counts)
    elif isinstance(counts, (str, bytes)):
        try:
            total = _compressed_total(counts)
        except (ValueError, UnicodeEncodeError):
            return "segmentation", "its compressed RLE is damaged"
    else:
        return "segmentation", "its RLE has no counts"
    if total != height * width:
        return "mask size", f"its RLE covers {total} pixels but the image has {height * width}"
    return None


def _compressed_total(counts: str | bytes) -> int:
    """Number of pixels a compressed RLE covers. COCO writes each run as 5-bit groups, least first, bit 5 set
    when more follow and bit 4 of the last as the sign; from the third run on as the difference to the run two
    before."""
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode("ascii") if isinstance(counts, str) else counts:
        byte -= 48
        if not 0 <= byte < 64 or shift > 60:
            raise ValueError("not a run length")
        value |= (byte & 31) << shift
        shift += 5
        if not byte & 32:
            if byte & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            if value < 0:
                raise ValueError("negative run")
            runs.append(value)
            value = shift = 0
    if shift:
        raise ValueError("cut short")
    return sum(runs)


def to_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Any COCO segmentation -> compressed RLE as pycocotools makes it (counts are bytes).

    WorkbenchError where it cannot be decoded (see :func:`segmentation_problem`).
    """
    problem = segmentation_problem(segmentation, height, width)
    if problem:
        raise WorkbenchError(f"A mask cannot be decoded: {problem[1]}.")
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def decode_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Any COCO segmentation -> (height, width) bool array, pixel for pixel what pycocotools gives."""
    return coco_mask.decode(to_rle(segmentation, height, width)).astype(bool)
