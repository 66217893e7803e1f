"""Where nothing is found, each of the four checks recognises its cause and no other one does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.scenes import add, row, scene, square
from workbench.evaluation.nothing_found import explain_nothing_found

PLACES = [(3, 5), (40, 8), (9, 44), (30, 30), (48, 50), (20, 12)]  # x, y: no two mirror one another
CHECKS = ["Masks moved?", "Classes permuted?", "Everything no-object?", "The same output for every image?"]


def case(move=lambda mask: mask, category: int = 3, score: float = 0.9) -> tuple[dict, list[dict]]:
    """Six images with an object each, and a prediction of each that is changed."""
    truth, results = scene(len(PLACES)), []
    for number, (x, y) in enumerate(PLACES, start=10):
        mask = square(x, y)
        add(truth, mask, image_id=number)
        results.append(row(move(mask), score, category, image_id=number))
    return truth, results


def said_yes(lines: list[str]) -> list[str]:
    assert [line.split("? ")[0][3:] + "?" for line in lines[:4]] == CHECKS
    return [check for check, line in zip(CHECKS, lines, strict=False) if "? Yes:" in line]


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (np.fliplr, "mirrored left to right"),
        (np.flipud, "turned upside down"),
        (np.transpose, "with x and y swapped"),
        (lambda mask: np.roll(mask, (-5, 4), (0, 1)), "moved by -6% of the width and +8% of the height"),
        (lambda mask: np.pad(mask[::4, ::4], ((0, 48), (0, 48))), "enlarged four times"),
    ],
)
def test_masks_that_were_moved(move, words: str) -> None:
    lines = explain_nothing_found(*case(move))
    assert said_yes(lines) == CHECKS[:1] and words in lines[0]
    assert len(lines) == 4


def test_classes_that_were_permuted() -> None:
    lines = explain_nothing_found(*case(category=7))
    assert said_yes(lines) == CHECKS[1:2] and "disc as box (6)" in lines[1]


def test_stuff_is_nothing_to_find() -> None:
    truth, results = case(np.fliplr)
    truth["categories"].append({"id": 9, "name": "sky", "isthing": 0})
    for image in truth["images"] * 3:
        add(truth, square(0, 0, 64), 9, image["id"])
    lines = explain_nothing_found(truth, results)
    assert said_yes(lines) == CHECKS[:1] and "100% of the objects" in lines[0]


def test_boxes_that_fit_with_the_right_category_are_not_called_permuted() -> None:
    lines = explain_nothing_found(*case())
    assert said_yes(lines) == [] and "boxes are right and masks wrong" in lines[1] and len(lines) == 4


def test_queries_that_say_no_object() -> None:
    truth, _ = case()
    rng = np.random.default_rng(0)
    rows = [row(square(*rng.integers(0, 60, 2), 3), 0.01, image_id=i["id"]) for i in truth["images"]]
    for results, share, words in ((rows, None, "the highest score is 0.01"), ([], 0.99, "99.0% of the queries")):
        lines = explain_nothing_found(truth, results, share)
        assert said_yes(lines) == CHECKS[2:3] and words in lines[2]


def test_a_model_that_does_not_look_at_the_image() -> None:
    truth, _ = case()
    rows = [row(square(1, 30, 4), 0.8, image_id=image["id"]) for image in truth["images"]]
    assert said_yes(explain_nothing_found(truth, rows, 0.7)) == CHECKS[3:]


def test_what_none_explains_is_too_short_a_training() -> None:
    truth, _ = case()
    rng = np.random.default_rng(1)
    rows = [row(square(*rng.integers(0, 60, 2), 3), 0.4, image_id=i["id"]) for i in truth["images"]]
    lines = explain_nothing_found(truth, rows, 0.7)
    assert said_yes(lines) == [] and "None of these explains it" in lines[4]
