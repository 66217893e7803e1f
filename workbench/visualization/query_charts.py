"""Charts of how queries are used; the tables are those of ``evaluation.queries`` and ``evaluation.saturation``."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.evaluation.queries import QueryOutputs
from workbench.visualization.charts import (
    BLUE,
    GREEN,
    INK,
    LINES,
    ORANGE,
    QUIET,
    SKY,
    VERMILION,
    plain_log_ticks,
    sentence,
)

OUTCOMES = {"right": GREEN, "duplicate": ORANGE, "wrong": VERMILION, "crowd": QUIET}


def objects_and_queries(objects: pd.Series, claims: pd.Series, queries: int) -> Figure:
    """Draw histograms of how many objects an image has, and of how many of the ``queries`` claim one.

    Both are shares of the images that they were counted in, which may be more for the objects.
    """
    figure = Figure(figsize=(8, 3.2))
    left, right = figure.subplots(1, 2, sharey=True)
    most = int(max(objects.max(), claims.max(), 1))
    edges = np.arange(-0.5, most + 1.5, max(1, most // 30))
    for axes, values, name in ((left, objects, "objects"), (right, claims, "queries that claim an object")):
        axes.hist(values, bins=edges, weights=np.full(len(values), 100 / max(1, len(values))), color=SKY)
        axes.margins(y=0.12)  # room for the words above the bars
        axes.axvline(values.mean(), color=INK, linestyle="--")
        axes.text(values.mean(), 0.97, f" mean {values.mean():.1f}", transform=axes.get_xaxis_transform(), va="top")
        if queries <= 1.5 * most:
            axes.axvline(queries, color=VERMILION, linewidth=2)
            axes.text(
                queries, 0.85, f"{queries} queries ", color=VERMILION, ha="right", transform=axes.get_xaxis_transform()
            )
        axes.set(xlabel=f"{name} in an image", title=f"{name.capitalize()} ({len(values):,} images)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("percent of the images")
    return figure


def query_use(table: pd.DataFrame) -> Figure:
    """Draw the share of the images in which each query claims an object, busiest first; of ``QueryOutputs.table``."""
    busiest = table.sort_values("claims", ascending=False, kind="stable")
    figure = Figure(figsize=(8, 2.8))
    axes = figure.subplots()
    axes.bar(range(len(busiest)), busiest.claims, color=SKY, linewidth=0.3, width=0.9)
    idle = int((busiest.claims == 0).sum())
    axes.set(
        title=f"How often each query claims an object ({idle} of {len(busiest)} never do)",
        xlabel="query, busiest first",
        ylabel="percent of the images",
        xlim=(-0.7, len(busiest) - 0.3),
    )
    if len(busiest) <= 40:
        axes.set_xticks(range(len(busiest)), busiest.index, fontsize=8)
    axes.grid(axis="x", visible=False)
    return figure


def detection_limit_chart(table: pd.DataFrame) -> Figure:
    """Draw AP and AR against the number of detections that count; of ``detection_limits``."""
    if table.isna().all(axis=None):
        return sentence("There is no ground truth, so AP and AR cannot be measured.")
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    for name, colour, marker in (("AR", BLUE, "o"), ("AP", VERMILION, "s")):
        axes.plot(table.index, table[name], marker=marker, color=colour, label=name)
        axes.annotate(
            f"{table[name].iloc[-1]:.1f}",
            (table.index[-1], table[name].iloc[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.set(
        title="What more detections bring",
        xlabel="maxDets: detections of a category that count in an image",
        ylabel="percent",
        xscale="log",
        ylim=(0, None),
    )
    axes.set_xticks(table.index, [str(k) for k in table.index])
    axes.minorticks_off()
    axes.margins(x=0.09)
    axes.legend()
    return figure


def mean_mask_sheet(outputs: QueryOutputs, most: int = 40, columns: int = 10) -> Figure:
    """Draw the mean mask of each of the busiest queries over the images where it claims an object."""
    table = outputs.table().sort_values("claims", ascending=False, kind="stable")
    shown = table[table.claims > 0].head(most)
    if shown.empty:
        return sentence("No query claims an object in any image: the model needs more training.")
    rows = -(-len(shown) // columns)
    top = max(0.2, float(np.nanquantile(outputs.mean_masks[shown.index[: max(1, len(shown) // 2)]], 0.995)))
    figure = Figure(figsize=(0.95 * columns, 1.16 * rows + 0.4))
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid:
        axes.set_axis_off()
    for axes, (query, row) in zip(figure.axes, shown.iterrows(), strict=False):
        axes.imshow(outputs.mean_masks[query], cmap="cividis", vmin=0, vmax=top)
        axes.set_title(f"{query}: {row.claims:.0f} %", fontsize=8, fontweight="normal", loc="left")
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        axes.grid(visible=False)
    figure.suptitle(
        f"Mean masks (query: share of images where it claims an object; blue 0, yellow {top:.1f} and more)",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    return figure


def score_histogram(table: pd.DataFrame) -> Figure:
    """Draw the scores of right, duplicate and wrong predictions; of ``right_and_wrong``."""
    if table.empty:
        return sentence("There is no prediction, so there are no scores.")
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    edges = np.linspace(0, 1, 41)
    bottom = np.zeros(40)
    for name, colour in OUTCOMES.items():
        counts = np.histogram(table.score[table.outcome == name], edges)[0]
        if counts.sum():
            hatch = {"duplicate": "//", "wrong": ".."}.get(name)
            label = f"{name} ({counts.sum()})"
            axes.bar(edges[:-1], counts, 0.025, bottom, align="edge", color=colour, label=label, hatch=hatch)
            bottom += counts
    axes.set(title="Scores of the predictions", xlabel="score", ylabel="predictions", xlim=(0, 1), yscale="symlog")
    plain_log_ticks(axes.yaxis)
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def saturation_chart(table: pd.DataFrame) -> Figure:
    """Draw the share of missed objects against the number visible: mean and standard deviation over the repeats.

    ``table`` is the result of ``compare_saturation``; each experiment is a panel. Dashed: the share of the missed ones
    that a prediction covers together with others, without the pictures where nothing is predicted; those counts where
    that holds for every picture have a cross. Dotted: the share that a model with so many queries misses at least.
    """
    if table.empty:
        return sentence("No object is whole, so the saturation experiment has nothing to show.")
    experiments = table.groupby("experiment", sort=False)
    figure = Figure(figsize=(2.2 + 3.9 * len(experiments), 3.6))
    panels = figure.subplots(1, len(experiments), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(panels, experiments, strict=True):
        for i, ((run, queries), repeats) in enumerate(rows.groupby(["run", "queries"], sort=False)):
            colour, marker = LINES[i % len(LINES)], "osD^v"[i % 5]
            share = repeats.groupby("visible").share.agg(["mean", "std"]).fillna(0)
            low, high = share["mean"] - share["std"], share["mean"] + share["std"]
            axes.fill_between(share.index, low.clip(0), high.clip(upper=100), color=colour, alpha=0.2, linewidth=0)
            label = f"missed by {run} ({queries} queries)"
            axes.plot(share.index, share["mean"], marker=marker, color=colour, label=label)
            merged = repeats.groupby("visible").merged.mean().dropna()
            axes.plot(merged.index, merged, "--", marker=".", color=colour, linewidth=1.3)
            silent = share[repeats.groupby("visible").predictions.max() == 0]
            axes.plot(silent.index, silent["mean"], "x", color=INK, markersize=9, markeredgewidth=2, zorder=3)
            visible = np.arange(1, 101)
            least = 100 * np.maximum(0, 1 - queries / visible)
            axes.plot(visible[least > 0], least[least > 0], ":", color=colour, linewidth=1.6)
        axes.set(title=title.capitalize(), xlabel="objects visible on a 10 × 10 grid", xlim=(0, 102), ylim=(-3, 103))
    panels[0].set_ylabel("percent")
    panels[-1].plot([], [], "--", marker=".", color=QUIET, label="merged, of those missed")
    panels[-1].plot([], [], ":", color=QUIET, label="missed for want of queries")
    if (table.groupby(["experiment", "run", "visible"]).predictions.max() == 0).any():
        panels[-1].plot([], [], "x", color=INK, markeredgewidth=2, label="nothing is predicted")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
