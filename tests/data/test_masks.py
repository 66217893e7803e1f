"""Masks and their encodings, against pycocotools and against damage."""

from __future__ import annotations

import json
from pathlib import Path

import hotcoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from workbench.data.coco import decode_mask, encode_mask, load_dataset
from workbench.data.masks import (
    MOST_PIXELS,
    covered_pixels,
    encode_polygons,
    encode_uncompressed,
    mask_areas,
    segmentation_problem,
    to_rles,
)
from workbench.errors import WorkbenchError

COCO_100 = Path(__file__).parents[2].parent / "shared" / "data" / "coco_val2014_100" / "instances.json"

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@given(masks)
def test_rle_round_trip(mask: np.ndarray) -> None:
    for encoded in (encode_mask(mask), encode_uncompressed(mask)):
        encoded = json.loads(json.dumps(encoded))
        assert segmentation_problem(encoded, *mask.shape) is None
        assert np.array_equal(decode_mask(encoded, *mask.shape), mask)


@given(masks)
def test_uncompressed_counts_are_those_of_pycocotools(mask: np.ndarray) -> None:
    packed = coco_mask.frPyObjects(encode_uncompressed(mask), *mask.shape)
    assert packed["counts"] == coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]


@pytest.mark.skipif(not COCO_100.is_file(), reason=f"{COCO_100} is not beside this checkout")
def test_masks_of_coco_agree_with_pycocotools(capsys: pytest.CaptureFixture) -> None:
    coco = COCO(str(COCO_100))
    dataset = load_dataset(f"{COCO_100}@{COCO_100.parent}", check_images=False)
    compared = crowds = 0
    for record in dataset.dicts:
        for annotation in record["annotations"]:
            reference = coco.anns[annotation["id"]]
            mask = decode_mask(annotation["segmentation"], record["height"], record["width"])
            assert np.array_equal(mask, coco.annToMask(reference).astype(bool))
            category = dataset.vocabulary.categories[annotation["category_id"]]
            assert category == coco.cats[reference["category_id"]]["name"]
            crowds += annotation["iscrowd"]
            compared += 1
    assert (compared, crowds) == (839, 9)


SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([], "empty mask"),
        ([[]], "degenerate polygon"),
        ([[1, 1, 5, 1]], "degenerate polygon"),
        ([[1, 1, 5, 1, 5, 5, 1]], "degenerate polygon"),
        ([SQUARE, [2, 2, 2, 2, 3, 3]], "degenerate polygon"),
        ([[1, 1, 5, 1, 5, float("nan")]], "not a number"),
        ([[1, 1, 5, 1, float("inf"), 5]], "not a number"),
        ([[1, 1, 5, 1, 1e9, 5]], "mask outside image"),
        ([1, 1, 5, 1, 5, 5], "segmentation"),
        ([[1, 1, "5", 1, 5, 5]], "segmentation"),
        ("mask.png", "segmentation"),
        (None, "segmentation"),
        ({"counts": [64]}, "segmentation"),
        ({"size": [8, 8]}, "segmentation"),
        ({"size": [8, 8], "counts": [-1, 65]}, "segmentation"),
        ({"size": [8, 8], "counts": [0.5, 63.5]}, "segmentation"),
        ({"size": [8, 8], "counts": [10, 10]}, "mask size"),
        ({"size": [9, 8], "counts": [72]}, "mask size"),
        ({"size": [8, 8], "counts": "not one £"}, "segmentation"),
        ({"size": [8, 8], "counts": "P"}, "segmentation"),
        ({"size": [8, 8], "counts": "011"}, "mask size"),
    ],
)
def test_what_cannot_be_decoded_is_named(segmentation: object, kind: str) -> None:
    problem = segmentation_problem(segmentation, 8, 8)
    assert problem is not None and problem[0] == kind
    with pytest.raises(WorkbenchError):
        decode_mask(segmentation, 8, 8)


def _runs(counts: bytes) -> list[int] | None:
    """The runs of a compressed RLE, read one character after the other; None for a damaged one."""
    runs, value, size = [], 0, 0
    for code in (character - 48 for character in counts):
        if not 0 <= code < 64 or size == 6:
            return None
        value |= (code & 31) << 5 * size
        size += 1
        if not code & 32:
            value -= 1 << 5 * size if code & 16 else 0
            value += runs[-2] if len(runs) > 2 else 0
            if value < 0:
                return None
            runs.append(value)
            value = size = 0
    return None if size or not runs else runs


characters = st.integers(48, 111) | st.sampled_from([48, 63, 79, 80, 95, 111, 40, 112, 200])
damaged = st.lists(st.lists(characters, max_size=30).map(bytes), max_size=8)


