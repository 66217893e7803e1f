"""When does a model run out of queries? The saturation experiment of DETR (Carion et al., 2020, appendix A.4,
fig. 12): one object repeated on a grid, n of its cells visible, and how many of the n are missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from workbench.data.masks import decode_mask
from workbench.errors import WorkbenchError
from workbench.evaluation.inputs import read_inputs
from workbench.evaluation.matching import match_predictions

GRID = 10


@dataclass(frozen=True)
class Tile:
    """One object cut out: picture (h, w, 3) uint8 and mask (h, w) bool of its box, its label (number of the
    main category), the colour of what lies around it, and the (height, width) of the image it is from."""

    picture: np.ndarray
    mask: np.ndarray
    label: int
    background: tuple[int, int, int]
    image_size: tuple[int, int]


def choose_object(
    truth: Mapping, results: Sequence[Mapping], sizes: Mapping[int, tuple[int, int]]
) -> dict | None:
    """The annotation of the object that is found best: most surely, whole, with a mask IoU of 0.75 or more.

    ``sizes``: (height, width) by image id. Where none is found that well the largest whole object; None where
    no object is whole (touches no edge of its image). Small ones, below 8 pixels, count as well only then.
    """
    data = read_inputs(truth, results)
    matches = match_predictions(data, iou=0.75)
    whole = np.array(
        [
            not crowd and _whole(box, sizes[data.image_ids[image]])
            for box, image, crowd in zip(
                data.objects.boxes, data.objects.image, data.objects.crowd, strict=True
            )
        ],
        dtype=bool,
    )
    found = np.flatnonzero((matches.object_of >= 0) & (whole[matches.object_of] if len(whole) else False))
    if len(found):
        best = found[data.predictions.scores[found].argmax()]
        return data.objects.rows[matches.object_of[best]]
    rest = np.flatnonzero(whole)
    return data.objects.rows[rest[data.objects.areas[rest].argmax()]] if len(rest) else None


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


def draw_grid(
    tile: Tile, cells: Sequence[int], *, margin: float = 0.25, grid: int = GRID
) -> tuple[np.ndarray, np.ndarray]:
    """The picture (S, S, 3) uint8 with the object in the given cells (0 .. grid²-1, row by row) of a grid, and
    the (len(cells), S, S) bool masks. ``margin``: free space around an object, as a share of its longer side."""
    height, width = tile.mask.shape
    side = max(2, round(max(height, width) * (1 + margin)))
    canvas = np.empty((side * grid, side * grid, 3), dtype=np.uint8)
    canvas[:] = tile.background
    masks = np.zeros((len(cells), *canvas.shape[:2]), dtype=bool)
    for mask, cell in zip(masks, cells, strict=True):
        y = cell // grid * side + (side - height) // 2
        x = cell % grid * side + (side - width) // 2
        canvas[y : y + height, x : x + width][tile.mask] = tile.picture[tile.mask]
        mask[y : y + height, x : x + width] = tile.mask
    return canvas, masks


def saturation(
    model: nn.Module,
    tile: Tile,
    *,
    counts: Sequence[int] = tuple(range(1, 101)),
    repeats: int = 5,
    seed: int = 0,
    scale: float = 1.0,
    score_threshold: float = 0.5,
    iou: float = 0.5,
    progress: bool = True,
) -> pd.DataFrame:
    """How many of n visible objects a model misses: one row a picture, with visible, repeat, missed (count)
    and share (percent).

    For each n of ``counts``, ``repeats`` pictures with n cells drawn at random (the same for every model).
    ``scale``: what pictures are resized by, as the model's images are in evaluation. An object is found by a
    prediction of its category scoring at least ``score_threshold`` with a mask IoU of at least ``iou``, each
    prediction finding one.
    """
    wrong = [n for n in counts if not 1 <= n <= GRID * GRID]
    if wrong:
        raise WorkbenchError(
            f"The grid has {GRID * GRID} cells, so {wrong[0]} objects cannot be visible on it."
        )
    rows = []
    was_training = model.training
    model.eval()
    try:
        for n in tqdm(counts, desc="saturation", unit="count", disable=not progress):
            for repeat in range(repeats):
                cells = np.random.default_rng([seed, n, repeat]).permutation(GRID * GRID)[:n]
                canvas, masks = draw_grid(tile, cells)
                predictions = _predict(model, canvas, scale)
                found = _found(predictions, torch.from_numpy(masks), tile.label, score_threshold, iou)
                rows.append((n, repeat, n - found, 100 * (n - found) / n))
    finally:
        model.train(was_training)
    return pd.DataFrame(rows, columns=["visible", "repeat", "missed", "share"])


@torch.inference_mode()
def _predict(model: nn.Module, canvas: np.ndarray, scale: float) -> dict:
    image = torch.from_numpy(canvas).permute(2, 0, 1).float()
    if scale != 1:
        size = [max(1, round(side * scale)) for side in canvas.shape[:2]]
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return model([{"image": image, "height": canvas.shape[0], "width": canvas.shape[1]}])[0]


def _found(predictions: Mapping, masks: Tensor, label: int, score_threshold: float, least: float) -> int:
    """How many of (n, H, W) masks the predictions find, best first, each the free one it overlaps most."""
    wanted = (predictions["labels"] == label) & (predictions["scores"] >= score_threshold)
    order = predictions["scores"][wanted].argsort(descending=True, stable=True)
    theirs = predictions["masks"][wanted][order].flatten(1).cpu().float()
    ours = masks.flatten(1).float()
    common = theirs @ ours.T
    ious = common / (theirs.sum(1)[:, None] + ours.sum(1)[None] - common).clamp(min=1)
    free, found = torch.ones(len(masks), dtype=torch.bool), 0
    for row in ious:
        best = int(torch.where(free, row, -1.0).argmax())
        if free[best] and row[best] >= least:
            free[best] = False
            found += 1
    return found
