"""Charts: they draw what they are given, and say so in a sentence where that is nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workbench.evaluation.queries import QueryOutputs
from workbench.notebook.surgery import LayerPair
from workbench.visualization import charts, features, query_charts


def _words(figure: Figure) -> str:
    figure.canvas.draw()
    texts = [*figure.texts, *(t for axes in figure.axes for t in (*axes.texts, axes.title, axes._left_title))]
    for axes in figure.axes:
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
    return " ".join(text.get_text() for text in texts)


def _categories(count: int) -> pd.DataFrame:
    names = [f"c{i}" for i in range(count)]
    values = np.linspace(5, 95, count)
    return pd.DataFrame({"AP": values, "AP50": values, "objects": 3}, index=names)


def test_nothing_to_draw_is_a_sentence() -> None:
    empty = pd.DataFrame({"predictions": [0], "score": [0.0]})
    nothing = QueryOutputs(
        (1,),
        np.zeros((1, 2)),
        np.zeros((1, 2), bool),
        np.zeros((1, 2), int),
        np.zeros((1, 2)),
        np.full((2, 4, 4), np.nan),
    )
    for figure, words in (
        (charts.learning_curves(pd.DataFrame()), "No step"),
        (charts.precision_recall({}, 0.5), "no ground truth"),
        (charts.category_bars(_categories(2).assign(AP=np.nan)), "no ground truth"),
        (charts.confusion(pd.DataFrame([[0, 0]]).rename_axis("predicted colour", axis=1)), "No object"),
        (charts.calibration(empty), "no prediction"),
        (query_charts.score_histogram(empty.head(0)), "no prediction"),
        (query_charts.mean_mask_sheet(nothing), "No query claims"),
        (
            query_charts.detection_limit_chart(pd.DataFrame({"AP": [np.nan], "AR": [np.nan]})),
            "no ground truth",
        ),
    ):
        assert words in _words(figure)
        assert not figure.axes


def test_curves_of_a_run_name_each_component_once_and_leave_out_inner_layers() -> None:
    steps = np.arange(1, 101)
    names = (
        "total_loss",
        "loss_ce",
        "loss_ce_0",
        "loss_mask",
        "loss_subcategory_colour",
        "loss_0_subcategory_colour",
        "lr",
    )
    rows = pd.DataFrame({"step": steps, **dict.fromkeys(names, 1 / steps), "segm/AP": np.nan})
    assert len(charts.learning_curves(rows).axes) == 2  # nothing was evaluated yet
    rows.loc[99, "segm/AP"] = 12.0
    figure = charts.learning_curves(rows)
    assert len(figure.axes) == 3
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == [
        "total",
        "ce",
        "mask",
        "colour",
    ]


def test_logarithmic_axes_are_labelled_with_plain_numbers() -> None:
    """Formulas are off, as names from data may hold a "$", and matplotlib's own labels of powers are formulas."""
    charts.use_style()
    bins = pd.DataFrame({"low": [0.0, 0.5], "high": [0.5, 1.0], "mean_score": 0.5, "precision": 0.5})
    steps = pd.DataFrame({"step": np.arange(1, 101), "total_loss": np.geomspace(100, 0.01, 100), "lr": 1.0})
    rows = pd.DataFrame({"score": np.linspace(0, 1, 2000) ** 8, "outcome": "right"})
    for figure, axes, label in (
        (charts.learning_curves(steps), 0, "0.1"),
        (charts.calibration(bins.assign(predictions=[12000, 30])), 1, "10,000"),
        (query_charts.score_histogram(rows), 0, "1,000"),
    ):
        figure.canvas.draw()
        labels = [text.get_text() for text in figure.axes[axes].get_yticklabels()]
        assert label in labels and not any("$" in text for text in labels)


@pytest.mark.parametrize(("count", "bars"), [(5, 5), (90, 40)])
def test_many_categories_are_cut_to_the_best_and_the_worst(count: int, bars: int) -> None:
    axes = charts.category_bars(_categories(count)).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == bars and labels[0].startswith(f"c{count - 1} ") and labels[-1].startswith("c0 ")


def test_few_categories_are_named_in_the_curves_and_many_are_not() -> None:
    curve = {"recall": np.linspace(0, 1, 101), "precision": np.linspace(1, 0, 101)}
    few = charts.precision_recall({"ring": curve, "all": curve}, 0.5)
    many = charts.precision_recall({**{f"c{i}": curve for i in range(80)}, "all": curve}, 0.5)
    assert "ring  50" in _words(few) and "c1 " not in _words(many)
    assert "mean  50 of 80 categories" in _words(many)


