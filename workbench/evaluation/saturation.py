"""When does a model run out of queries? The saturation experiment of DETR (Carion et al., 2020, appendix A.4,
fig. 12): one object repeated on a grid, n of its cells visible, and how many of the n are missed. Here a grid may
hold several objects in turn as well, as a model can miss copies for another reason: it takes them for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from workbench.console import follow
from workbench.data.masks import decode_mask, encode_masks
from workbench.errors import WorkbenchError
from workbench.evaluation.columns import read_inputs
from workbench.evaluation.matching import match_pairs, match_predictions

GRID = 10
SMALL_GRID = 1024  # pixels; a grid of this side costs little, whatever the model's input size


@dataclass(frozen=True)
class Tile:
    """One object cut out: picture (h, w, 3) uint8 and mask (h, w) bool of its box, its label (number of the
    main category), the colour of what lies around it, and the (height, width) of the image it is from."""

    picture: np.ndarray
    mask: np.ndarray
    label: int
    background: tuple[int, int, int]
    image_size: tuple[int, int]


def choose_objects(
    truth: Mapping, results: Sequence[Mapping], sizes: Mapping[int, tuple[int, int]], most: int = 1
) -> list[dict]:
    """The annotations of the ``most`` objects that are found best: whole, with a mask IoU of 0.75 or more, most
    surely first.

    ``sizes``: (height, width) by image id. Where none is found that well the largest whole objects; whole is
    what touches no edge of its image. Empty where no object is whole.
    """
    data = read_inputs(truth, results)
    matches = match_predictions(data, iou=0.75)
    whole = np.array(
        [
            not crowd and _whole(box, sizes[data.image_ids[image]])
            for box, image, crowd in zip(data.objects.boxes, data.objects.image, data.objects.crowd, strict=True)
        ],
        dtype=bool,
    )
    found = np.flatnonzero(matches.object_of >= 0)
    found = found[whole[matches.object_of[found]]]
    found = found[np.argsort(-data.predictions.scores[found], kind="stable")]
    best = matches.object_of[found]
    if not len(best):
        best = np.flatnonzero(whole)
        best = best[np.argsort(-data.objects.areas[best], kind="stable")]
    return [data.objects.rows[i] for i in best[:most]]


def _whole(box: Sequence[float], size: tuple[int, int]) -> bool:
    x, y, width, height = box
    return x >= 1 and y >= 1 and x + width <= size[1] - 1 and y + height <= size[0] - 1


def cut_tile(picture: np.ndarray, annotation: Mapping, label: int, others: Sequence[Mapping] = ()) -> Tile:
    """The object of ``annotation`` cut from its (H, W, 3) picture; ``others``: all annotations of the image,
    which the background's colour is measured beside."""
    height, width = picture.shape[:2]
    mask = decode_mask(annotation["segmentation"], height, width)
    if not mask.any():
        raise WorkbenchError(f"Annotation {annotation['id']} covers no pixel.")
    taken = mask.copy()
    for other in others:
        taken |= decode_mask(other["segmentation"], height, width)
    around = picture[~taken] if not taken.all() else picture.reshape(-1, 3)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    colour = tuple(int(value) for value in np.median(around, axis=0))
    return Tile(picture[box].copy(), mask[box].copy(), label, colour, (height, width))


def fit_tiles(tiles: Sequence[Tile], scale: float = 1.0, largest: int = SMALL_GRID) -> list[Tile]:
    """Return tiles resized by ``scale``, or by less where their grid's side would exceed ``largest`` pixels."""
    scale = min(scale, largest / (GRID * _cell_side(tiles)))
    return [_resized(tile, scale) for tile in tiles]


def _resized(tile: Tile, scale: float) -> Tile:
    height, width = (max(1, round(side * scale)) for side in tile.mask.shape)
    if (height, width) == tile.mask.shape:
        return tile
    picture, cover = (
        np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        for pixels in (tile.picture, tile.mask.astype(np.uint8) * 255)
    )
    return replace(tile, picture=picture, mask=cover >= min(128, cover.max()))  # a thin object keeps some pixel


def _cell_side(tiles: Sequence[Tile], margin: float = 0.25) -> int:
    return max(2, round(max(max(tile.mask.shape) for tile in tiles) * (1 + margin)))


