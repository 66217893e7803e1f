"""CVAT for images: polygons, masks, ellipses, attributes, groups, tags, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.data.formats.builder import Imported
from workbench.data.formats.cvat import read_cvat
from workbench.data.formats.source import Source
from workbench.errors import WorkbenchError

META = """<meta><task><labels>
<label><name>ring</name><attributes>
 <attribute><name>ripe</name><input_type>checkbox</input_type><values>false</values></attribute>
 <attribute><name>weight</name><input_type>number</input_type></attribute>
 <attribute><name>colour</name><input_type>select</input_type><values>red&#10;green</values></attribute></attributes></label>
<label><name>disc</name></label><label><name>unused</name></label></labels></task></meta>"""


def _points(outline: list) -> str:
    return ";".join(f"{x},{y}" for x, y in outline)


def _rle(mask: np.ndarray) -> str:
    """A crop to the mask's box, its runs row by row, as CVAT writes it: the attributes of a <mask>."""
    ys, xs = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    crop = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].ravel()
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(crop)) + 1, [crop.size]])
    runs = ([0] if crop[0] else []) + np.diff(bounds).tolist()
    size = f'left="{xs[0]}" top="{ys[0]}" width="{xs[-1] + 1 - xs[0]}" height="{ys[-1] + 1 - ys[0]}"'
    return f'rle="{", ".join(map(str, runs))}" {size}'


@pytest.fixture
def export(tmp_path: Path, picture: Callable[..., Path]) -> Callable[..., Path]:
    """Writes annotations.xml with one image, and its picture in images/."""

    def write(shapes: str, *, size: str = 'width="80" height="60"', orientation: int = 1, meta: str = META) -> Path:
        picture(tmp_path / "images" / "a.jpg", orientation=orientation)
        image = f'<image id="0" name="a.jpg" {size}>{shapes}</image>'
        (tmp_path / "annotations.xml").write_text(
            f"<?xml version='1.0'?><annotations><version>1.1</version>{meta}{image}</annotations>"
        )
        return tmp_path

    return write


def test_masks_and_polygons_come_back(
    export: Callable[..., Path], scene: Any, read: Callable[..., Imported], masks_of: Any, names_of: Any, iou: Any
) -> None:
    shapes = f"""<mask label="ring" {_rle(scene.ring)}><attribute name="ripe">true</attribute>
      <attribute name="weight">3.5</attribute><attribute name="colour">red</attribute></mask>
      <polygon label="disc" points="{_points(scene.outline)}" occluded="1"></polygon>
      <ellipse label="disc" cx="25" cy="22" rx="15" ry="15"></ellipse>"""
    imported = read(export(shapes))
    ring, polygon, ellipse = masks_of(imported)
    assert np.array_equal(ring, scene.ring)
    assert iou(polygon, scene.disc) > 0.95 and iou(ellipse, scene.disc) > 0.95
    assert names_of(imported) == ["ring", "disc", "disc"]
    assert imported.content["annotations"][0]["attributes"] == {"ripe": True, "weight": 3.5, "colour": "red"}
    assert [item["name"] for item in imported.content["categories"]] == ["ring", "disc"]
    assert imported.content["annotations"][0]["iscrowd"] == 0
    assert any("unused" in note for note in imported.notes)


def test_an_ellipse_is_turned_clockwise(export: Callable[..., Path], read: Any, masks_of: Any, iou: Any) -> None:
    imported = read(export('<ellipse label="disc" cx="40" cy="30" rx="20" ry="8" rotation="30"></ellipse>'))
    y, x = np.mgrid[:60, :80] + 0.5
    t = np.deg2rad(30)
    u, v = (x - 40) * np.cos(t) + (y - 30) * np.sin(t), -(x - 40) * np.sin(t) + (y - 30) * np.cos(t)
    assert iou(masks_of(imported)[0], (u / 20) ** 2 + (v / 8) ** 2 < 1) > 0.95


def test_a_group_is_one_object(export: Callable[..., Path], scene: Any, read: Any, masks_of: Any, iou: Any) -> None:
    shapes = f"""<polygon label="disc" group_id="7" points="{_points(scene.outline)}"></polygon>
      <mask label="disc" group_id="7" {_rle(scene.ring)}></mask>
      <polygon label="disc" group_id="0" points="1,1;9,1;9,9"></polygon>
      <polygon label="disc" group_id="0" points="1,1;9,1;9,9"></polygon>"""
    first, *others = masks_of(read(export(shapes)))
    assert iou(first, scene.disc | scene.ring) > 0.95
    assert len(others) == 2


