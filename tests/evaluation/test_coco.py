"""COCO scores: hand-computed cases, agreement of the scorers, detection limits."""

from __future__ import annotations

import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evaluation.scenes import add, random_case, rle, row, scene, square
from workbench.data.masks import decode_mask
from workbench.errors import WorkbenchError
from workbench.evaluation.analysis import category_table
from workbench.evaluation.coco import coco_curves, coco_scores
from workbench.evaluation.scorers import SCORERS

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "coco_val2014_100" / "instances.json"
both_scorers = pytest.mark.parametrize("scorer", SCORERS)


@pytest.fixture(scope="module")
def coco100() -> tuple[dict, list[dict]]:
    """The 100 images with predictions made from their ground truth: moved, dropped, repeated, relabelled."""
    if not SHARED.exists():
        pytest.skip(f"needs {SHARED}")
    gt = json.loads(SHARED.read_text())
    rng = np.random.default_rng(0)
    sizes = {image["id"]: (image["height"], image["width"]) for image in gt["images"]}
    ids = [category["id"] for category in gt["categories"]]
    results = []
    for annotation in gt["annotations"]:
        mask = decode_mask(annotation["segmentation"], *sizes[annotation["image_id"]])
        for _ in range(rng.integers(0, 4)):
            moved = np.roll(mask, rng.integers(-12, 13, 2), (0, 1))
            category = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(ids))
            # one decimal only, so that many scores are equal
            results.append(row(moved, round(float(rng.random()), 1), category, annotation["image_id"]))
    return gt, results


@both_scorers
def test_one_found_one_missed(scorer):
    gt = scene()
    add(gt, square(0, 0))
    add(gt, square(30, 30))
    scores = coco_scores(gt, [row(square(0, 0), 0.9)], scorer=scorer)
    # Precision is 1 up to recall 0.5, so at 51 of the 101 recalls.
    assert scores["AP"] == scores["AP50"] == scores["APs"] == pytest.approx(100 * 51 / 101)
    assert scores["AR@1"] == scores["AR@100"] == pytest.approx(50)
    assert scores["APm"] is scores["APl"] is None
    assert scores["per_category"] == {"disc": pytest.approx(100 * 51 / 101), "box": None}


@both_scorers
def test_a_better_scored_false_positive_halves_precision(scorer):
    gt = scene()
    add(gt, square(0, 0))
    results = [row(square(0, 0), 0.5), row(square(40, 40), 0.9)]
    assert coco_scores(gt, results, scorer=scorer)["AP"] == pytest.approx(50)


@both_scorers
def test_iou_decides_at_which_thresholds_it_counts(scorer):
    gt = scene()
    add(gt, square(0, 0, 20))
    part = square(0, 0, 20)
    part[:, 14:] = False  # IoU 14/20 = 0.7: right at 0.5, 0.55, 0.6, 0.65 and 0.7
    scores = coco_scores(gt, [row(part, 0.9)], scorer=scorer)
    assert (scores["AP"], scores["AP50"], scores["AP75"]) == (pytest.approx(50), pytest.approx(100), 0)


@both_scorers
def test_a_prediction_on_a_crowd_region_is_no_mistake(scorer):
    gt = scene()
    add(gt, square(0, 0))
    add(gt, square(30, 30, 30), iscrowd=1)
    results = [row(square(35, 35), 0.9), row(square(45, 45), 0.8), row(square(0, 0), 0.5)]
    assert coco_scores(gt, results, scorer=scorer)["AP"] == pytest.approx(100)


@both_scorers
def test_nothing_predicted_is_zero_and_nothing_to_find_is_none(scorer):
    gt = scene()
    empty = coco_scores(gt, [row(square(0, 0), 0.9)], scorer=scorer)
    assert empty["AP"] is empty["AR@100"] is empty["per_category"]["disc"] is None
    add(gt, square(0, 0))
    scores = coco_scores(gt, [], scorer=scorer)
    assert scores["AP"] == scores["AR@1"] == 0
    without_images = {"images": [], "annotations": [], "categories": gt["categories"]}
    assert coco_scores(without_images, [], scorer=scorer)["AP"] is None


@both_scorers
def test_annotation_id_zero_and_missing_keys_change_nothing(scorer):
    """Both scorers take the id 0 for "unmatched", and pycocotools needs area and iscrowd."""
    gt = scene()
    add(gt, square(0, 0))
    results = [row(square(0, 0), 0.9)]
    expected = coco_scores(gt, results, scorer=scorer)
    annotation = gt["annotations"][0]
    annotation["id"] = 0
    for key in ("area", "bbox", "iscrowd"):
        del annotation[key]
    del results[0]["bbox"]
    assert coco_scores(gt, results, scorer=scorer) == expected
    assert expected["AP"] == pytest.approx(100)


