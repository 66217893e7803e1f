"""Scores in words: recall before outlines, training beside validation."""

from __future__ import annotations

from typing import Any

import pytest

from tests.evaluation.scenes import add, row, scene, square
from workbench.evaluation.summary import compare_with_training, largest_recall, summarise


def metrics(ap: float | None, ap50: float = 0.0, recall: float = 0.0, images: int = 20) -> dict[str, Any]:
    segm = {"AP": ap, "AP50": ap50, "AR@1": recall / 2, "AR@10": recall - 1, "AR@100": recall}
    return {"segm": segm, "bbox": {"AP": 0.0}, "per_category": {"fork": ap}, "images": images, "instances": 50}


@pytest.mark.parametrize(
    ("ap", "ap50", "recall", "said", "unsaid"),
    [
        (2.1, 5.0, 6.0, "Few objects are found at all: the average recall is 6.0", "coarse"),
        (20.0, 60.0, 28.0, "objects are found, their outlines are coarse", "Few objects"),
        (15.0, 28.0, 55.0, "more than twice the AP: objects are found, but confident mistakes", "coarse"),
        (50.0, 75.0, 60.0, "mask AP is 50.0", "found"),
        (0.04, 0.1, 0.2, "What to check, in this order:\n1. Masks moved?", "Few objects"),
    ],
)
def test_recall_is_looked_at_before_outlines(ap: float, ap50: float, recall: float, said: str, unsaid: str) -> None:
    text = summarise(metrics(ap, ap50, recall))
    assert said in text
    assert unsaid not in text


def test_a_low_score_names_the_cause_that_the_predictions_confirm() -> None:
    truth = scene(3)
    rows = []
    for image, (x, y) in zip(truth["images"], [(3, 5), (40, 8), (9, 44)], strict=True):
        add(truth, square(x, y), image_id=image["id"])
        rows.append(row(square(x, y), 0.9, 7, image["id"]))
    text = summarise(metrics(5.2, 7.1, 81.0), truth, rows)
    assert "Classes permuted? Yes:" in text and "disc as box (3)" in text and "Masks moved?" not in text
    assert "permuted" not in summarise(metrics(50.0, 75.0, 60.0), truth, rows)


def test_the_recall_is_that_of_the_most_detections() -> None:
    assert largest_recall(metrics(1.0, 1.0, 42.0)["segm"]) == 42.0
    assert largest_recall({"AP": 1.0}) is None


def test_training_far_above_validation_says_what_helps() -> None:
    text = compare_with_training(metrics(31.7, images=50), metrics(2.1, images=14), "random weights")
    assert "started from random weights" in text
    assert "31.7 on 50 training images and 2.1 on 14 others: the model has learnt these images by heart" in text
    for remedy in ("MODEL.RESNETS.WEIGHTS", "INPUT.COLOR_JITTER True", "annotate more images"):
        assert remedy in text


def test_what_was_done_already_is_no_advice() -> None:
    text = compare_with_training(metrics(80.0), metrics(20.0), "imagenet weights in the backbone", jitter=True)
    assert "by heart" in text
    assert "published weights" not in text and "COLOR_JITTER" not in text


@pytest.mark.parametrize(("here", "there"), [(60.0, 50.0), (4.0, 1.0), (50.0, 40.0), (20.0, 25.0)])
def test_scores_that_are_near_are_not_called_overfitting(here: float, there: float) -> None:
    assert "by heart" not in compare_with_training(metrics(here), metrics(there), "random weights")


def test_two_low_scores_are_called_low() -> None:
    assert "Both are low" in compare_with_training(metrics(4.0), metrics(3.0), "random weights")


def test_a_set_without_objects_is_not_compared() -> None:
    assert "cannot be compared" in compare_with_training(metrics(30.0), metrics(None), "random weights")
