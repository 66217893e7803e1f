"""Masks and their encodings, against pycocotools and against damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from workbench.data.coco import decode_mask, encode_mask, load_dataset
from workbench.data.masks import encode_polygons, encode_uncompressed, segmentation_problem
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
    theirs = COCO(str(COCO_100))
    ours = load_dataset(f"{COCO_100}@{COCO_100.parent}", check_images=False)
    compared = crowds = 0
    for record in ours.dicts:
        for annotation in record["annotations"]:
            reference = theirs.anns[annotation["id"]]
            mask = decode_mask(annotation["segmentation"], record["height"], record["width"])
            assert np.array_equal(mask, theirs.annToMask(reference).astype(bool))
            category = ours.vocabulary.categories[annotation["category_id"]]
            assert category == theirs.cats[reference["category_id"]]["name"]
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


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
def test_no_compressed_rle_gets_past_the_check_and_breaks_the_decoder(counts: str) -> None:
    rle = {"size": [6, 7], "counts": counts}
    if segmentation_problem(rle, 6, 7) is None:
        assert decode_mask(rle, 6, 7).shape == (6, 7)


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