@both_scorers
def test_a_mask_is_small_by_its_own_area_not_by_its_box(scorer):
    """pycocotools' loadRes takes the box's area where a row has both, which moves it to another size."""
    gt = scene(size=128)
    add(gt, square(0, 0, 20, 128))
    thin = np.eye(128, dtype=bool)  # 128 pixels in a box of 128 x 128
    scores = coco_scores(gt, [row(thin, 0.9), row(square(0, 0, 20, 128), 0.8)], scorer=scorer)
    assert scores["APs"] == pytest.approx(50)  # the diagonal is a small false positive


@both_scorers
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_agrees_with_pycocotools_used_directly(coco100, iou_type, scorer):
    gt, results = coco100
    ours = coco_scores(gt, results, iou_type=iou_type, scorer=scorer)
    rows = copy.deepcopy(results)
    if iou_type == "segm":
        for each in rows:
            del each["bbox"]
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(gt)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100"]
    assert [ours[name] for name in names] == pytest.approx(100 * evaluation.stats[:9], abs=1e-6)


@pytest.mark.parametrize("max_dets", [[1, 10, 100], [1, 5, 20, 300], [3]])
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_the_scorers_agree_on_coco(coco100, iou_type, max_dets):
    first, second = (coco_scores(*coco100, iou_type=iou_type, max_dets=max_dets, scorer=scorer) for scorer in SCORERS)
    assert 0 < first["AP"] < 90
    assert first == second


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([[1, 10, 100], [1, 5, 20], [3, 300, 500], [2]]))
def test_the_scorers_agree_to_the_last_digit_on_random_data_with_crowds(seed, max_dets):
    gt, results = random_case(seed)
    for iou_type in ("segm", "bbox"):
        first, second = (
            coco_scores(gt, results, iou_type=iou_type, max_dets=max_dets, scorer=scorer) for scorer in SCORERS
        )
        assert first == second


@both_scorers
def test_invariant_10_max_dets_other_than_100_works_and_changes_no_other_column(scorer):
    """130 predictions an image, the right one 11th, 60th and 120th, so that each limit matters."""
    gt, results = scene(3, 16), []
    for image, place in zip(gt["images"], (11, 60, 120), strict=True):
        add(gt, square(0, 0, 8, 16), image_id=image["id"])
        for number in range(1, 131):
            mask = square(0, 0, 8, 16) if number == place else square(10, 10, 3, 16)
            results.append(row(mask, 1 - number / 200, image_id=image["id"]))
    limits = ([1, 10, 100], [1, 5, 20, 300], [300], [10, 1], [7, 100, 100])
    found = [coco_scores(gt, results, max_dets=max_dets, scorer=scorer) for max_dets in limits]
    for max_dets, scores in zip(limits, found, strict=True):
        assert list(scores)[6:-1] == [f"A{x}@{k}" for x in "RP" for k in sorted(set(max_dets))]
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "per_category"):
            assert scores[name] == found[0][name]
    assert found[0]["AP"] == found[0]["AP@100"] > 0
    recalls = [found[1][f"AR@{k}"] for k in (1, 5, 20, 300)]
    assert recalls == pytest.approx([0, 0, 100 / 3, 100])
    assert found[0]["AR@100"] == pytest.approx(200 / 3)
    assert found[1]["AP@300"] > found[1]["AP"] > found[1]["AP@20"] > found[1]["AP@5"] == 0


@both_scorers
def test_prints_nothing_and_leaves_its_arguments_alone(scorer, capfd):
    gt, results = random_case(1)
    before = copy.deepcopy((gt, results))
    coco_scores(gt, results, max_dets=[5], scorer=scorer)
    assert (gt, results) == before
    assert capfd.readouterr() == ("", "")


def test_curves_of_a_hand_made_case():
    gt = scene()
    add(gt, square(0, 0))
    add(gt, square(30, 30))
    results = [row(square(0, 0), 0.9), row(square(15, 15), 0.8), row(square(30, 30), 0.7)]
    curves = coco_curves(gt, results)
    assert list(curves) == ["disc", "all"]
    curve = curves["disc"]
    assert curve["precision"][:51] == pytest.approx(1)
    assert curve["precision"][51:] == pytest.approx(2 / 3)
    assert curve["score"][50] == 0.9
    assert curve["score"][51] == 0.7
    assert 100 * curve["precision"].mean() == pytest.approx(coco_scores(gt, results)["AP50"])
    with pytest.raises(WorkbenchError, match="0.42"):
        coco_curves(gt, results, iou=0.42)


def test_category_table_has_the_scores_and_counts():
    gt, results = random_case(3)
    table = category_table(gt, results)
    scores = coco_scores(gt, results)
    assert table["AP"].to_dict() == pytest.approx(scores["per_category"])
    assert table["AP50"].mean() == pytest.approx(scores["AP50"])
    assert table["predictions"].sum() == len(results)
    assert table["objects"].sum() == sum(not a["iscrowd"] for a in gt["annotations"])


