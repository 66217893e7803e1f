"""Charts of training and evaluation: each function takes tables and returns a matplotlib figure.

Figures are made without pyplot, so nothing is shown or kept by itself and threads may draw. Colours are those
of Okabe and Ito (2008), and no chart says anything by colour alone. Where there is nothing to draw, the figure
says so in a sentence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from workbench.errors import counted
from workbench.visualization.drawing import PALETTE

if TYPE_CHECKING:
    from workbench.evaluation.thresholds import Suggestion

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, QUIET = "#222222", "#777777"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("-", "--", "-.", ":")
OUTLINE = (patheffects.Stroke(linewidth=3.2, foreground="#555555"), patheffects.Normal())
MANY = 9  # categories beyond which single ones are no longer told apart


def use_style() -> None:
    """Set the style of all charts, for this process."""
    mpl.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "text.parse_math": False,  # a "$" in a name from data begins no formula
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": QUIET,
            "axes.labelcolor": INK,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "axes.prop_cycle": mpl.cycler(color=LINES),
            "patch.edgecolor": INK,
            "patch.force_edgecolor": True,
            "patch.linewidth": 0.5,
        }
    )


def category_colour(number: int) -> tuple[float, float, float]:
    """Return the colour that pictures draw main category ``number`` in."""
    return tuple(part / 255 for part in PALETTE[number % len(PALETTE)])


def sentence(text: str, size: tuple[float, float] = (7, 1.2)) -> Figure:
    """Return a figure that says why there is no chart."""
    figure = Figure(figsize=size)
    figure.text(0.02, 0.5, text, va="center", fontsize=11, color=QUIET, wrap=True)
    return figure


def class_counts(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the number of objects of each class, a panel a table; ``tables`` hold a column "objects"."""
    most = max(len(table) for table in tables.values())
    figure = Figure(figsize=(3.3 * len(tables), 1.1 + 0.3 * min(most, 40)))
    for axes, (name, table) in zip(np.atleast_1d(figure.subplots(1, len(tables))), tables.items(), strict=True):
        shown = table if len(table) <= 40 else table.sort_values("objects", ascending=False).head(40)
        colours = [QUIET if label == "unlabelled" else SKY for label in shown.index]
        bars = axes.barh(shown.index.astype(str), shown.objects, color=colours)
        axes.bar_label(bars, padding=3, fontsize=9)
        axes.invert_yaxis()
        axes.set(title=name, xlabel="objects")
        axes.margins(x=0.18)
        axes.grid(axis="y", visible=False)
    return figure


def learning_curves(rows: pd.DataFrame) -> Figure:
    """Draw losses by component, mask AP where it was measured, and the learning rate, against the step.

    ``rows`` is a run's metrics.csv with numbers. Of each loss the last decoder layer's is drawn; the total
    is over all layers. Thin lines are single steps, thick ones a running median.
    """
    if rows.empty:
        return sentence("No step has been logged yet.")
    evaluated = [name for name in ("segm/AP", "joint/AP") if name in rows and rows[name].notna().any()]
    panels = ["losses", *(["scores"] if evaluated else []), "rate"]
    figure = Figure(figsize=(5.4 + 3.2 * (len(panels) - 1), 3.4))
    axes = dict(zip(panels, figure.subplots(1, len(panels), width_ratios=[1.4, *[1] * (len(panels) - 1)]), strict=True))
    _losses(axes["losses"], rows)
    if evaluated:
        for name, colour, marker in zip(evaluated, (BLUE, VERMILION), "os", strict=False):
            known = rows[rows[name].notna()]
            label = name.replace("segm/AP", "mask AP").replace("joint/AP", "joint AP")
            axes["scores"].plot(known.step, known[name], marker=marker, color=colour, label=label)
        highest = float(rows[evaluated].max(axis=None))
        axes["scores"].set(title="Evaluation", ylabel="percent", ylim=(0, 1.1 * max(highest, 1.0)))
        axes["scores"].legend(loc="lower right")
    axes["rate"].plot(rows.step, rows.lr, color=INK)
    _rate_axis(axes["rate"])
    for each in axes.values():
        _step_axis(each)
        each.set_xlim(0, 1.03 * max(rows.step.max(), 1))
    return figure


