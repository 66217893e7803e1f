"""Label Studio: polygons in percent, brush strokes bit by bit, per-region choices, names of uploaded files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.data.formats.labelstudio import decode_brush
from workbench.errors import WorkbenchError


def encode_brush(mask: np.ndarray, *, runs: bool = True) -> list[int]:
    """The bytes of a mask as Label Studio writes them: RGBA values of 8 bits, in runs, or each by itself."""
    values = np.repeat(np.where(mask, 255, 0).ravel(), 4)
    values[::4] = 7  # the colour says nothing, only alpha does
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    if runs:
        for value, run in groupby(values.tolist()):
            length = len(list(run))
            bits += f"1{0:02b}{length - 1:03b}{value:08b}" if length <= 8 else f"1{3:02b}{length - 1:016b}{value:08b}"
    else:
        for start in range(0, len(values), 256):
            part = values[start : start + 256].tolist()
            bits += f"0{2:02b}{len(part) - 1:08b}" + "".join(f"{value:08b}" for value in part)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def _result(kind: str, number: str, value: dict, **changes: object) -> dict:
    size = {"original_width": 80, "original_height": 60, "image_rotation": 0}
    return {"id": number, "type": kind, "from_name": "label", "to_name": "image", "value": value, **size, **changes}


def _polygon(number: str, outline: list, label: str = "disc") -> dict:
    points = [[x / 80 * 100, y / 60 * 100] for x, y in outline]
    return _result("polygonlabels", number, {"points": points, "polygonlabels": [label]})


TRIANGLE = [[1, 1], [9, 1], [9, 9]]


@pytest.fixture
def export(tmp_path: Path, picture: Callable[..., Path], write_json: Callable[..., Path]) -> Callable[..., Path]:
    def write(*results: dict, image: str = "/data/upload/3/0123abcd-a.jpg", **changes: object) -> Path:
        picture(tmp_path / "images" / "a.jpg")
        task = {"id": 11, "data": {"image": image}, "annotations": [{"result": list(results)}], **changes}
        return write_json(tmp_path / "project.json", [task])

    return write


@pytest.mark.parametrize("runs", [True, False])
def test_brush_strokes_are_exact(scene: Any, runs: bool) -> None:
    assert np.array_equal(decode_brush(encode_brush(scene.ring, runs=runs), 60, 80), scene.ring)


def test_regions_and_what_was_chosen_for_them(
    export: Any, scene: Any, read: Any, masks_of: Any, names_of: Any, iou: Any
) -> None:
    brush = {"format": "rle", "rle": encode_brush(scene.ring), "brushlabels": ["ring"]}
    ellipse = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 8 / 0.6, "rotation": 30, "ellipselabels": ["oval"]}
    results = [
        _polygon("p", scene.outline),
        _result("choices", "p", {"choices": ["red"]}, from_name="colour"),
        _result("choices", "p", {"choices": ["dent", "crack"]}, from_name="damage"),
        _result("rating", "p", {"rating": 4}, from_name="quality"),
        _result("brushlabels", "b", brush),
        _result("ellipselabels", "e", ellipse),
        _result("rectanglelabels", "r", {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["disc"]}),
        _result("polygon", "two", {"points": [[1, 1], [9, 1], [9, 9]]}),
        _result("labels", "two", {"labels": ["disc"]}),
        _result("choices", "whole", {"choices": ["cloudy"]}, from_name="weather"),
    ]
    imported = read(export(*results))
    polygon, ring, oval, _ = masks_of(imported)
    assert iou(polygon, scene.disc) > 0.95 and np.array_equal(ring, scene.ring)
    y, x = np.mgrid[:60, :80] + 0.5
    t = np.pi / 6
    u, v = (x - 40) * np.cos(t) + (y - 30) * np.sin(t), -(x - 40) * np.sin(t) + (y - 30) * np.cos(t)
    assert iou(oval, (u / 20) ** 2 + (v / 8) ** 2 < 1) > 0.95
    assert names_of(imported) == ["disc", "ring", "oval", "disc"]
    expected = {"colour": "red", "damage": "crack+dent", "quality": 4}
    assert imported.content["annotations"][0]["attributes"] == expected
    assert imported.content["images"][0]["attributes"] == {"weather": "cloudy"}
    assert any("boxes, left out because a box is no mask: 1" in note for note in imported.notes)


@pytest.mark.parametrize(
    "image",
    ["/data/upload/3/0123abcd-a.jpg", "/data/local-files/?d=photos%2Fa.jpg", "s3://bucket/x/a.jpg", "a.jpg"],
)
def test_names_of_images(export: Any, read: Any, tmp_path: Path, image: str) -> None:
    assert read(export(_polygon("p", TRIANGLE), image=image)).files == {"a.jpg": tmp_path / "images" / "a.jpg"}


def test_which_annotation_of_a_task_is_read(export: Any, read: Any, names_of: Any) -> None:
    given = [
        {"result": [_polygon("p", TRIANGLE, "cancelled")], "was_cancelled": True},
        {"result": [_polygon("p", TRIANGLE, "first")]},
        {"result": [_polygon("p", TRIANGLE, "truth")], "ground_truth": True},
    ]
    imported = read(export(annotations=given))
    assert names_of(imported) == ["truth"]
    assert any("several annotations" in note for note in imported.notes)
    with pytest.raises(WorkbenchError, match="tasks that are not annotated"):
        read(export(annotations=[]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rle": [1, 2, 3]}, "ends early"),
        ({"rle": encode_brush(np.ones((60, 80), bool))[:40]}, "ends early"),
        ({"rle": encode_brush(np.ones((6, 8), bool))}, "holds 192 values, but 80x60 pixels take 19200"),
        ({"rle": [300]}, "no list of bytes"),
        ({"rle": "0, 1"}, "no list of bytes"),
        ({"format": "png"}, "'png' is not known"),
    ],
)
def test_a_malformed_region_is_one_sentence(export: Any, read: Any, scene: Any, change: dict, says: str) -> None:
    value = {"format": "rle", "rle": encode_brush(scene.ring), "brushlabels": ["ring"], **change}
    with pytest.raises(WorkbenchError, match=says) as caught:
        read(export(_polygon("p", TRIANGLE), _result("brushlabels", "b", value)))
    assert "project.json, task 11, region 2" in str(caught.value)


def test_json_min_is_named(tmp_path: Path, write_json: Any, read: Any) -> None:
    write_json(tmp_path / "p.json", [{"image": "a.jpg", "id": 3, "annotation_id": 1, "lead_time": 2.0}])
    with pytest.raises(WorkbenchError, match="p.json, task 3 is of the JSON-MIN export"):
        read(tmp_path)