def draw_grid(tiles: Sequence[Tile], cells: Sequence[int], *, margin: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """The picture (S, S, 3) uint8 with objects in the given cells (0 .. 99, row by row), cell i showing tile i
    modulo their number, and the (len(cells), S, S) bool masks.

    ``margin``: free space around the largest object, as a share of its longer side. The background is the
    first tile's.
    """
    side = _cell_side(tiles, margin)
    canvas = np.empty((side * GRID, side * GRID, 3), dtype=np.uint8)
    canvas[:] = tiles[0].background
    masks = np.zeros((len(cells), *canvas.shape[:2]), dtype=bool)
    for mask, cell in zip(masks, cells, strict=True):
        tile = tiles[cell % len(tiles)]
        height, width = tile.mask.shape
        y = cell // GRID * side + (side - height) // 2
        x = cell % GRID * side + (side - width) // 2
        canvas[y : y + height, x : x + width][tile.mask] = tile.picture[tile.mask]
        mask[y : y + height, x : x + width] = tile.mask
    return canvas, masks


def saturation(
    model: nn.Module,
    tiles: Sequence[Tile],
    *,
    counts: Sequence[int] = tuple(range(1, 101)),
    repeats: int = 5,
    seed: int = 0,
    score_threshold: float = 0.5,
    iou: float = 0.5,
    progress: bool = True,
) -> pd.DataFrame:
    """Count how many of n visible objects a model misses, one row a picture.

    The columns are visible, repeat, predictions (how many score enough), missed (count), share (missed, in percent) and
    merged: in how many percent of those missed a prediction covers the object together with others; NaN where none is
    missed or nothing is predicted.

    For each n of ``counts``, ``repeats`` pictures with n cells drawn at random (the same for every model); one picture
    where n is all cells.
    Pictures reach the model as they are drawn; :func:`fit_tiles` gives tiles the size that objects have in evaluation.
    An object is found by a prediction of its category scoring at least ``score_threshold`` with a mask IoU of at least
    ``iou``, each prediction finding one; it covers what at least half of is in its mask.
    """
    wrong = [n for n in counts if not 1 <= n <= GRID * GRID]
    if wrong:
        raise WorkbenchError(f"The grid has {GRID * GRID} cells, so {wrong[0]} objects cannot be visible on it.")
    rows = []
    was_training = model.training
    model.eval()
    try:
        for n in follow(counts, "saturation", "count", shown=progress):
            for repeat in range(repeats if n < GRID * GRID else 1):
                cells = np.random.default_rng([seed, n, repeat]).permutation(GRID * GRID)[:n]
                canvas, masks = draw_grid(tiles, cells)
                labels = np.array([tiles[cell % len(tiles)].label for cell in cells])
                predictions = _predict(model, canvas)
                found, merged = _found(predictions, masks, labels, score_threshold, iou)
                missed = int((~found).sum())
                predicted = int((predictions["scores"] >= score_threshold).sum())
                share = 100 * int((merged & ~found).sum()) / missed if missed and predicted else float("nan")
                rows.append((n, repeat, predicted, missed, 100 * missed / n, share))
    finally:
        model.train(was_training)
    return pd.DataFrame(rows, columns=["visible", "repeat", "predictions", "missed", "share", "merged"])


@torch.inference_mode()
def _predict(model: nn.Module, canvas: np.ndarray) -> dict:
    image = torch.from_numpy(canvas).permute(2, 0, 1).float()
    return model([{"image": image, "height": canvas.shape[0], "width": canvas.shape[1]}])[0]


def _found(
    predictions: Mapping, masks: np.ndarray, labels: np.ndarray, score_threshold: float, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which of n objects, (n, H, W) bool with (n,) labels, are found by the predictions, best first, each taking
    the free one it overlaps most; and which are covered together with others: two (n,) bool."""
    found, merged = np.zeros(len(masks), dtype=bool), np.zeros(len(masks), dtype=bool)
    wanted = predictions["scores"] >= score_threshold
    order = predictions["scores"][wanted].argsort(descending=True, stable=True)
    predicted = encode_masks(predictions["masks"][wanted][order].cpu().numpy())
    if not predicted:
        return found, merged
    objects = encode_masks(masks)
    ious = np.asarray(coco_mask.iou(predicted, objects, [0] * len(objects)))
    covered = np.asarray(coco_mask.iou(objects, predicted, [1] * len(predicted))).T >= 0.5  # of an object's own area
    merged = covered[covered.sum(axis=1) > 1].any(axis=0)
    right = predictions["labels"][wanted][order].cpu().numpy()[:, None] == labels[None]
    d, g = np.nonzero(right & (ious >= least))
    best = np.lexsort((-ious[d, g], d))
    found[g[best[match_pairs(d[best], g[best])]]] = True
    return found, merged
