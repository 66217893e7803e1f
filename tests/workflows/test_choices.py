"""What init chooses, and the reasons."""

from __future__ import annotations

import pytest

from workbench.workflows import choices

GB = 10**9


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