def _losses(axes: Axes, rows: pd.DataFrame) -> None:
    parts = [c for c in rows if c.startswith("loss_subcategory_") or re.fullmatch(r"loss_(?!\d+_).*(?<!_\d)", c)]
    window = max(1, len(rows) // 40)
    lowest = math.inf
    for i, name in enumerate(["total_loss", *parts]):
        colour = INK if i == 0 else LINES[(i - 1) % len(LINES)]
        dash = DASHES[(i - 1) // len(LINES) % len(DASHES)] if i else "-"
        smooth = rows[name].rolling(window, min_periods=1, center=True).median()
        if window > 1:
            axes.plot(rows.step, rows[name], color=colour, alpha=0.2, linewidth=0.7)
        label = "total" if i == 0 else name.removeprefix("loss_").removeprefix("subcategory_")
        axes.plot(rows.step, smooth, dash, color=colour, linewidth=1.8, label=label)
        lowest = min(lowest, smooth[smooth > 0].min())
    axes.set(title="Losses", ylabel="loss of a step", yscale="log")
    plain_log_ticks(axes.yaxis)
    if math.isfinite(lowest):
        axes.set_ylim(bottom=lowest / 1.5)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def plain_log_ticks(axis: Axis) -> None:
    """Write the labels of a logarithmic axis as plain numbers; matplotlib's own are formulas, which are off."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def precision_recall(curves: Mapping[str, Mapping[str, np.ndarray]], iou: float) -> Figure:
    """Draw precision against recall for each main category, and their mean in black.

    ``curves`` is what ``coco_curves`` returns, in the order of the categories. With many categories single
    ones are thin lines without a name.
    """
    names = [name for name in curves if name != "all"]
    if not names:
        return sentence("There is no ground truth, so there is no precision and recall.")
    figure = Figure(figsize=(7.4, 4.2))
    axes = figure.subplots()
    few = len(names) <= MANY
    for i, name in enumerate(names):
        recall, precision = curves[name]["recall"], _until_never(curves[name]["precision"])
        if few:
            label = f"{name}  {100 * curves[name]['precision'].mean():.0f}"
            axes.plot(
                recall,
                precision,
                DASHES[i // len(PALETTE) % 4],
                color=category_colour(i),
                linewidth=2,
                path_effects=OUTLINE,
                label=label,
            )
        else:
            axes.plot(recall, precision, color=SKY, linewidth=0.7, alpha=0.7)
    mean = curves["all"]
    label = f"mean  {100 * mean['precision'].mean():.0f}" + ("" if few else f" of {len(names)} categories")
    axes.plot(mean["recall"], mean["precision"], color=INK, linewidth=2.5, label=label)
    axes.set(
        title=f"Precision and recall of masks at IoU {iou:g}",
        xlabel="recall: share of the objects found",
        ylabel="precision: share of the predictions right",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.legend(title=f"AP{100 * iou:.0f}", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _until_never(precision: np.ndarray) -> np.ndarray:
    """Return precision with a single 0, and NaN after it: a line along the axis would say nothing more."""
    ends = np.flatnonzero(precision <= 0)
    shown = precision.astype(float).copy()
    if len(ends):
        shown[ends[0] + 1 :] = np.nan
    return shown


def category_bars(table: pd.DataFrame) -> Figure:
    """Draw AP of each main category, best first, its AP50 as a mark; at most 40, the best and worst of more.

    ``table`` is what ``category_table`` returns.
    """
    order = {name: i for i, name in enumerate(table.index)}
    known = table[table.AP.notna()].sort_values("AP", ascending=False, kind="stable")
    if known.empty:
        return sentence("There is no ground truth, so there is no AP by category.")
    shown = known if len(known) <= 40 else pd.concat([known.head(20), known.tail(20)])
    figure = Figure(figsize=(7.4, 1.2 + 0.32 * len(shown)))
    axes = figure.subplots()
    names = [f"{name}  ({counted(count, 'object')})" for name, count in zip(shown.index, shown.objects, strict=True)]
    colours = [category_colour(order[name]) for name in shown.index]
    bars = axes.barh(names, shown.AP, color=colours, label="AP")
    axes.plot(shown.AP50, range(len(shown)), "|", color=INK, markersize=13, markeredgewidth=2, label="AP50")
    axes.bar_label(bars, fmt="%.0f", padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="percent", xlim=(0, 100), title="AP by main category (bar: AP, mark: AP50)")
    axes.grid(axis="y", visible=False)
    return figure


def heat_table(
    values: pd.DataFrame, *, title: str, shades: pd.DataFrame | None = None, text: pd.DataFrame | None = None
) -> Figure:
    """Draw a table whose cells are shaded from 0 (white) to 100 (blue); a NaN cell says –.

    ``shades``: what the shades show, where that is not the values; ``text``: what the cells say.
    """
    if values.empty:
        return sentence(f"{title}: there is nothing to show.")
    shades = values if shades is None else shades
    text = values.map(lambda v: "–" if pd.isna(v) else f"{v:.0f}") if text is None else text
    longest = max(len(str(name)) for name in values.index)
    figure = Figure(figsize=(1.6 + 0.09 * longest + 0.78 * values.shape[1], 1.5 + 0.38 * values.shape[0]))
    axes = figure.subplots()
    axes.imshow(np.nan_to_num(shades.to_numpy(float)), cmap="Blues", vmin=0, vmax=110, aspect="auto")
    slanted = max(len(str(name)) for name in values.columns) > 8
    axes.set_xticks(
        range(values.shape[1]), values.columns, rotation=35 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.set_yticks(range(values.shape[0]), values.index)
    for (row, column), shade in np.ndenumerate(np.nan_to_num(shades.to_numpy(float))):
        axes.text(
            column,
            row,
            text.iat[row, column],
            ha="center",
            va="center",
            fontsize=9,
            color="white" if shade > 60 else INK,
        )
    axes.set(title=title, xlabel=values.columns.name or "", ylabel=values.index.name or "")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def scores_by_setting(table: pd.DataFrame, settings: Sequence[str], score: str) -> Figure:
    """Draw a score of several runs against each setting, with the mean of each value; ``table`` has a row a run."""
    figure = Figure(figsize=(4 * len(settings), 3.2))
    panels = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, settings, strict=True):
        values = table[name].astype(str)
        means = table.groupby(values, sort=False)[score].mean()
        axes.plot(values, table[score], "o", alpha=0.5, label="a run")
        axes.plot(list(means.index), means, "_", markersize=28, color="black", label="mean")
        axes.set(xlabel=name, ylabel=score if axes is panels[0] else "")
        axes.margins(x=0.2)
    panels[-1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    return figure


def confusion(counts: pd.DataFrame) -> Figure:
    """Draw a confusion matrix of ``confusion_matrices``: counts, shaded by the share of their row."""
    name = str(counts.columns.name).removeprefix("predicted ")
    total = counts.sum(axis=1)
    if not total.sum():
        return sentence(f"No object is labelled with a {name}, so there is nothing to confuse.")
    shares = counts.div(total.where(total > 0), axis=0) * 100
    text = counts.map(lambda v: f"{v:d}" if v else "")
    return heat_table(counts, title=f"{name}: objects by true and predicted class", shades=shares, text=text)


def confusions(matrices: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Draw a :func:``confusion`` matrix for each subcategory."""
    return {name: confusion(counts) for name, counts in matrices.items()}


def size_table(categories: pd.DataFrame) -> Figure:
    """Draw AP by main category and object size; ``categories`` is the result of ``category_table``."""
    sizes = categories[["APs", "APm", "APl"]].set_axis(["small", "medium", "large"], axis=1)
    return heat_table(sizes.rename_axis(None), title="AP (%) by category and size")


def calibration(table: pd.DataFrame) -> Figure:
    """Draw the precision of predictions against their score, and how many there are of each score.

    ``table`` is what ``calibration_table`` returns.
    """
    if not table.predictions.sum():
        return sentence("There is no prediction, so there is nothing to calibrate.")
    figure = Figure(figsize=(7.4, 3.6))
    left, right = figure.subplots(1, 2)
    known = table[table.predictions > 0]
    left.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1, label="score = precision")
    left.plot(known.mean_score, known.precision, "o-", color=BLUE, label="measured")
    for side in known.itertuples():
        left.plot([side.mean_score] * 2, sorted([side.mean_score, side.precision]), color=VERMILION, alpha=0.5)
    left.set(
        title="Are scores probabilities?",
        xlabel="score",
        ylabel="share of predictions right",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    left.legend(loc="upper left")
    right.bar((table.low + table.high) / 2, table.predictions, 0.9 * (table.high - table.low), color=SKY)
    right.set(title="Predictions by score", xlabel="score", ylabel="predictions (log)", yscale="log", xlim=(0, 1))
    plain_log_ticks(right.yaxis)
    return figure


def grouped_bars(table: pd.DataFrame, *, title: str, ylabel: str = "percent") -> Figure:
    """Draw bars of each row (group) and column (bar within it), with their values; NaN is left out."""
    values = table.dropna(axis=1, how="all")
    if values.empty:
        return sentence(f"{title}: there is nothing to compare.")
    figure = Figure(figsize=(max(5.0, 1.2 + 0.62 * values.size), 3.6))
    axes = figure.subplots()
    width = 0.8 / values.shape[1]
    for i, name in enumerate(values):
        places = np.arange(len(values)) + (i - (values.shape[1] - 1) / 2) * width
        bars = axes.bar(places, values[name], width * 0.92, color=LINES[i % len(LINES)], label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(values)), values.index)
    axes.set(title=title, ylabel=ylabel)
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def schedule(rates: pd.Series) -> Figure:
    """Draw the learning rate of a training to come, by step."""
    figure = Figure(figsize=(6, 2.6))
    axes = figure.subplots()
    axes.plot(rates.index, rates, color=BLUE)
    _rate_axis(axes)
    _step_axis(axes)
    return figure


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _rate_axis(axes: Axes) -> None:
    axes.set(title="Learning rate", ylabel="learning rate", ylim=(0, None))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}".replace("e-0", "e-"))


