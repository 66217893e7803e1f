"""VIA: project and export, every region shape, and which attribute is the main category."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import WorkbenchError


def _polygon(points: list, **attributes: object) -> dict:
    xs, ys = zip(*points, strict=True)
    shape = {"name": "polygon", "all_points_x": list(xs), "all_points_y": list(ys)}
    return {"shape_attributes": shape, "region_attributes": attributes}


def _region(name: str, attributes: dict, **shape: float) -> dict:
    return {"shape_attributes": {"name": name, **shape}, "region_attributes": attributes}


TRIANGLE = [[1, 1], [9, 1], [9, 9]]


@pytest.fixture
def export(tmp_path: Path, picture: Callable[..., Path], write_json: Callable[..., Path]) -> Callable[..., Path]:
    def write(regions: object, *, project: bool = False, name: str = "a.jpg") -> Path:
        picture(tmp_path / "a.jpg")
        images = {"a.jpg123": {"filename": name, "size": 123, "regions": regions, "file_attributes": {"site": "north"}}}
        content = {"_via_settings": {}, "_via_attributes": {}, "_via_img_metadata": images} if project else images
        return write_json(tmp_path / "via.json", content)

    return write


@pytest.mark.parametrize("project", [True, False])
def test_every_shape(export: Any, scene: Any, read: Any, masks_of: Any, names_of: Any, iou: Any, project: bool) -> None:
    attributes = {"class": "disc", "damage": {"dent": True, "scratch": True, "rust": False}, "ripe": "yes"}
    regions = [
        _polygon(scene.outline, **attributes),
        _region("circle", attributes, cx=25, cy=22, r=15),
        _region("ellipse", {"class": "oval"}, cx=40, cy=30, rx=20, ry=8, theta=np.pi / 6),
        _region("rect", {"class": "box"}, x=10, y=20, width=20, height=20),
        _region("point", attributes, cx=1, cy=1),
        _polygon(TRIANGLE, ripe="no"),
    ]
    imported = read(export(regions, project=project))
    polygon, circle, oval, box = masks_of(imported)
    assert iou(polygon, scene.disc) > 0.95 and iou(circle, scene.disc) > 0.95
    y, x = np.mgrid[:60, :80] + 0.5
    t = np.pi / 6
    u, v = (x - 40) * np.cos(t) + (y - 30) * np.sin(t), -(x - 40) * np.sin(t) + (y - 30) * np.cos(t)
    assert iou(oval, (u / 20) ** 2 + (v / 8) ** 2 < 1) > 0.95
    assert box.sum() == 400 and box[20:40, 10:30].all()
    assert names_of(imported) == ["disc", "disc", "oval", "box"]
    assert imported.content["annotations"][0]["attributes"] == {"damage": "dent+scratch", "ripe": "yes"}
    assert imported.content["images"][0]["attributes"] == {"site": "north"}
    assert any("regions without class, left out: 1" in note for note in imported.notes)


def test_regions_of_via_1_and_without_attributes(export: Any, read: Any, names_of: Any) -> None:
    imported = read(export({"0": _polygon(TRIANGLE), "1": _polygon(TRIANGLE)}, name="https://x.org/p/a.jpg"))
    assert names_of(imported) == ["object", "object"]


def test_the_main_category_is_asked_for(export: Any, read: Any, names_of: Any) -> None:
    path = export([_polygon(TRIANGLE, species="oak", health="good")])
    with pytest.raises(WorkbenchError, match="attributes health, species; name the one"):
        read(path)
    imported = read(path, category="species")
    assert names_of(imported) == ["oak"]
    assert imported.content["annotations"][0]["attributes"] == {"health": "good"}
    with pytest.raises(WorkbenchError, match=r"no region|'specis' \(did you mean 'species'"):
        read(path, category="specis")


def test_exif_turns_the_image_that_was_drawn_on(
    tmp_path: Path, picture: Any, write_json: Any, read: Any, scene: Any, masks_of: Any, iou: Any
) -> None:
    """VIA shows images as browsers do, turned; its files say no size."""
    picture(tmp_path / "a.jpg", orientation=6)
    turned = [[60 - y, x] for x, y in scene.outline]
    write_json(tmp_path / "via.json", {"a": {"filename": "a.jpg", "regions": [_polygon(turned)]}})
    assert iou(masks_of(read(tmp_path))[0], np.rot90(scene.disc, -1)) > 0.95


def test_a_name_that_two_files_have(export: Any, picture: Any, read: Any, tmp_path: Path) -> None:
    path = export([_polygon(TRIANGLE)], name="b.jpg")
    picture(tmp_path / "one" / "b.jpg")
    picture(tmp_path / "two" / "b.jpg")
    with pytest.raises(WorkbenchError, match="whose name several files have.*--images"):
        read(path)
    assert list(read(path, images=tmp_path / "two").files.values()) == [tmp_path / "two" / "b.jpg"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"all_points_x": [1, 9]}, "malformed"),
        ({"all_points_x": [1, None, 9]}, "finite numbers"),
        ({"name": "blob"}, "'blob' is not known"),
        ({"name": "circle"}, "no 'cx'"),
        ({"name": "rect", "x": "a", "y": 1, "width": 2, "height": 2}, "malformed"),
    ],
)
def test_a_malformed_region_is_one_sentence(export: Any, read: Any, change: dict, says: str) -> None:
    region = _polygon(TRIANGLE)
    region["shape_attributes"].update(change)
    with pytest.raises(WorkbenchError, match=says) as caught:
        read(export([region]))
    assert "via.json, image 'a.jpg', region 1" in str(caught.value)


def test_via_3_is_named(tmp_path: Path, write_json: Any, read: Any) -> None:
    write_json(tmp_path / "v.json", {"project": {}, "file": {}, "metadata": {}, "view": {}})
    with pytest.raises(WorkbenchError, match="project of VIA 3"):
        read(tmp_path)
