"""Feature maps and networks as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from workbench.visualization.charts import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, VERMILION, plain_log_ticks

STAGE_COLOURS = dict(zip(("res2", "res3", "res4", "res5"), (ORANGE, GREEN, PURPLE, VERMILION), strict=True))


def feature_maps(features: Mapping[str, Tensor], image: np.ndarray, channels: int = 6) -> Figure:
    """Draw the ``channels`` of each stage that vary most, a row each, beside the image (H, W, 3).

    ``features``: {"res2": (1, C, h, w), ...}. A map is shaded from its own least to its own largest value.
    """
    figure = Figure(figsize=(1.45 * (channels + 1), 1.55 * len(features)))
    grid = figure.subplots(len(features), channels + 1, squeeze=False)
    for row, (name, maps) in zip(grid, features.items(), strict=True):
        maps = maps[0].detach().float().cpu()
        strongest = maps.flatten(1).std(1, correction=0).argsort(descending=True)[:channels]
        row[0].imshow(image)
        colon = ": " if len(name) < 6 else "\n"
        row[0].set_title(f"{name}{colon}{len(maps)} × {maps.shape[1]} × {maps.shape[2]}", fontsize=9, loc="left")
        for axes, channel in zip(row[1:], strongest.tolist(), strict=False):
            axes.imshow(maps[channel].numpy(), cmap="cividis", interpolation="nearest")
            axes.set_title(f"channel {channel}", fontsize=8, fontweight="normal", loc="left")
        for axes in row:
            axes.set_axis_off()
    return figure


def staircase(
    networks: Mapping[str, Sequence], taps: Mapping[str, int], *, names: Sequence[str] | None = None
) -> Figure:
    """Draw stride and channels of every layer; ``networks``: {label: layers}, as `measure_layers` gives them, drawn
    as far as the first one goes.

    ``taps``: {stage: layer number} of the first network, marked. ``names``: what stands below the layers.
    """
    figure = Figure(figsize=(8.4, 4.4))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 1])
    layers = next(iter(networks.values()))
    indices = [layer.index for layer in layers]
    for (label, each), dash, colour in zip(networks.items(), ("-", "--"), (BLUE, INK), strict=False):
        drawn = each[: len(layers)]
        upper.step(
            indices, [layer.stride for layer in drawn], dash, where="mid", color=colour, linewidth=2, label=label
        )
    marked = {tap: stage for stage, tap in taps.items()}
    colours = [STAGE_COLOURS.get(marked.get(index), "#d0d0d0") for index in indices]
    bars = lower.bar(indices, [layer.channels for layer in layers], color=colours)
    for layer, text in zip(layers, lower.bar_label(bars, fontsize=8, color=QUIET), strict=True):
        if layer.index in marked:
            text.set(fontweight="bold", color=INK)
            upper.plot(layer.index, layer.stride, "o", color=STAGE_COLOURS[marked[layer.index]], markersize=9)
            upper.annotate(
                marked[layer.index],
                (layer.index, layer.stride),
                xytext=(-4, 8),
                textcoords="offset points",
                ha="right",
                fontweight="bold",
            )
    strides = sorted({layer.stride for each in networks.values() for layer in each[: len(layers)]})
    upper.set(yscale="log", ylabel="stride", title="Stride of each layer's output")
    upper.set_yticks(strides, [f"1/{stride}" for stride in strides])
    upper.minorticks_off()
    upper.margins(y=0.2)
    upper.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    lower.set(ylabel="channels", xlabel="layer", title="Channels")
    lower.margins(y=0.2)
    lower.set_xticks(indices, names or indices)
    if names:
        lower.tick_params(axis="x", rotation=90)
    lower.grid(axis="x", visible=False)
    return figure


def layer_differences(comparisons: Mapping[str, Sequence]) -> Figure:
    """Draw the difference of two networks after each layer; ``comparisons``: {label: result of `compare_layers`}.

    The axis is logarithmic above the smallest difference, and has a zero. A cross on the upper edge marks layers whose
    outputs have different sizes. The first comparison has the largest marks, so that it shows behind the others.
    """
    figure = Figure(figsize=(8.4, 3.2))
    axes = figure.subplots()
    known = [p.difference for pairs in comparisons.values() for p in pairs if p.difference is not None]
    least = 10 ** math.floor(math.log10(min([each for each in known if each > 0], default=1.0)))
    top = max([*known, least]) * 4
    looks = zip((GREEN, VERMILION, BLUE), "os^", (11, 7, 6), strict=True)
    for (label, pairs), (colour, marker, size) in zip(comparisons.items(), looks, strict=False):
        same = [p for p in pairs if p.difference is not None]
        places, differences = [p.index for p in same], [p.difference for p in same]
        axes.plot(places, differences, marker=marker, markersize=size, color=colour, label=label)
        other = [p.index for p in pairs if p.difference is None]
        axes.plot(other, [top] * len(other), "x", color=colour, markersize=8, markeredgewidth=2)
        if other:
            axes.annotate(
                "sizes differ",
                (other[0], top),
                xytext=(-12, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                color=colour,
            )
    axes.set(
        title="Largest difference between the outputs of the two networks",
        xlabel="layer",
        ylabel="absolute difference",
    )
    axes.set_yscale("symlog", linthresh=least, linscale=0.5)
    plain_log_ticks(axes.yaxis)
    axes.set_ylim(-0.3 * least, top * 3)
    axes.set_xticks(range(max(len(pairs) for pairs in comparisons.values())))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
