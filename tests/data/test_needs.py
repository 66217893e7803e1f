"""What image size and queries a dataset needs, and the reasons."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.data import needs


@pytest.mark.parametrize(
    ("relative", "edge", "largest", "value", "said"),
    [
        (0.1, 4000, 1024, 160, "nine of ten objects are then at least 16 pixels across"),
        (0.02, 4000, 384, 384, "at least 8 pixels across; 800 would give 16, but this is the most which this machine"),
        (0.02, 500, 1024, 512, "but this is the most which the images have"),
        (0.9, 4000, 1024, 128, "at least 115 pixels"),
    ],
)
def test_image_size_follows_the_objects(relative: float, edge: int, largest: int, value: int, said: str) -> None:
    choice = needs.image_size(np.full(20, relative), np.full(5, edge), largest)
    assert choice.value == value
    assert said in choice.reason


def test_a_few_small_objects_do_not_decide_the_image_size() -> None:
    relative = np.array([0.2] * 19 + [0.001])
    assert needs.image_size(relative, np.array([2000]), 1024).value == 128


@pytest.mark.parametrize(("objects", "value"), [([1, 2, 5], 12), ([30] * 200, 60), ([2] * 999 + [100], 120), ([0], 12)])
def test_queries_follow_the_objects_of_an_image(objects: list[int], value: int) -> None:
    choice = needs.queries(np.array(objects))
    assert choice.value == value
    assert f"{max(objects)} at most" in choice.reason


def test_objects_too_small_for_a_machine_are_told_with_a_remedy() -> None:
    assert needs.across(np.full(20, 0.05), 192).endswith("at least 10 pixels across")
    said = needs.across(np.full(20, 0.01), 192)
    assert "2 pixels across, too few" in said and "parts, about 5 a side" in said
