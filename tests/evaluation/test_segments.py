"""Panoptic quality and mean IoU, by hand, and what of them stands in metrics.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.scenes import add, row, scene, square
from workbench.data.masks import decode_mask
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results, metrics_frames, metrics_table
from workbench.evaluation.segments import panoptic_scores, segment_rows, semantic_scores
from workbench.evaluation.summary import main_score, summarise

WORDS = Vocabulary((3, 7, 9), ("disc", "box", "sky"), stuff=frozenset({"sky"}))
TOP, BOTTOM = np.zeros((2, 64, 64), dtype=bool)
TOP[:32] = BOTTOM[32:] = True


def ground_truth(images: int = 1) -> dict:
    gt = scene(images)
    gt["categories"].append({"id": 9, "name": "sky", "isthing": 0})
    return gt


def test_panoptic_quality_by_hand() -> None:
    """A disc of IoU 0.8 and one that is missed, a box that is wrong, and a sky of IoU 28/32."""
    gt = ground_truth()
    add(gt, square(0, 32))
    add(gt, square(20, 32))
    add(gt, TOP, 9)
    sky = TOP.copy()
    sky[:4] = False
    part = square(0, 32)
    part[:34] = False
    rows = [row(part, 0.9), row(sky, 0.9, 9), row(square(20, 32), 0.9, 7)]
    scores, by_category = panoptic_scores(gt, rows, WORDS)
    disc, found = 100 * 0.8 / 1.5, 100 * 28 / 32  # one of two discs: sum of IoU over matched and half of the missed
    assert by_category == {"disc": pytest.approx(disc), "box": 0.0, "sky": pytest.approx(found)}
    assert scores["PQ"] == pytest.approx((disc + 0 + found) / 3)
    assert (scores["PQ_th"], scores["PQ_st"]) == (pytest.approx(disc / 2), pytest.approx(found))
    assert scores["SQ_st"] == pytest.approx(found) and scores["RQ_st"] == 100


def test_unlabelled_pixels_and_crowds_make_nothing_wrong() -> None:
    gt = ground_truth()
    add(gt, TOP, 3, iscrowd=1)
    add(gt, square(0, 40), 7)
    rows = [row(square(5, 5), 0.9), row(square(50, 50), 0.9), row(square(0, 40), 0.9, 7)]
    assert panoptic_scores(gt, rows, WORDS)[1] == {"disc": None, "box": 100.0, "sky": None}
    assert panoptic_scores(ground_truth(), [], WORDS)[0]["PQ"] is None


@pytest.mark.parametrize("turned", [False, True])
def test_where_objects_overlap_the_smaller_is_on_top(turned: bool) -> None:
    gt = ground_truth()
    for mask in (square(0, 0, 10), square(0, 0, 30))[:: -1 if turned else 1]:
        add(gt, mask)
    rows = [row(square(0, 0, 10), 0.9), row(square(0, 0, 30) & ~square(0, 0, 10), 0.8)]
    assert panoptic_scores(gt, rows, WORDS)[0]["PQ"] == 100


def test_mean_iou_by_hand() -> None:
    """Of 64 x 32 labelled pixels 3/4 are right: of the sky three quarters, of the disc all."""
    gt = ground_truth(2)
    left = np.zeros((64, 64), dtype=bool)
    left[:, :32] = True
    add(gt, TOP & left, 9)
    add(gt, BOTTOM & left, 3, image_id=11)
    wrong = left.copy()
    wrong[8:] = False
    rows = [row(TOP & ~wrong, 1.0, 9), row(wrong | BOTTOM, 1.0, 3), row(TOP | BOTTOM, 1.0, 3, image_id=11)]
    scores, by_category = semantic_scores(gt, rows, WORDS)
    assert by_category == {"disc": pytest.approx(100 * 1024 / 1280), "box": None, "sky": pytest.approx(75)}
    assert scores["mIoU"] == pytest.approx((80 + 75) / 2) and scores["aAcc"] == pytest.approx(87.5)


def test_a_label_map_comes_before_the_annotations(tmp_path: Path) -> None:
    gt = ground_truth()
    add(gt, TOP, 9)
    file = tmp_path / "0.png"
    gt["images"][0]["label_map"] = str(file)
    rows = [row(TOP | BOTTOM, 1.0, 9)]
    assert semantic_scores(gt, rows, WORDS)[0]["mIoU"] == 100  # there is no such file yet
    Image.fromarray(np.where(TOP, 2, np.where(square(0, 32), 1, 255)).astype(np.uint8)).save(file)
    assert semantic_scores(gt, rows, WORDS)[1] == {"disc": None, "box": 0.0, "sky": pytest.approx(100 * 2048 / 2148)}
    Image.fromarray(np.zeros((64, 60), dtype=np.uint8)).save(file)
    with pytest.raises(WorkbenchError, match="0.png is 60x64 and its image 64x64"):
        semantic_scores(gt, rows, WORDS)


def test_predictions_become_rows() -> None:
    segments = torch.zeros(64, 64, dtype=torch.int32)
    segments[:8], segments[8:20] = 1, 2
    infos = [{"id": 1, "category": 2, "score": 0.75}, {"id": 2, "category": 0, "score": 0.5}]
    predictions = {"panoptic": (segments, infos), "semantic": torch.from_numpy(TOP).int() * 2}
    rows = segment_rows(predictions, 10, WORDS)
    assert [(each["category_id"], each["score"]) for each in rows["panoptic"]] == [(9, 0.75), (3, 0.5)]
    assert rows["panoptic"][1]["bbox"] == [0, 8, 64, 12]
    masks = {each["category_id"]: decode_mask(each["segmentation"], 64, 64) for each in rows["semantic"]}
    assert masks.keys() == {3, 9} and np.array_equal(masks[9], TOP)
    assert segment_rows({}, 10, WORDS) == {}


def test_metrics_hold_every_kind_and_instances_of_things_alone() -> None:
    gt = ground_truth()
    add(gt, square(0, 40))
    add(gt, TOP, 9)
    results = [row(square(0, 40), 0.9), row(BOTTOM, 0.8, 9)]
    segments = {"panoptic": [row(square(0, 40), 0.9)], "semantic": [row(TOP | BOTTOM, 1.0, 9)]}
    metrics = evaluate_results(gt, results, WORDS, stats={"segments": segments})
    assert metrics["segm"]["AP"] == pytest.approx(100) and list(metrics["per_category"]) == ["disc", "box"]
    assert metrics["instances"] == 1 and metrics["panoptic"]["PQ"] == 50
    assert metrics["panoptic_per_category"] == {"disc": 100.0, "box": None, "sky": 0.0}
    assert metrics["semantic_per_category"]["disc"] == 0 and metrics["semantic"]["mIoU"] > 0
    text = metrics_table(metrics)
    assert all(word in text for word in ("masks", "PQ_th", "mIoU", "sky", "IoU"))
    assert metrics_frames(metrics)["per_category"].loc["disc", "PQ"] == 100
    assert "The panoptic quality is 50.0 (things 100.0, stuff 0.0)." in summarise(metrics)
    assert main_score(metrics) == ("segm AP", metrics["segm"]["AP"])


def test_without_instances_the_other_scores_count() -> None:
    gt = ground_truth()
    add(gt, TOP, 9)
    segments = {"semantic": [row(TOP, 1.0, 9)]}
    metrics = evaluate_results(gt, [], WORDS, instances=False, stats={"segments": segments})
    assert metrics["segm"] is metrics["bbox"] is None and metrics["per_category"] == {}
    assert main_score(metrics) == ("mIoU", 100.0)
    assert main_score(metrics | {"panoptic": {"PQ": 30.0}}) == ("PQ", 30.0)
    assert summarise(metrics) == "1 image was evaluated. The mean IoU of the categories is 100.0."
    assert "masks" not in metrics_table(metrics)
    only_stuff = Vocabulary((3, 7, 9), ("disc", "box", "sky"), stuff=frozenset({"disc", "box", "sky"}))
    gt["categories"] = only_stuff.to_coco()["categories"]
    assert evaluate_results(gt, [], only_stuff)["segm"] is None
