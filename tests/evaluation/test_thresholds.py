"""Suggested thresholds: the best F1, checked against counting by hand and against trying every one."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.evaluation.analysis import per_image_scores
from workbench.evaluation.filters import FilterSettings, SubcategoryFilter, apply_filters
from workbench.evaluation.thresholds import suggest_thresholds
from workbench.visualization.charts import threshold_chart

spec = importlib.util.spec_from_file_location("candidates", Path(__file__).with_name("candidates.py"))
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
VOCABULARY, annotation, row, subcategories, truth = (
    made.VOCABULARY,
    made.annotation,
    made.row,
    made.subcategories,
    made.truth,
)


def test_the_score_that_parts_true_from_false():
    gt = truth(annotation(1, 5, 5), annotation(2, 30, 5), annotation(3, 5, 30))
    rows = [row(5, 5, 0.9), row(30, 5, 0.8), row(5, 30, 0.6), row(45, 45, 0.5), row(30, 45, 0.4)]
    found = suggest_thresholds(gt, rows, VOCABULARY)
    assert 0.5 < found.settings.score <= 0.6
    assert found.table().loc["score", ["precision", "recall", "f1"]].tolist() == [100, 100, 100]
    assert apply_filters(rows, found.settings, VOCABULARY).kept == [0, 1, 2]
    curve = found.curves["score"]
    assert curve.threshold.tolist() == [0.2, 0.5, 0.6, 0.7, 0.9]
    assert curve.f1.tolist() == pytest.approx([200 * n / (d + 3) for n, d in ((3, 5), (3, 4), (3, 3), (2, 2), (1, 1))])


def test_words_table_and_settings_name_one_score():
    found = suggest_thresholds(truth(annotation(1, 5, 5)), [row(5, 5, 0.97704756), row(30, 5, 0.2)], VOCABULARY)
    assert found.settings.score == found.table().loc["score", "threshold"] == 0.6
    assert "With a score of at least 0.6," in found.note


def test_a_suggested_score_has_the_decimals_of_a_slider():
    """0.7173 and 0.7179 cannot be parted by it; 0.7179 and 0.7211 can."""
    gt = truth(annotation(1, 5, 5), annotation(2, 30, 5))
    rows = [row(5, 5, 0.7211), row(30, 5, 0.7179), row(5, 30, 0.7173), row(30, 30, 0.0004)]
    found = suggest_thresholds(gt, rows, VOCABULARY)
    assert found.curves["score"].threshold.tolist() == [0.0, 0.4, 0.72]
    assert found.settings.score == 0.4 and apply_filters(rows, found.settings, VOCABULARY).kept == [0, 1, 2]


def test_a_subcategory_threshold_that_drops_the_wrong_ones():
    red, green = {"attributes": {"colour": "red"}}, {"attributes": {"colour": "green"}}
    gt = truth(annotation(1, 5, 5, **red), annotation(2, 30, 5, **red), annotation(3, 5, 30, **green))
    sure = subcategories(colour=(0.9, 0.1, 0.0), texture=(0.9, 0.1, 0.0))
    unsure = subcategories(colour=(0.5, 0.4, 0.1), texture=(0.9, 0.1, 0.0))  # red, and wrong
    rows = [row(5, 5, 0.9, **sure), row(30, 5, 0.8, **sure), row(5, 30, 0.7, **unsure)]
    found = suggest_thresholds(gt, rows, VOCABULARY)
    assert 0.5 < found.settings.subcategories["colour"].threshold <= 0.9
    assert found.settings.subcategories["texture"].threshold is None  # unlabelled: nothing to gain
    assert apply_filters(rows, found.settings, VOCABULARY).kept == [0, 1]
    curve = found.curves["colour probability"]
    assert np.isneginf(curve.threshold[0]) and curve.f1[0] == pytest.approx(200 * 2 / 6)
    assert "raises the F1" in found.note and "colour" in found.note
    by_logit = FilterSettings(subcategories={"colour": SubcategoryFilter(measure="logit")})
    found = suggest_thresholds(gt, rows, VOCABULARY, by_logit)
    assert 5 < found.settings.subcategories["colour"].threshold <= 9


def test_other_settings_are_kept_and_applied():
    gt = truth(annotation(1, 5, 5))
    rows = [row(5, 5, 0.9), row(6, 5, 0.8), row(40, 40, 0.95, side=2)]
    wanted = FilterSettings(score=0.9, min_area=10, nms="within", nms_iou=0.5)
    found = suggest_thresholds(gt, rows, VOCABULARY, wanted)
    assert found.curves["score"].threshold.tolist() == [found.settings.score] == [0.5]
    assert replace(found.settings, score=0.9, subcategories={}) == wanted


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_no_other_score_has_a_better_f1(seed):
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 50, (6, 2)).tolist()
    gt = truth(*(annotation(i + 1, *place, iscrowd=int(rng.random() < 0.2)) for i, place in enumerate(places)))
    rows = [
        row(x + int(rng.integers(0, 4)), y, float(rng.integers(1, 9)) / 10, side=int(rng.integers(6, 12)))
        for x, y in [*places, *places]
    ]
    if all(each["iscrowd"] for each in gt["annotations"]):
        return
    found = suggest_thresholds(gt, rows, VOCABULARY, FilterSettings(nms="within", nms_iou=0.5))
    if not found.curves["score"].f1.max() > 0:
        return
    f1 = []
    for score in np.arange(0.05, 1, 0.1):
        kept = apply_filters(rows, replace(found.settings, score=score, subcategories={}), VOCABULARY).rows
        f1.append(per_image_scores(gt, kept, score_threshold=0).f1[0])
    assert found.table().f1["score"] == pytest.approx(max(f1))


@pytest.mark.parametrize(
    ("gt", "rows", "wanted", "why"),
    [
        (None, [row(5, 5, 0.9)], FilterSettings(), "no ground truth"),
        (truth(), [row(5, 5, 0.9)], FilterSettings(), "no ground truth"),
        (truth(annotation(1, 5, 5, iscrowd=1)), [row(5, 5, 0.9)], FilterSettings(), "no ground truth"),
        (truth(annotation(1, 5, 5)), [], FilterSettings(), "no predictions"),
        (truth(annotation(1, 5, 5)), [row(5, 5, 0.9)], FilterSettings(categories=("box",)), "leave no prediction"),
        (truth(annotation(1, 5, 5)), [row(40, 40, 0.9)], FilterSettings(), "No prediction finds an object"),
    ],
)
def test_where_nothing_can_be_suggested_it_says_so(gt, rows, wanted, why):
    found = suggest_thresholds(gt, rows, VOCABULARY, wanted)
    assert why in found.note
    assert found.settings == wanted
    found.table()
    threshold_chart(found).canvas.draw()