@pytest.mark.parametrize(
    ("orientation", "turn"), [(5, "TRANSPOSE"), (6, "ROTATE_270"), (7, "TRANSVERSE"), (8, "ROTATE_90")]
)
def test_masks_of_the_stored_image_are_turned(
    export: Callable[..., Path], scene: Any, read: Any, masks_of: Any, iou: Any, orientation: int, turn: str
) -> None:
    """The objects were drawn on 80x60 pixels as stored; EXIF makes them 60x80, as Pillow turns the picture."""
    expected = np.asarray(Image.fromarray(scene.disc).transpose(Image.Transpose[turn]))
    shapes = f"""<mask label="disc" {_rle(scene.disc)}></mask>
      <polygon label="disc" points="{_points(scene.outline)}"></polygon>"""
    imported = read(export(shapes, orientation=orientation))
    assert (imported.content["images"][0]["height"], imported.content["images"][0]["width"]) == (80, 60)
    exact, polygon = masks_of(imported)
    assert np.array_equal(exact, expected)
    assert iou(polygon, expected) > 0.95


def test_masks_of_the_turned_image_are_kept(export: Callable[..., Path], scene: Any, read: Any, masks_of: Any) -> None:
    mask = np.rot90(scene.disc, -1)
    shapes = f'<mask label="disc" {_rle(mask)}></mask>'
    imported = read(export(shapes, size='width="60" height="80"', orientation=6))
    assert np.array_equal(masks_of(imported)[0], mask)


def test_tags_describe_the_image(export: Callable[..., Path], read: Any) -> None:
    shapes = """<tag label="outdoor"><attribute name="weather">sun</attribute></tag>
      <polygon label="disc" points="1,1;9,1;9,9"></polygon>"""
    (image,) = read(export(shapes)).content["images"]
    assert image["tags"] == ["outdoor"] and image["attributes"] == {"weather": "sun"}


def test_what_has_no_mask_is_said(export: Callable[..., Path], read: Any) -> None:
    box = '<box label="disc" xtl="1" ytl="1" xbr="9" ybr="9"></box>'
    others = '<polyline label="disc" points="1,1;9,9"></polyline><polygon label="disc" points="1,1;9,1"></polygon>'
    imported = read(export(box * 2 + others + '<polygon label="disc" points="1,1;9,1;9,9"></polygon>'))
    assert len(imported.content["annotations"]) == 1
    said = "\n".join(imported.notes)
    assert "boxes, left out because a box is no mask: 2" in said and "polylines" in said and "fewer than 3" in said
    with pytest.raises(WorkbenchError, match=r"boxes only \(2 of them.*annotations.xml, image 'a.jpg', shape 1"):
        read(export(box * 2))


def test_subsets_are_splits(tmp_path: Path, picture: Callable[..., Path], read: Any) -> None:
    """A project's export has the same file name in two subsets."""
    shape = '<polygon label="disc" points="1,1;9,1;9,9"></polygon>'
    images = ""
    for subset in ("Train", "Validation"):
        picture(tmp_path / "images" / subset / "a.jpg")
        images += f'<image name="a.jpg" subset="{subset}" width="80" height="60">{shape}</image>'
    (tmp_path / "annotations.xml").write_text(f"<annotations><version>1.1</version>{images}</annotations>")
    imported = read(tmp_path)
    assert [(image["file_name"], image["split"]) for image in imported.content["images"]] == [
        ("Train/a.jpg", "train"),
        ("Validation/a.jpg", "val"),
    ]


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ('<mask label="disc" rle="5, 900" left="0" top="0" width="9" height="9"></mask>', "covers 905 pixels of 9x9"),
        ('<mask label="disc" rle="5, -1" left="0" top="0" width="9" height="9"></mask>', "covers 4 pixels"),
        ('<mask label="disc" rle="1" left="0" top="0" width="999999" height="999999"></mask>', "covers"),
        ('<mask label="disc" left="0" top="0" width="9" height="9"></mask>', "no 'rle'"),
        ('<polygon label="disc" points="1,1;9,x;9,9"></polygon>', "'x' is no number"),
        ('<polygon label="disc" points="1,1;9,nan;9,9"></polygon>', "finite"),
        ('<polygon points="1,1;9,1;9,9"></polygon>', "no 'label'"),
        ('<polygon label="disc" points="1,1;9e9,1;9,9"></polygon>', "far outside"),
        ('<blob label="disc"></blob>', "unknown kind"),
    ],
)
def test_a_malformed_shape_is_one_sentence(export: Callable[..., Path], read: Any, shape: str, says: str) -> None:
    with pytest.raises(WorkbenchError, match=says) as caught:
        read(export(shape))
    said = str(caught.value)
    assert "annotations.xml, image 'a.jpg', shape 1" in said and "\n" not in said


def test_entities_are_refused(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text("<!DOCTYPE a [<!ENTITY x 'y'>]><annotations><version>&x;</version><image/></annotations>")
    with pytest.raises(WorkbenchError, match="declares XML entities"):
        read_cvat(Source(path))
    path.write_text("<annotations><version>1.1</version><image>")
    with pytest.raises(WorkbenchError, match="not valid XML"):
        read(path)
    path.write_text("<annotations><version>1.1</version><track/></annotations>")
    with pytest.raises(WorkbenchError, match="CVAT for video"):
        read(path)