def test_two_categories_of_one_name_stay_apart():
    gt = scene()
    gt["categories"][1]["name"] = "disc"
    add(gt, square(0, 0), 3)
    add(gt, square(30, 30), 7)
    scores = coco_scores(gt, [row(square(0, 0), 0.9, 3)])
    assert scores["per_category"] == {"disc (id 3)": pytest.approx(100), "disc (id 7)": 0}


def _broken(key: str, value: object) -> dict:
    return {**row(square(0, 0), 0.5), key: value}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (_broken("image_id", 99), "Row 1 .*image_id 99"),
        (_broken("image_id", [10]), "Row 1 .*image_id"),
        (_broken("image_id", True), "Row 1 .*image_id True"),
        (_broken("image_id", 10**400), "Row 1 .*image_id 1000"),
        (_broken("category_id", 5), "Row 1 .*image 10.*category_id 5"),
        (_broken("category_id", 3.0), "Row 1 .*category_id 3.0"),
        (_broken("score", float("nan")), "Row 1 .*score nan"),
        (_broken("score", None), "Row 1 .*score None"),
        (_broken("score", "0.5"), "Row 1 .*score '0.5'"),
        (_broken("score", True), "Row 1 .*score True"),
        (_broken("score", 10**400), "Row 1 .*score 1000"),
        (_broken("bbox", [0, 0, 10**400, 4]), "Row 1 .*bbox"),
        (_broken("segmentation", {**rle(square(0, 0)), "size": [64.0, 64.0]}), "Row 1 .*whole numbers"),
        (_broken("segmentation", {"size": [64, True], "counts": [64]}), "Row 1 .*whole numbers"),
        (_broken("bbox", [0, 0, -1, 4]), "Row 1 .*bbox"),
        (_broken("segmentation", rle(np.ones((32, 64)))), "Row 1 .*32x64.*64x64"),
        (_broken("segmentation", {"size": [64, 64], "counts": "0"}), "Row 1 .*pixels"),
        (_broken("segmentation", {"size": [64, 64], "counts": "PP\x00"}), "Row 1 .*damaged"),
        (_broken("segmentation", {"size": [64, 64], "counts": [5]}), "Row 1 .*pixels"),
        (_broken("segmentation", {"size": [64, 64]}), "Row 1 .*counts"),
        (_broken("segmentation", None), "Row 1 .*segmentation"),
        ("row", "Row 1 .*text"),
    ],
)
def test_a_faulty_row_is_named(bad, message):
    gt = scene()
    add(gt, square(0, 0))
    with pytest.raises(WorkbenchError, match=message):
        coco_scores(gt, [row(square(0, 0), 0.5), bad])


def test_faulty_ground_truth_and_settings_are_named():
    gt = scene()
    add(gt, square(0, 0))
    for key, value, message in [
        ("images", None, "images"),
        ("annotations", [{"id": 5, "image_id": 1}], "Annotation 5 .*image_id 1"),
        ("annotations", [{**gt["annotations"][0], "segmentation": []}], "Annotation 1 .*empty"),
        ("categories", [{"id": 3}, {"id": 3}], "category id 3"),
        ("images", [{"id": 10, "height": 0, "width": 3}], "Image id 10"),
        ("images", [{"id": 10, "height": 64.0, "width": 64}], "Image id 10"),
        ("images", [{"id": 10, "height": 10**9, "width": 10**9}], "Image id 10 .*beyond"),
        ("images", [{"id": 10**400, "height": 64, "width": 64}], "Image number 0"),
    ]:
        with pytest.raises(WorkbenchError, match=message):
            coco_scores({**gt, key: value}, [])
    for settings_, message in [
        ({"scorer": "mine"}, "mine.*hotcoco"),
        ({"iou_type": "keypoints"}, "keypoints"),
        ({"max_dets": []}, "max_dets"),
        ({"max_dets": [0]}, "max_dets"),
        ({"max_dets": 100}, "max_dets"),
    ]:
        with pytest.raises(WorkbenchError, match=message):
            coco_scores(gt, [], **settings_)


def test_boxes_alone_can_be_scored():
    gt = scene()
    add(gt, square(0, 0))
    del gt["annotations"][0]["segmentation"]
    results = [{"image_id": 10, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.5}]
    assert coco_scores(gt, results, iou_type="bbox")["AP"] == pytest.approx(100)
    with pytest.raises(WorkbenchError, match="segmentation"):
        coco_scores(gt, results)


def test_all_mask_encodings_score_alike():
    gt = scene()
    mask = square(5, 5, 20)
    add(gt, mask)
    gt["annotations"][0]["segmentation"] = [[5, 5, 25, 5, 25, 25, 5, 25]]
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    for segmentation in (
        rle(mask),
        {"size": [64, 64], "counts": counts},
        gt["annotations"][0]["segmentation"],
    ):
        scores = coco_scores(gt, [{"image_id": 10, "category_id": 3, "segmentation": segmentation, "score": 1.0}])
        assert scores["AP"] == pytest.approx(100)
    assert coco_mask.area(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))) == 400
