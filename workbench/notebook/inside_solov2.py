"""A step of SOLOv2, opened: the cells that objects take, the masks of their kernels, and matrix NMS."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from workbench.errors import counted
from workbench.losses.solov2 import assign_cells
from workbench.models.solov2 import RankedCells, SOLOv2, rank_cells, soft_masks
from workbench.notebook.inside import Step, opens
from workbench.visualization.charts import sentence
from workbench.visualization.drawing import contact_sheet, draw_masks
from workbench.visualization.features import feature_maps
from workbench.visualization.step_charts import Grid, before_and_after, cell_grids, mask_grid

_MOST_OBJECTS = 6  # drawn with the masks of their kernels
_MOST_ROWS = 12  # of matrix NMS
_LEVEL = "level {}, {} x {}"


@opens(SOLOv2)
def stage_maps(step: Step, image: int = 0) -> Figure:
    """Draw the maps of the feature pyramid for one image, and the features that all masks are made of."""
    maps = step.call("backbone").outputs | {"mask features": step.call("mask_head").outputs}
    return feature_maps({name: each[image : image + 1] for name, each in maps.items()}, step.picture(image))


def assigned_cells(step: Step, image: int = 0) -> tuple[Tensor, Tensor]:
    """Return the pairs of a cell and an object that the step's losses are made of: (P,) int64 each."""
    criterion, target = step.model.criterion, step.call("criterion").inputs[1][image]
    settings = {"grids": criterion.grids, "scale_ranges": criterion.scale_ranges, "sigma": criterion.sigma}
    return assign_cells(target["masks"], target["boxes"], **settings)


def _levels(step: Step) -> list[tuple[int, int]]:
    """Return the first cell and the side of each level's grid."""
    grids = step.model.ins_head.grids
    return [(sum(side**2 for side in grids[:level]), grid) for level, grid in enumerate(grids)]


@opens(SOLOv2)
def cell_chart(step: Step, image: int = 0) -> Figure:
    """Draw the cells that each object takes on each level. Of a cell with several objects the last one is shown, as it
    gives the cell its category."""
    cells, objects = assigned_cells(step, image)
    pairs = sorted(zip(cells.tolist(), objects.tolist(), strict=True))
    shown = []
    for level, (first, side) in enumerate(_levels(step)):
        taken = {cell - first: number for cell, number in pairs if first <= cell < first + side**2}
        least, largest = step.model.criterion.scale_ranges[level]
        title = _LEVEL.format(level + 1, side, side) + f", objects of {least:g} to {largest:g} px:\n"
        shown.append(
            Grid(side, taken, f"{title}{counted(len(taken), 'cell')} of {counted(len(set(taken.values())), 'object')}")
        )
    return cell_grids(step.picture(image), shown, step.masks(image).numpy())


@opens(SOLOv2)
def kernel_chart(step: Step, image: int = 0) -> Figure:
    """Draw the mask that a kernel makes of the features, for the middle one of each object's cells on each level that
    one of the objects is on."""
    outputs = step.call("criterion").inputs[0]
    cells, objects = assigned_cells(step, image)
    picture, truth, names = step.picture(image), step.masks(image).numpy(), step.objects(image)
    shown = objects.unique().tolist()[:_MOST_OBJECTS]
    if not shown:
        return sentence("No object of this image takes a cell, so no kernel is taught.")
    drawn = cells[torch.isin(objects, torch.tensor(shown, device=objects.device))]
    levels = [
        (level, first, side)
        for level, (first, side) in enumerate(_levels(step))
        if ((drawn >= first) & (drawn < first + side**2)).any()
    ]
    masks, titles = [], []
    for number in shown:
        masks.append([])
        titles.append([])
        for level, first, side in levels:
            own = cells[(objects == number) & (cells >= first) & (cells < first + side**2)]
            title = f"{names[number]}\n" if level == levels[0][0] else "\n"
            titles[-1].append(title + _LEVEL.format(level + 1, side, side) + ("" if len(own) else ": none"))
            masks[-1].append(_mask(outputs, image, own[len(own) // 2], picture.shape[:2]) if len(own) else None)
    return mask_grid(picture, masks, titles, truth=[truth[number] for number in shown])


@torch.no_grad()
def _mask(outputs: dict[str, Any], image: int, cell: Tensor, size: tuple[int, int]) -> np.ndarray:
    maps = soft_masks(outputs["pred_kernels"][image, cell][None], outputs["mask_features"][image])
    return F.interpolate(maps[None], size, mode="bilinear")[0, 0].cpu().numpy()


def suppression(step: Step, image: int = 0) -> tuple[RankedCells, bool]:
    """Return the rows of an image around matrix NMS, as the model predicts them, and whether any category reaches
    MODEL.SOLOV2.SCORE_THR; where none does, as with random weights, the rows are those without a threshold."""
    _, calls = step.predict(image, "ins_head|mask_head")
    outputs = calls["ins_head"][0].outputs
    settings = {
        name: value for name, value in step.model.inference.items() if name not in ("update_threshold", "top_k")
    }

    def rank(**changed: float) -> RankedCells:
        return rank_cells(
            outputs["pred_logits"][0],
            outputs["pred_kernels"][0],
            calls["mask_head"][0].outputs[0],
            {name: head[0] for name, head in outputs["pred_subcategories"].items()},
            grids=step.model.ins_head.grids,
            strides=step.model.instance_strides,
            **settings | changed,
        )

    rows = rank()
    return (rows, True) if len(rows.cells) else (rank(score_threshold=0.0), False)


@opens(SOLOv2)
def suppression_chart(step: Step, image: int = 0) -> Figure:
    """Draw the scores of the best rows before and after matrix NMS."""
    rows, reached = suppression(step, image)
    before = (rows.rank * rows.quality)[:_MOST_ROWS]
    categories = step.vocabulary.categories
    names = [
        f"{rank}: {categories[label]}, cell {cell}"
        for rank, (label, cell) in enumerate(zip(rows.labels.tolist(), rows.cells.tolist(), strict=True), start=1)
    ]
    note = "" if reached else "; no category reaches SCORE_THR"
    return before_and_after(
        before.cpu().numpy(),
        (before * rows.decay[:_MOST_ROWS]).cpu().numpy(),
        names[:_MOST_ROWS],
        step.model.inference["update_threshold"],
        f"Matrix NMS: the best {min(len(names), _MOST_ROWS)} of {len(names)} rows{note}",
    )


@opens(SOLOv2)
def suppression_masks(step: Step, image: int = 0) -> np.ndarray:
    """Draw the masks of the best rows, numbered as in :func:`suppression_chart`."""
    rows, _ = suppression(step, image)
    picture = step.picture(image)
    shown = rows.row[:_MOST_ROWS]
    maps = F.interpolate(rows.maps[shown][:, None], picture.shape[:2], mode="bilinear")[:, 0]
    masks = (maps > step.model.inference["mask_threshold"]).cpu().numpy()
    titles = [f"row {rank}: x {float(decay):.2f}" for rank, decay in enumerate(rows.decay[:_MOST_ROWS], start=1)]
    sheet = [draw_masks(picture, [mask], scale=1 + 200 // max(picture.shape[:2])) for mask in masks]
    return contact_sheet(sheet, columns=4, titles=titles)
