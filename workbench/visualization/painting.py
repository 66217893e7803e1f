"""Pixels: pieces of masks painted on a canvas, with their contours and the lines to their captions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from workbench.visualization.captions import Colour


class Piece(NamedTuple):
    """The part of an object's mask that is set, (h, w) bool, and its top left corner on the canvas."""

    mask: np.ndarray
    x: int
    y: int


def cut_out(mask: np.ndarray | torch.Tensor, scale: int) -> Piece | None:
    """Return the piece of an (H, W) bool mask on a canvas enlarged by ``scale``; None for an empty mask."""
    mask = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    mask = mask.astype(bool, copy=False)
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    y1, y2 = rows[0], rows[-1] + 1
    columns = np.flatnonzero(mask[y1:y2].any(axis=0))
    x1, x2 = columns[0], columns[-1] + 1
    part = mask[y1:y2, x1:x2]
    if scale > 1:
        grown = Image.fromarray(part).convert("L").resize((part.shape[1] * scale, part.shape[0] * scale), 2)
        part = np.asarray(grown) >= 128
    return Piece(part, int(x1) * scale, int(y1) * scale)


def paint(
    canvas: np.ndarray,
    pieces: Sequence[Piece],
    colours: Sequence[Colour],
    *,
    opacity: float,
    line: int,
    boxes: bool = False,
) -> np.ndarray:
    """Fill N pieces on a canvas (H, W, 3) uint8, later ones on top, and return it.

    Each has a contour: ``line`` pixels in its colour within the mask and one dark pixel around it, which shows
    on any background. Nothing is drawn along the border of the picture, where a mask is cut off and has no
    contour.
    """
    height, width = canvas.shape[:2]
    # What each pixel becomes is looked up at the end, in one pass over the picture: 0 as it was, 1 dark, then
    # for each piece its fill and its contour.
    codes = np.zeros((height, width), dtype=np.int32)
    for i, (mask, x, y) in enumerate(pieces):
        h, w = mask.shape
        spacious = np.pad(mask, 2)
        around = _with_neighbours(spacious, np.logical_or)
        within = spacious[1:-1, 1:-1].copy()
        if y == 0:
            within[0] = within[1]
        if x == 0:
            within[:, 0] = within[:, 1]
        if y + h == height:
            within[-1] = within[-2]
        if x + w == width:
            within[:, -1] = within[:, -2]
        inner = within.copy()
        for _ in range(line):
            inner[1:-1, 1:-1] = _with_neighbours(inner, np.logical_and)
        top, left = max(y - 1, 0), max(x - 1, 0)
        region = codes[top : y + h + 1, left : x + w + 1]
        here = (slice(top - y + 1, top - y + 1 + region.shape[0]), slice(left - x + 1, left - x + 1 + region.shape[1]))
        np.copyto(region, 1, where=around[here])
        np.copyto(region, 2 * i + 3, where=within[here] & spacious[1:-1, 1:-1][here])
        np.copyto(region, 2 * i + 2, where=inner[here])
        if boxes:
            for side in (np.s_[:line], np.s_[-line:], np.s_[:, :line], np.s_[:, -line:]):
                codes[y : y + h, x : x + w][side] = 2 * i + 3
    rgb = np.array(colours, dtype=np.float32).reshape(-1, 3)
    kept = np.array([1, 0.35] + [1 - opacity, 0] * len(pieces), dtype=np.float32)
    added = np.zeros((len(kept), 3), dtype=np.float32)
    added[2::2], added[3::2] = opacity * rgb, rgb
    painted = np.flatnonzero(codes)
    flat = canvas.reshape(-1, 3)
    code = codes.reshape(-1)[painted]
    flat[painted] = (flat[painted] * kept[code, None] + added[code]).astype(np.uint8)
    return canvas


def _with_neighbours(mask: np.ndarray, combine: np.ufunc) -> np.ndarray:
    """Return (h, w) of a mask (h + 2, w + 2): each pixel combined with its four neighbours.

    ``np.logical_or`` grows the mask and ``np.logical_and`` shrinks it. scipy.ndimage takes four to twenty times as
    long, which a slider with a hundred pieces would show.
    """
    combined = combine(mask[:-2, 1:-1], mask[2:, 1:-1])
    for side in (mask[1:-1, :-2], mask[1:-1, 2:], mask[1:-1, 1:-1]):
        combine(combined, side, out=combined)
    return combined


def lead(canvas: np.ndarray, spot: tuple[int, int], label: np.ndarray, piece: Piece) -> None:
    """Draw a line from a plate to the nearest pixel of its object, where they do not touch."""
    step = max(1, min(piece.mask.shape) // 16)  # every pixel would cost more than all else
    if not piece.mask[::step, ::step].any():  # thin parts far apart slip through
        step = 1
    rows, columns = np.nonzero(piece.mask[::step, ::step])
    pixels = np.stack([columns, rows], axis=1) * step + (piece.x, piece.y)
    first = np.array(spot)
    ends = pixels.clip(first, first + (label.shape[1] - 1, label.shape[0] - 1))
    distances = np.abs(pixels - ends).max(axis=1)
    nearest = int(distances.argmin())
    if distances[nearest] <= step + 2:
        return
    count = int(distances[nearest]) + 1
    x, y = np.linspace(ends[nearest], pixels[nearest], count).round().astype(np.int64).T
    colour = label[0, 0]
    for shift_x, shift_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        canvas[(y + shift_y).clip(0, canvas.shape[0] - 1), (x + shift_x).clip(0, canvas.shape[1] - 1)] = colour


def blit(canvas: np.ndarray, label: np.ndarray, x: int, y: int) -> None:
    """Copy a picture onto the canvas with its top left corner at (x, y), cut off at the borders."""
    region = canvas[y : y + label.shape[0], x : x + label.shape[1]]
    region[:] = label[: region.shape[0], : region.shape[1]]


def encode_jpeg(picture: np.ndarray) -> bytes:
    """Return an (H, W, 3) uint8 picture as JPEG, without chroma subsampling, which blurs thin contours.

    It takes half of PNG's time, and for a photograph a fifth of its bytes.
    """
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=90, subsampling=0)
    return data.getvalue()
