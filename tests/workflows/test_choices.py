"""What init chooses, and the reasons."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.workflows import choices

GB = 10**9


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
    choice = choices.image_size(np.full(20, relative), np.full(5, edge), largest)
    assert choice.value == value
    assert said in choice.reason


def test_a_few_small_objects_do_not_decide_the_image_size() -> None:
    relative = np.array([0.2] * 19 + [0.001])
    assert choices.image_size(relative, np.array([2000]), 1024).value == 128


@pytest.mark.parametrize(("objects", "value"), [([1, 2, 5], 12), ([30] * 200, 60), ([2] * 999 + [100], 120), ([0], 12)])
def test_queries_follow_the_objects_of_an_image(objects: list[int], value: int) -> None:
    choice = choices.queries(np.array(objects))
    assert choice.value == value
    assert f"{max(objects)} at most" in choice.reason


def test_objects_too_small_for_a_machine_are_told_with_a_remedy() -> None:
    assert choices.across(np.full(20, 0.05), 192).endswith("at least 10 pixels across")
    said = choices.across(np.full(20, 0.01), 192)
    assert "2 pixels across, too few" in said and "parts, about 5 a side" in said


@pytest.mark.parametrize(("free", "value"), [(100 * GB, 8), (10 * GB, 4), (4 * GB, 1), (GB, 1)])
def test_the_batch_fits_the_memory(free: float, value: int) -> None:
    assert choices.batch(8, kept=1.2 * GB, fixed=0.5 * GB, free=free).value == value


def test_the_image_shrinks_only_as_far_as_a_thousand_steps_need() -> None:
    assert choices.smaller_for_time(384, seconds=0.7, minutes=15) == 384
    smaller = choices.smaller_for_time(384, seconds=1.44, minutes=15)
    assert smaller == 256
    assert 1000 * 1.44 * (smaller / 384) ** 2 <= 15 * 60
    assert choices.smaller_for_time(384, seconds=1000.0, minutes=15) == 192
    assert choices.smaller_for_time(384, seconds=0.7, minutes=15, reading=0.3) == 288
    assert choices.smaller_for_time(384, seconds=0.36, minutes=15, reading=9.0) == 384


def test_steps_are_as_many_as_are_worth_it_or_as_the_time_allows() -> None:
    enough = choices.steps(400, 4, seconds=0.1, minutes=60)
    assert enough.value == 10000
    assert "100 passes over 400 images" in enough.reason and "at hand" not in enough.reason
    short = choices.steps(400, 4, seconds=0.5, minutes=15)
    assert short.value == 1440
    assert "12 minutes of 15 at hand; --minutes 104 would give 10000 steps" in short.reason
    assert choices.steps(20, 4, seconds=0.1, minutes=60).value == 2000
    assert choices.steps(20, 4, seconds=100.0, minutes=1).value == 100


def test_points_are_half_of_the_cells_of_a_mask() -> None:
    assert [choices.points(size).value for size in (64, 256, 1024)] == [512, 2048, 12544]


def test_few_cores_read_images_without_more_processes() -> None:
    assert [choices.workers(cores).value for cores in (1, 2, 4, 16)] == [0, 0, 2, 4]