def thread_speed(table: pd.DataFrame) -> Figure:
    """Draw bars of what ``thread_trial`` measured, and the line that perfect scaling would follow."""
    figure = Figure(figsize=(5, 2.8))
    axes = figure.subplots()
    rates = table["images a second"]
    axes.bar_label(axes.bar(table.threads.astype(str), rates, color=SKY), fmt="%.0f", padding=6)
    axes.plot(table.threads.astype(str), rates[0] * table.threads / table.threads[0], "--", color=INK)
    axes.margins(y=0.2)
    axes.set(title="CPU speed by threads (dashed: perfect scaling)", xlabel="threads", ylabel="images a second")
    axes.grid(axis="x", visible=False)
    return figure


def threshold_chart(suggestion: Suggestion) -> Figure:
    """Draw precision, recall and F1 against each threshold; the best is marked."""
    curves = {rule: curve[np.isfinite(curve.threshold)] for rule, curve in suggestion.curves.items()}
    curves = {rule: curve for rule, curve in curves.items() if len(curve)}
    if not curves:
        return sentence(suggestion.note)
    figure = Figure(figsize=(3.6 * len(curves) + 1.2, 3.2))
    for axes, (rule, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for column, colour, dash in (("f1", INK, "-"), ("precision", BLUE, "--"), ("recall", VERMILION, "-.")):
            label = "F1" if column == "f1" else column
            axes.plot(curve.threshold, curve[column], dash, color=colour, label=label)
        best = suggestion.table().loc[rule]
        if np.isfinite(best.threshold):
            axes.axvline(best.threshold, color=GREEN, linewidth=1)
            axes.plot(best.threshold, best.f1, "o", color=GREEN)
            axes.set_title(f"{rule}: best F1 at {best.threshold:.2f}")
        else:
            axes.set_title(f"{rule}: best without")
        axes.set(xlabel=f"least {rule}", ylim=(0, 103))
    figure.axes[0].set_ylabel("percent")
    figure.axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
