"""Polygons that are sound are told without drawing them; others are mended or left for the check."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.data.masks import decode_mask, encode_segmentation, mask_areas, segmentation_problem
from workbench.data.polygons import mend_polygons, surely_visible

coordinates = st.one_of(
    st.integers(-1, 31), st.floats(-1.5, 31.5), st.sampled_from([0.5, 9.5, 10.5, float("nan"), 1e9, 10**400, True, "5"])
)
polygons = st.lists(coordinates, min_size=6, max_size=16).filter(lambda values: len(values) % 2 == 0)


@given(st.lists(polygons, min_size=1, max_size=5), st.integers(1, 30), st.integers(1, 30))
def test_what_is_surely_visible_has_no_fault_and_covers_a_pixel(values: list, height: int, width: int) -> None:
    sizes = np.full(len(values), height), np.full(len(values), width)
    for polygon, sure in zip(values, surely_visible(values, *sizes), strict=True):
        if sure:
            assert segmentation_problem([polygon], height, width) is None
            assert mend_polygons([polygon], height, width) == ([polygon], [])
            assert decode_mask([polygon], height, width).any()


def test_random_polygons_are_judged_together_and_rightly() -> None:
    """Thin, doubled, crossing and reversed ones among them, at scales from a fraction of a pixel to the whole image."""
    rng = np.random.default_rng(0)
    shapes, heights, widths = [], [], []
    for scale in (0.3, 1, 3, 10, 60) * 200:
        height, width = rng.integers(1, 60, 2)
        points = rng.uniform(-3, 60, 2) + rng.normal(0, scale, (rng.integers(3, 9), 2))
        points = np.round(points) if rng.random() < 0.3 else points
        points = np.concatenate([points, points[:: rng.choice([-1, 1])]]) if rng.random() < 0.3 else points
        shapes.append(np.clip(points, -1, [width + 1, height + 1]).ravel().tolist())
        heights.append(height)
        widths.append(width)
    sure = surely_visible(shapes, np.array(heights), np.array(widths))
    cases = zip(shapes, heights, widths, strict=True)
    areas = mask_areas([encode_segmentation([shape], int(h), int(w)) for shape, h, w in cases])
    assert sure.sum() > 50 and not (sure & (areas == 0)).any()


def test_an_ordinary_polygon_is_told_without_drawing() -> None:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = (np.stack([np.cos(angles), np.sin(angles)], 1) * 20 + 50).ravel().tolist()
    line = [10, 10, 90, 10, 10, 10]
    doubled = circle + circle  # by the even-odd rule it covers nothing
    shapes = [circle, line, doubled, [10, 10, 40, 10, 40, 40, 10, 40]]
    assert surely_visible(shapes, np.full(4, 100), np.full(4, 100)).tolist() == [True, False, False, True]
    assert surely_visible([], np.zeros(0), np.zeros(0)).tolist() == []


SQUARE = [2, 2, 10, 2, 10, 10, 2, 10]


@pytest.mark.parametrize(
    ("segmentation", "kinds", "same_as"),
    [
        ([SQUARE], [], [SQUARE]),
        (SQUARE, ["polygon list"], [SQUARE]),
        ([SQUARE, [3, 3, 4, 4]], ["polygon part"], [SQUARE]),
        ([[1, 1, 1, 1, 2, 2], SQUARE, [1, 2, 3]], ["polygon part"], [SQUARE]),
        ([[-100, 2, 10, 2, 10, 10, -100, 10]], ["polygon outside image"], [[0, 2, 10, 2, 10, 10, 0, 10]]),
        ([[2, 2, 10, 2, 10, 90, 2, 90]], ["polygon outside image"], [[2, 2, 10, 2, 10, 16, 2, 16]]),
        ([SQUARE, [15, 2, 60, 2, 60, 8, 15, 8]], ["polygon outside image"], [SQUARE, [15, 2, 20, 2, 20, 8, 15, 8]]),
    ],
)
def test_what_becomes_of_a_polygon(segmentation: list, kinds: list[str], same_as: list) -> None:
    mended, mends = mend_polygons(segmentation, 16, 20)
    assert [kind for kind, _, _ in mends] == kinds
    assert segmentation_problem(json.loads(json.dumps(mended)), 16, 20) is None
    assert np.array_equal(decode_mask(mended, 16, 20), decode_mask(same_as, 16, 20))


@pytest.mark.parametrize(
    "broken", [[], [[1, 1, 2, 2]], [[30, 30, 40, 30, 40, 40]], [[1, 1, 5, 1, 5, "5"]], ["a"], [[]]]
)
def test_what_cannot_be_mended_stays(broken: list) -> None:
    assert mend_polygons(broken, 16, 20) == (broken, [])