def test_cells_of_a_confusion_matrix_are_shaded_by_their_row_and_say_counts() -> None:
    counts = pd.DataFrame([[9, 1], [0, 0]], index=["red", "blue"], columns=["red", "blue"])
    figure = charts.confusion(counts.rename_axis("predicted colour", axis=1))
    shades = figure.axes[0].images[0].get_array()
    assert shades.tolist() == [[90, 10], [0, 0]]
    assert "colour" in _words(figure) and "9" in _words(figure)


def test_scores_by_setting_shows_every_run_and_the_mean_of_each_value() -> None:
    table = pd.DataFrame({"lr": [0.1, 0.1, 0.2], "seed": [0, 1, 0], "AP": [10.0, 20.0, 40.0]})
    figure = charts.scores_by_setting(table, ["lr", "seed"], "AP")
    runs, means = figure.axes[0].lines
    assert list(runs.get_ydata()) == [10, 20, 40] and list(means.get_ydata()) == [15, 40]
    assert [axes.get_xlabel() for axes in figure.axes] == ["lr", "seed"]


def test_the_saturation_chart_shows_what_so_many_queries_must_miss() -> None:
    table = pd.DataFrame({"visible": [1, 40, 50], "share": [0.0, 50.0, 100.0], "merged": [np.nan, 40.0, np.nan]})
    table = table.assign(repeat=0, predictions=[1, 20, 0])
    table = table.assign(experiment="the same object", run="a", queries=20)
    figure = query_charts.saturation_chart(table)
    least = next(line for line in figure.axes[0].lines if line.get_linestyle() == ":" and len(line.get_xdata()))
    at_40 = least.get_ydata()[list(least.get_xdata()).index(40)]
    assert at_40 == pytest.approx(50)
    assert "missed by a (20 queries)" in _words(figure) and "nothing is predicted" in _words(figure)
    merged, silent = (next(x for x in figure.axes[0].lines if look(x)) for look in (_is_dashed, _is_crossed))
    assert (list(merged.get_xdata()), list(merged.get_ydata())) == ([40], [40])
    assert list(silent.get_xdata()) == [50]
    assert "nothing to show" in _words(query_charts.saturation_chart(pd.DataFrame()))


def _is_dashed(line: Line2D) -> bool:
    return line.get_linestyle() == "--"


def _is_crossed(line: Line2D) -> bool:
    return line.get_marker() == "x"


def test_histograms_of_more_and_of_fewer_images_have_one_scale() -> None:
    axes = query_charts.objects_and_queries(pd.Series([1, 2] * 150), pd.Series([1, 1, 2, 2] * 50), 12).axes
    assert [[round(bar.get_height()) for bar in each.patches if bar.get_height()] for each in axes] == [[50, 50]] * 2
    assert [each.get_title(loc="left") for each in axes] == [
        "Objects (300 images)",
        "Queries that claim an object (200 images)",
    ]


def test_steps_are_whole_and_axes_have_names() -> None:
    rows = pd.DataFrame({"step": [1, 2, 3], "total_loss": [3.0, 2.0, 1.0], "lr": 0.1, "segm/AP": [1.0, 2.0, 3.0]})
    for figure in (charts.learning_curves(rows), charts.schedule(pd.Series([0.1, 0.2, 0.1]))):
        figure.canvas.draw()
        for axes in figure.axes:
            assert axes.get_xlabel() == "step" and axes.get_ylabel()
            assert all(tick == round(tick) for tick in axes.get_xticks())


def test_small_and_large_differences_of_layers_are_told_apart() -> None:
    pairs = {
        "same": [LayerPair(0, (1, 2, 2), (1, 2, 2), 0.0), LayerPair(1, (1, 2, 2), (1, 1, 1), None)],
        "other": [LayerPair(0, (1, 2, 2), (1, 2, 2), 0.02), LayerPair(1, (1, 2, 2), (1, 2, 2), 6000.0)],
    }
    figure = features.layer_differences(pairs)
    figure.canvas.draw()
    axes = figure.axes[0]
    zero, small, large, cross = axes.transData.transform([(0, 0), (0, 0.02), (0, 6000), (0, 24000)])[:, 1]
    assert zero < small < large < cross and small - zero > 0.05 * (large - zero)
    assert "sizes differ" in _words(figure)
    assert not any("$" in label.get_text() for label in axes.get_yticklabels())