@given(damaged, st.lists(masks, max_size=4))
def test_covered_pixels_are_those_of_the_runs(texts: list[bytes], sound: list[np.ndarray]) -> None:
    texts = [*texts, *(encode_mask(mask)["counts"].encode() for mask in sound)]
    expected = [-1 if (runs := _runs(text)) is None else sum(runs) for text in texts]
    assert covered_pixels(texts)[0].tolist() == expected
    assert covered_pixels([text.decode("latin-1") for text in texts])[0].tolist() == expected
    assert expected[len(expected) - len(sound) :] == [mask.size for mask in sound]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", *(encode_mask(np.eye(n))["counts"] for n in range(1, 30)), "", "P"]
    whole = covered_pixels(texts)[0].tolist()
    monkeypatch.setattr("workbench.data.masks._CHUNK", 20)
    assert covered_pixels(texts)[0].tolist() == whole == [-1, *(n * n for n in range(1, 30)), -1, -1]


# Runs of any size, each written in as many characters as it takes or in more, its sign extended.
def _written(value: int, length: int) -> bytes:
    groups = [value >> 5 * k & 31 for k in range(length)]
    return bytes(48 + (group | 32 * (k < length - 1)) for k, group in enumerate(groups))


runs = st.builds(_written, st.integers(-40, 60) | st.integers(-(2**31), 2**33), st.integers(1, 8))
written = st.lists(runs, max_size=9).map(b"".join)


@given(st.lists(st.lists(characters, max_size=30).map(bytes) | written, max_size=8))
def test_a_compressed_rle_is_refused_or_read_as_pycocotools_and_hotcoco_read_it(texts: list[bytes]) -> None:
    sound = [_runs(text) or [0] for text in texts]
    for text, runs in zip(texts, sound, strict=True):
        pixels = sum(runs)
        rle = {"size": [pixels, 1], "counts": text}
        rles, problems = to_rles([rle, rle], [(pixels, 1)] * 2)
        assert (1 in problems) == (not 0 < pixels <= MOST_PIXELS)
        if not problems:
            area = sum(runs[1::2])
            assert mask_areas(rles).tolist() == list(hotcoco.mask.area(rles)) == [area, area]
            assert coco_mask.iou(rles[:1], rles[1:], [0]).tolist() == [[float(area > 0)]]
            if pixels < 10**5:
                flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
                assert np.array_equal(decode_mask(rle, pixels, 1)[:, 0], flat)
                assert np.array_equal(hotcoco.mask.decode(rles[0])[:, 0], flat)


@pytest.mark.parametrize("kind", [list, str])
def test_an_empty_run_between_others_does_not_end_the_iou(kind: type) -> None:
    """Both masks have an empty run after the fifth pixel, where pycocotools' IoU would stop and give 1."""
    rles = [{"size": [10, 1], "counts": counts} for counts in ([2, 3, 0, 3, 2], [2, 3, 0, 1, 4])]
    if kind is str:
        rles = [coco_mask.frPyObjects(rle, 10, 1) for rle in rles]
        assert coco_mask.iou(rles[:1], rles[1:], [0]).tolist() == [[1.0]]
    checked, _ = to_rles(rles, [(10, 1)] * 2)
    assert coco_mask.iou(checked[:1], checked[1:], [0]).tolist() == [[4 / 6]]


@pytest.mark.parametrize("length", range(2, 14))
def test_a_run_whose_sign_is_extended(length: int) -> None:
    """Runs 10, 50, 5 and 50 - 20, the last in more characters than it takes. From seven on, pycocotools reads -4."""
    counts = bytes([58, 98, 49, 53, 92, *[111] * (length - 2), 79])
    problem = segmentation_problem({"size": [95, 1], "counts": counts}, 95, 1)
    if length <= 6:
        assert problem is None and mask_areas([{"size": [95, 1], "counts": counts}]).tolist() == [80]
    else:
        assert problem == ("segmentation", "its compressed RLE is damaged")


def test_areas_of_more_masks_than_pycocotools_takes_at_once() -> None:
    corners = [np.arange(36).reshape(6, 6) < n for n in range(37)] * 20
    assert mask_areas([encode_mask(mask) for mask in corners]).tolist() == [mask.sum() for mask in corners]
    assert mask_areas([]).tolist() == []


@given(masks)
def test_polygons_decode_to_exactly_the_mask(mask: np.ndarray) -> None:
    filled = ndimage.binary_fill_holes(mask, np.ones((3, 3)))  # a gap at a corner is an opening
    polygons = encode_polygons(filled)
    assert len(polygons or []) == ndimage.label(filled)[1]
    if polygons:
        assert segmentation_problem(json.loads(json.dumps(polygons)), *mask.shape) is None
        assert np.array_equal(decode_mask(polygons, *mask.shape), filled)
    assert (encode_polygons(mask) is None) == (not mask.any() or (filled != mask).any())


def test_polygons_hold_only_their_corners() -> None:
    mask = np.zeros((12, 12), dtype=bool)
    mask[1:6, 1:6] = mask[6:11, 6:11] = True  # they touch at a corner and stay two
    assert [len(polygon) for polygon in encode_polygons(mask)] == [16, 16]
