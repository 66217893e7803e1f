"""Kinds of error, suspected label errors and the comparison of two results, on hand-made scenes."""

from __future__ import annotations

import pytest

from tests.evaluation.scenes import add, random_case, row, scene, square
from workbench.evaluation.analysis import compare_results, suspected_label_errors, tide_table
from workbench.evaluation.coco import coco_scores


def test_each_kind_of_error_is_counted_and_priced():
    gt = scene(2)
    for place in ((0, 0), (20, 0), (40, 0), (0, 30)):
        add(gt, square(*place))
    results = [
        row(square(0, 0), 0.9),
        row(square(0, 0), 0.8),  # found already
        row(square(20, 0), 0.7, 7),  # of the other category
        row(square(40, 6), 0.6),  # IoU 0.25
        row(square(40, 50), 0.5),  # on nothing
        row(square(0, 36), 0.4, 7),  # IoU 0.25, of the other category
    ]
    table = tide_table(gt, results)
    assert table["count"].to_dict() == {
        "wrong category": 1,
        "poor overlap": 1,
        "wrong category and poor overlap": 1,
        "duplicate": 1,
        "background": 1,
        "missed": 1,  # the others are missed for a reason that has a row of its own
    }
    assert table["AP50 lost"].is_monotonic_decreasing
    mended = [*results, row(square(40, 0), 1.0)]
    mended.remove(results[3])
    gain = coco_scores(gt, mended)["AP50"] - coco_scores(gt, results)["AP50"]
    assert 0 < table["AP50 lost"]["poor overlap"] <= gain + 1e-9


def test_tide_without_predictions_counts_the_missed_objects():
    gt = scene()
    add(gt, square(0, 0))
    assert tide_table(gt, [])["count"].to_dict()["missed"] == 1


def test_suspected_label_errors_name_image_and_annotation():
    gt = scene(2)
    add(gt, square(0, 0), 3, id=17)
    add(gt, square(0, 0), 3, image_id=11, id=18)
    results = [
        row(square(0, 0), 0.9, 7),  # annotated as a disc
        row(square(40, 40), 0.8, 3, image_id=11),  # not annotated
        row(square(20, 40), 0.3, 3, image_id=11),  # below the threshold
        row(square(0, 0), 0.7, 3, image_id=11),  # right
    ]
    table = suspected_label_errors(gt, results)
    assert table.iloc[0, :-1].map(str).tolist() == ["10", "0.png", "wrong category", "0.9", "box", "disc", "17"]
    assert table.iloc[1, :-3].tolist() == [11, "1.png", "not annotated", 0.8, "disc"]
    assert table.iloc[1, -3:-1].isna().all()
    assert table["overlap"].tolist() == [1, 0]
    assert len(suspected_label_errors(gt, results, score_threshold=0.85)) == 1
    assert suspected_label_errors(gt, []).empty


def test_a_comparison_has_the_scores_of_both_and_the_interval_of_their_difference():
    gt, second = random_case(4, images=12)
    first = [each for number, each in enumerate(second) if number % 3]
    table = compare_results(gt, first, second, resamples=200)
    for name, results in (("first", first), ("second", second)):
        scores = coco_scores(gt, results)
        shown = [key for key in scores if key in table.index]
        assert table[name][shown].to_dict() == pytest.approx({key: scores[key] for key in shown})
    assert list(table.index) == ["AP", "AP50", "AP75", "APs", "AR@1", "AR@10", "AR@100", "ARs"]  # nothing is large
    assert table["difference"].to_numpy() == pytest.approx((table["second"] - table["first"]).to_numpy())
    assert (table["low"] <= table["difference"]).all()
    assert (table["difference"] <= table["high"]).all()
    assert table.loc["AR@100", "second is better"] > 90
    assert compare_results(gt, first, second, resamples=200).equals(table)  # the seed is fixed


def test_results_compared_with_themselves_differ_by_nothing():
    gt, results = random_case(4)
    table = compare_results(gt, results, results, resamples=20)
    assert not table[["difference", "low", "high", "second is better"]].to_numpy().any()
