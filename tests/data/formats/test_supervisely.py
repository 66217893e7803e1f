"""Supervisely: bitmaps, polygons with holes, tags, datasets."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.errors import WorkbenchError

META = {
    "classes": [{"title": "ring", "shape": "bitmap"}, {"title": "disc", "shape": "polygon"}],
    "tags": [{"name": "ripe", "value_type": "none"}, {"name": "colour", "value_type": "oneof_string"}],
}


def _bitmap(mask: np.ndarray, left: int = 0, top: int = 0, *, alpha: bool = True) -> dict:
    pixels = np.dstack([np.zeros((*mask.shape, 3)), mask * 255]).astype(np.uint8) if alpha else mask
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    return {
        "classTitle": "ring",
        "geometryType": "bitmap",
        "tags": [],
        "bitmap": {"origin": [left, top], "data": data},
    }


def _polygon(outline: list, *holes: list, **changes: object) -> dict:
    points = {"exterior": outline, "interior": list(holes)}
    return {"classTitle": "disc", "geometryType": "polygon", "tags": [], "points": points, **changes}


TRIANGLE = [[1, 1], [9, 1], [9, 9]]


@pytest.fixture
def export(tmp_path: Path, picture: Callable[..., Path], write_json: Callable[..., Path]) -> Callable[..., Path]:
    def write(*objects: dict, dataset: str = "ds") -> Path:
        picture(tmp_path / dataset / "img" / "a.jpg")
        write_json(tmp_path / "meta.json", META)
        content = {"size": {"height": 60, "width": 80}, "tags": [{"name": "sunny", "value": None}], "objects": objects}
        write_json(tmp_path / dataset / "ann" / "a.jpg.json", content)
        return tmp_path

    return write


def test_masks_and_tags(export: Any, scene: Any, read: Any, masks_of: Any, names_of: Any, iou: Any) -> None:
    crop = scene.ring[16:44, 46:74]
    tags = [{"name": "colour", "value": "red"}, {"name": "ripe", "value": None}]
    box = {"classTitle": "disc", "geometryType": "rectangle", "points": {"exterior": [[1, 1], [9, 9]]}}
    imported = read(
        export(
            _bitmap(crop, 46, 16),
            _bitmap(crop, 46, 16, alpha=False),
            _polygon(scene.circle(60, 30, 14), scene.circle(60, 30, 6), tags=tags),
            box,
        )
    )
    masks = masks_of(imported)
    assert np.array_equal(masks[0], scene.ring) and np.array_equal(masks[1], scene.ring)
    assert iou(masks[2], scene.ring) > 0.9
    assert not masks[2][30, 60]
    assert names_of(imported) == ["ring", "ring", "disc"]
    attributes = [each["attributes"] for each in imported.content["annotations"]]
    assert attributes == [{"ripe": False}, {"ripe": False}, {"colour": "red", "ripe": True}]
    assert imported.content["images"][0]["attributes"] == {"sunny": True}
    assert any("boxes, left out" in note for note in imported.notes)


def test_datasets_may_be_splits(export: Any, read: Any) -> None:
    export(_polygon(TRIANGLE), dataset="train")
    images = read(export(_polygon(TRIANGLE), dataset="test")).content["images"]
    assert [(image["file_name"], image["split"]) for image in images] == [
        ("test/img/a.jpg", "test"),
        ("train/img/a.jpg", "train"),
    ]


def test_a_bomb_is_not_unpacked(export: Any, read: Any) -> None:
    item = _bitmap(np.ones((2, 2), dtype=bool))
    item["bitmap"]["data"] = base64.b64encode(zlib.compress(bytes(10**7))).decode()
    with pytest.raises(WorkbenchError, match="ann/a.jpg.json, object 1 is malformed: its compressed data is larger"):
        read(export(item))


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (_polygon([[1, 1], [9, None], [9, 9]]), "finite numbers"),
        (_polygon(TRIANGLE, geometryType="blob"), "'blob' is not known"),
        ({"classTitle": "ring", "geometryType": "bitmap"}, "no 'bitmap'"),
        ({"geometryType": "polygon", "points": {"exterior": TRIANGLE}}, "no 'classTitle'"),
        (_bitmap(np.ones((400, 400), dtype=bool)), "larger than the image"),
        ({**_bitmap(np.ones((2, 2))), "bitmap": {"origin": [1, 1], "data": "eJw="}}, "no PNG|damaged"),
    ],
)
def test_a_malformed_object_is_one_sentence(export: Any, read: Any, item: dict, says: str) -> None:
    with pytest.raises(WorkbenchError, match=says) as caught:
        read(export(_polygon(TRIANGLE), item))
    assert "ann/a.jpg.json, object 2" in str(caught.value)
