"""LabelMe: every shape type, flags and attributes, embedded images, paths of other machines."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.errors import WorkbenchError


def _png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _content(shapes: list[dict], **changes: object) -> dict:
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": "a.jpg",
        "imageData": None,
        "imageHeight": 60,
        "imageWidth": 80,
        **changes,
    }


def _shape(kind: str, points: list, **changes: object) -> dict:
    return {"label": "disc", "points": points, "group_id": None, "shape_type": kind, "flags": {}, **changes}


@pytest.fixture
def export(tmp_path: Path, picture: Callable[..., Path], write_json: Callable[..., Path]) -> Callable[..., Path]:
    def write(*shapes: dict, **changes: object) -> Path:
        picture(tmp_path / "a.jpg")
        write_json(tmp_path / "a.json", _content(list(shapes), **changes))
        return tmp_path

    return write


TRIANGLE = _shape("polygon", [[1, 1], [9, 1], [9, 9]])


def test_every_shape_with_a_mask(export: Any, scene: Any, read: Any, masks_of: Any, iou: Any) -> None:
    crop = scene.ring[16:44, 46:74]
    shapes = [
        _shape("polygon", scene.outline, flags={"ripe": True}, attributes={"colour": "red"}),
        _shape("circle", [[25, 22], [40, 22]]),
        _shape("mask", [[46, 16], [73, 43]], label="ring", mask=_png(crop)),
        _shape("rectangle", [[30, 40], [10, 20]]),
        _shape("line", [[1, 1], [9, 9]]),
        _shape("point", [[1, 1]]),
        _shape("polygon", [[1, 1], [9, 9]]),
        _shape("polygon", [[1, 1], [9, 1], [9, 9]], label="__ignore__"),
    ]
    imported = read(export(*shapes))
    polygon, circle, ring, rectangle = masks_of(imported)
    assert iou(polygon, scene.disc) > 0.95 and iou(circle, scene.disc) > 0.95
    assert np.array_equal(ring, scene.ring)
    expected = np.zeros((60, 80), dtype=bool)
    expected[20:40, 10:30] = True
    assert np.array_equal(rectangle, expected)
    assert imported.content["annotations"][0]["attributes"] == {"ripe": True, "colour": "red"}
    said = "\n".join(imported.notes)
    for part in ("lines", "points, left out", "fewer than 3", "__ignore__", "rectangles, read as masks"):
        assert part in said


def test_a_group_is_one_object(export: Any, read: Any) -> None:
    other = {**TRIANGLE, "points": [[20, 20], [30, 20], [30, 30]], "group_id": 1}
    imported = read(export({**TRIANGLE, "group_id": 1}, other, {**TRIANGLE, "label": "ring", "group_id": 1}))
    assert [len(each["segmentation"]) for each in imported.content["annotations"]] == [2, 1]


def test_rectangles_alone_are_boxes(export: Any, read: Any) -> None:
    with pytest.raises(WorkbenchError, match=r"boxes only \(1 of them, the first is a.json, shape 1\)"):
        read(export(_shape("rectangle", [[10, 20], [30, 40]])))


@pytest.mark.parametrize("name", ["a.jpg", "C:\\Users\\me\\a.jpg", "../../elsewhere/a.jpg", "/etc/a.jpg"])
def test_paths_of_other_machines(export: Any, read: Any, tmp_path: Path, name: str) -> None:
    imported = read(export(TRIANGLE, imagePath=name))
    assert imported.files == {"a.jpg": tmp_path / "a.jpg"}


def test_paths_do_not_lead_out(tmp_path: Path, picture: Any, write_json: Any, read: Any) -> None:
    picture(tmp_path / "secret.jpg")
    write_json(tmp_path / "labels" / "a.json", _content([TRIANGLE], imagePath="../secret.jpg"))
    with pytest.raises(WorkbenchError, match=r"images that are missing.*'../secret.jpg' of a.json.*--images"):
        read(tmp_path / "labels")
    imported = read(tmp_path / "labels", images=tmp_path)
    assert list(imported.files.values()) == [tmp_path / "secret.jpg"]


def test_an_embedded_image(tmp_path: Path, picture: Any, write_json: Any, read: Any) -> None:
    data = picture(tmp_path / "elsewhere.jpg").read_bytes()
    text = base64.b64encode(data).decode()
    write_json(tmp_path / "in" / "a.json", _content([TRIANGLE], imagePath="a.json", imageData=text))
    assert read(tmp_path / "in").files == {"a.jpeg": data}
    write_json(tmp_path / "in" / "b.json", _content([TRIANGLE], imagePath="a.json", imageData=text))
    assert read(tmp_path / "in").files == {"a.jpeg": data, "b.jpeg": data}
    (tmp_path / "in" / "b.json").unlink()
    write_json(tmp_path / "in" / "a.json", _content([TRIANGLE], imageData=base64.b64encode(b"no image").decode()))
    with pytest.raises(WorkbenchError, match="images that cannot be read.*a.json"):
        read(tmp_path / "in")


def test_an_image_of_another_size_is_left_out(export: Any, picture: Any, write_json: Any, read: Any) -> None:
    folder = export(TRIANGLE)
    picture(folder / "b.jpg", size=(30, 40))
    write_json(folder / "b.json", _content([TRIANGLE], imagePath="b.jpg"))
    imported = read(folder)
    assert [image["file_name"] for image in imported.content["images"]] == ["a.jpg"]
    assert any("b.jpg is 40x30, not 80x60 as b.json says" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"points": [[1, 1], [9, "x"], [9, 9]]}, "finite numbers"),
        ({"points": [[1, 1], [9, float("nan")], [9, 9]]}, "finite numbers"),
        ({"points": None}, "no list"),
        ({"shape_type": "blob"}, "'blob' is not known"),
        ({"shape_type": "mask", "mask": "????"}, "no PNG"),
        ({"shape_type": "mask", "mask": _png(np.ones((400, 400)))}, "larger than the image"),
        ({"shape_type": "circle", "points": [[1, 1]]}, "malformed"),
        ({"shape_type": "mask"}, "no 'mask'"),
        (None, "malformed"),
    ],
)
def test_a_malformed_shape_is_one_sentence(export: Any, read: Any, shape: dict | None, says: str) -> None:
    with pytest.raises(WorkbenchError, match=says) as caught:
        read(export(TRIANGLE, None if shape is None else {**TRIANGLE, **shape}))
    assert "a.json, shape 2" in str(caught.value) and "\n" not in str(caught.value)
