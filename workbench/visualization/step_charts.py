"""Pictures of what happens inside a step: points, masks, boxes and cells over the image, costs, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.visualization.charts import GREEN, INK, LINES, QUIET, SKY, category_colour, sentence

_PANEL = 2.3  # inches
_WIDEST = 13  # inches


def panels(rows: int, columns: int, size: float = _PANEL, head: float = 0.3) -> tuple[Figure, np.ndarray]:
    """Return a figure and its (rows, columns) axes without ticks, for pictures."""
    figure = Figure(figsize=(size * columns, (size + head) * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=9, fontweight="normal", loc="left")


def _outline(axes: Axes, mask: np.ndarray, colour: object, dash: str = "-") -> None:
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.4, linestyles=dash)


@dataclass(frozen=True)
class Points:
    """Where something is read: (N, 2) as x and y in pixels, (N,) weights, (N,) int group of each, and their title."""

    places: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    title: str


def sampling_points(image: np.ndarray, pixel: tuple[float, float], layers: Sequence[Points], names: Sequence) -> Figure:
    """Draw points over the image (H, W, 3), a panel a layer: larger where the weight is, coloured by group.

    ``pixel``: x and y of who reads, marked by a cross. ``names``: of the groups.
    """
    figure, grid = panels(1, len(layers), 3.4)
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.imshow(image, alpha=0.55)
        for number, name in enumerate(names):
            chosen = layer.groups == number
            area = 700 * layer.weights[chosen]
            label = f"{name}: {100 * layer.weights[chosen].sum():.0f} %"
            x, y = layer.places[chosen].T
            axes.scatter(x, y, s=area, color=LINES[number % len(LINES)], alpha=0.7, label=label, linewidths=0.4)
        axes.plot(*pixel, "+", color=INK, markersize=16, markeredgewidth=2)
        axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        legend = axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0), handletextpad=0.2)
        for handle in legend.legend_handles:
            handle.set_sizes([40])
        _title(axes, layer.title)
    return figure


def mask_grid(
    image: np.ndarray,
    masks: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[Sequence[str]],
    *,
    truth: Sequence[np.ndarray | None] | None = None,
    regions: Sequence[Sequence[np.ndarray | None]] | None = None,
) -> Figure:
    """Draw mask probabilities (H, W) over the image, in rows; None leaves a panel empty.

    ``truth``: the true mask of each row, outlined in white. ``regions``: (H, W) bool of each panel, outlined in orange.
    """
    columns = max(map(len, masks))
    figure, grid = panels(len(masks), columns, 1.75)
    grey = image.mean(axis=2) * 0.6
    for row, (axes_of_row, probabilities) in enumerate(zip(grid, masks, strict=True)):
        for column, (axes, probability) in enumerate(zip(axes_of_row, probabilities, strict=False)):
            if probability is None:
                _title(axes, titles[row][column])
                continue
            axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
            axes.imshow(probability, cmap="viridis", vmin=0, vmax=1, alpha=0.65)
            if truth is not None and truth[row] is not None:
                _outline(axes, truth[row], "white")
            if regions is not None and regions[row][column] is not None:
                _outline(axes, regions[row][column], LINES[4], "--")
            _title(axes, titles[row][column])
    return figure


def cost_tables(terms: Mapping[str, pd.DataFrame], matched: Sequence[tuple[int, int]]) -> Figure:
    """Draw tables of costs beside each other, darker where dearer; the matched (row, column) places are framed."""
    shape = next(iter(terms.values())).shape
    width = max(1.1, 0.35 + 0.5 * shape[1])
    columns = min(len(terms), max(1, int(_WIDEST / width)))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(0.8 + columns * width, rows * (1.1 + 0.3 * shape[0])))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(terms) :]:
        axes.set_axis_off()
    for axes, (name, costs) in zip(grid.flat, terms.items(), strict=False):
        values = costs.to_numpy(float)
        low, high = np.nanmin(values), np.nanmax(values)
        axes.imshow(values, cmap="Blues", vmin=low, vmax=high + 0.1 * (high - low) + 1e-9, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            dark = value > low + 0.6 * (high - low)
            text = f"{round(float(value), 1) + 0.0:.1f}"  # no -0.0
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else INK)
        for row, column in matched:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=LINES[1], linewidth=2))
        axes.set_xticks(range(shape[1]), [str(label).split()[0] for label in costs.columns], fontsize=8)
        axes.set_yticks(range(shape[0]), costs.index, fontsize=8)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlabel(costs.columns.name or "", fontsize=8)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    for axes in grid[:, 0]:
        axes.set_ylabel(next(iter(terms.values())).index.name or "", fontsize=8)
    return figure


@dataclass(frozen=True)
class Boxes:
    """Boxes to draw alike: (N, 4) XYXY in pixels, their colour, width and dash."""

    boxes: np.ndarray
    colour: str | tuple[float, float, float]
    width: float = 1.2
    dash: str = "-"


@dataclass(frozen=True)
class BoxPanel:
    """A panel of boxes, later ones on top."""

    title: str
    layers: Sequence[Boxes] = field(default_factory=tuple)


def box_panels(image: np.ndarray, shown: Sequence[BoxPanel], columns: int = 3) -> Figure:
    """Draw boxes over the image, a panel each."""
    columns = min(columns, len(shown))
    figure, grid = panels(-(-len(shown) // columns), columns, 2.9)
    for axes, panel in zip(grid.flat, shown, strict=False):
        axes.imshow(image, alpha=0.6)
        for layer in panel.layers:
            x1, y1, x2, y2 = np.asarray(layer.boxes, dtype=float).reshape(-1, 4).T - 0.5
            corners = np.stack([np.stack(side, 1) for side in ((x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1))], 1)
            axes.add_collection(
                LineCollection(corners, colors=[layer.colour], linewidths=layer.width, linestyles=layer.dash)
            )
        margin = 0.06 * max(image.shape[:2])
        axes.set(xlim=(-margin, image.shape[1] + margin), ylim=(image.shape[0] + margin, -margin))
        _title(axes, panel.title)
    return figure


def region_rows(rows: Sequence[Mapping[str, np.ndarray]], titles: Sequence[str]) -> Figure:
    """Draw regions of interest, a row each: {column: (h, w, 3) picture, or (h, w) map}; "probability" and "target" are
    shaded from 0 to 1, other maps from their least to their largest value."""
    figure, grid = panels(len(rows), len(rows[0]), 1.5)
    for number, (axes_of_row, row, title) in enumerate(zip(grid, rows, titles, strict=True)):
        for column, (axes, (name, shown)) in enumerate(zip(axes_of_row, row.items(), strict=True)):
            limits = {"vmin": 0, "vmax": 1} if name in ("probability", "target") else {}
            axes.imshow(shown, cmap="viridis", interpolation="nearest", aspect="auto", **limits)
            _title(axes, title if column == 0 else name if number == 0 else "")
    return figure


@dataclass(frozen=True)
class Grid:
    """The grid of a level: cells along a side, {cell (row by row): number of its object}, and its title."""

    side: int
    taken: Mapping[int, int]
    title: str


def cell_grids(image: np.ndarray, levels: Sequence[Grid], masks: Sequence[np.ndarray]) -> Figure:
    """Draw each level's grid over the image, the cells that objects take in the colour of the object, whose mask is
    outlined in it."""
    figure, grid = panels(1, len(levels), 3.2)
    height, width = image.shape[:2]
    for axes, level in zip(grid[0], levels, strict=True):
        axes.imshow(image, alpha=0.55, extent=(0, width, height, 0))
        step = width / level.side, height / level.side
        for number in range(level.side + 1):
            axes.axvline(number * step[0], color=QUIET, linewidth=0.4)
            axes.axhline(number * step[1], color=QUIET, linewidth=0.4)
        for number, mask in enumerate(masks):
            _outline(axes, mask, category_colour(number))
        cells = [Rectangle((cell % level.side * step[0], cell // level.side * step[1]), *step) for cell in level.taken]
        colours = [category_colour(number) for number in level.taken.values()]
        axes.add_collection(PatchCollection(cells, facecolors=colours, edgecolors=INK, linewidths=0.6, alpha=0.8))
        axes.set(xlim=(0, width), ylim=(height, 0))
        _title(axes, level.title)
    return figure


def before_and_after(before: np.ndarray, after: np.ndarray, names: Sequence[str], least: float, title: str) -> Figure:
    """Draw scores (N,) before and after rows lowered one another, best first; ``least``: below it a row is dropped."""
    if not len(before):
        return sentence(f"{title}: there is no row.")
    figure = Figure(figsize=(7, 1.1 + 0.26 * len(before)))
    axes = figure.subplots()
    rows = np.arange(len(before))
    axes.barh(rows, before, 0.8, color="white", label="before")
    colours = [GREEN if score >= least else SKY for score in after]
    axes.barh(rows, after, 0.8, color=colours, label="after")
    for row, (first, last) in enumerate(zip(before, after, strict=True)):
        axes.text(first, row, f" {first:.2g} → {last:.2g}", va="center", fontsize=8)
    axes.axvline(least, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(rows, names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(title=title, xlabel=f"score (dashed: below {least:g} a row is dropped)")
    axes.grid(axis="y", visible=False)
    return figure


def curves_by_threshold(curves: Mapping[float, Mapping[str, np.ndarray]]) -> Figure:
    """Draw precision against recall, a line an IoU threshold; ``curves``: {threshold: {"recall", "precision"}}."""
    if not curves:
        return sentence("This image has no object, so there is no precision and recall.")
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.subplots()
    for (threshold, curve), colour, dash in zip(curves.items(), LINES, ("-", "--", "-."), strict=False):
        label = f"IoU {threshold:g}: AP {100 * curve['precision'].mean():.0f}"
        axes.plot(curve["recall"], curve["precision"], dash, color=colour, linewidth=2, label=label)
    axes.set(title="This image: mean over its categories", xlabel="recall", ylabel="precision", ylim=(0, 1.05))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
