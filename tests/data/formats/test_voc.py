"""Pascal VOC masks: VOC's own palette, CVAT's labelmap.txt, and attributes from the XML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.errors import WorkbenchError

# VOC's first colours, as its devkit lists them
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
VOID = (224, 224, 192)


def _object(name: str, box: tuple[int, int, int, int], more: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox>{more}</object>"


@pytest.fixture
def export(tmp_path: Path, scene: Any, picture: Callable[..., Path]) -> Callable[..., Path]:
    """Writes one image with the disc (object 1) and the ring (object 2), and a border of void between."""

    def write(classes: tuple[int, int] = (2, 5), *, mode: str = "P", objects: str = "", labels: str = "") -> Path:
        picture(tmp_path / "JPEGImages" / "a.jpg")
        for folder, values in (("SegmentationObject", (1, 2)), ("SegmentationClass", classes)):
            numbers = np.zeros((60, 80), dtype=np.uint8)
            numbers[scene.disc], numbers[scene.ring] = values
            numbers[0] = 255
            image = Image.fromarray(numbers)
            if mode != "L":
                image.putpalette([*np.ravel(COLOURS).tolist(), *(0, 0, 0) * 249, *VOID])
            (tmp_path / folder).mkdir(exist_ok=True)
            (image.convert("RGB") if mode == "RGB" else image).save(tmp_path / folder / "a.png")
        if objects:
            (tmp_path / "Annotations").mkdir()
            (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{objects}</annotation>")
        if labels:
            (tmp_path / "labelmap.txt").write_text(labels)
        return tmp_path

    return write


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_masks_are_exact(export: Any, scene: Any, read: Any, masks_of: Any, names_of: Any, mode: str) -> None:
    imported = read(export(mode=mode))
    found = dict(zip(names_of(imported), masks_of(imported), strict=True))
    assert np.array_equal(found["bicycle"], scene.disc) and np.array_equal(found["bottle"], scene.ring)
    assert len(found) == 2


def test_attributes_belong_to_the_mask_in_their_box(export: Any, read: Any, names_of: Any) -> None:
    """Both objects are of one class; their order in the XML is not that of their numbers."""
    colour = "<attributes><attribute><name>colour</name><value>{}</value></attribute></attributes>"
    objects = (
        _object("bus", (46, 16, 74, 44), colour.format("red") + "<pose>Left</pose><difficult>0</difficult>")
        + _object("bus", (10, 7, 40, 37), colour.format("true") + "<pose>Unspecified</pose><truncated>1</truncated>")
        + _object("bus", (1, 50, 9, 59), colour.format("blue"))
    )
    labels = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbus:128,128,0::\ncar:9,9,9::"
    imported = read(export((3, 3), objects=objects, labels=labels))
    assert names_of(imported) == ["bus", "bus"]
    attributes = [each["attributes"] for each in sorted(imported.content["annotations"], key=lambda a: a["bbox"][0])]
    assert attributes == [{"colour": True, "truncated": True}, {"colour": "red", "pose": "Left", "difficult": False}]


def test_splits_are_the_lists_of_segmentation(export: Any, picture: Any, read: Any) -> None:
    folder = export()
    picture(folder / "JPEGImages" / "b.jpg")
    for kind in ("SegmentationObject", "SegmentationClass"):
        (folder / kind / "b.png").write_bytes((folder / kind / "a.png").read_bytes())
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n")
    (lists / "val.txt").write_text("a\n")
    images = read(folder).content["images"]
    assert [(image["file_name"], image["split"]) for image in images] == [("a.jpg", "val"), ("b.jpg", "train")]


def test_a_colour_without_a_name_is_left_out(export: Any, read: Any, names_of: Any) -> None:
    imported = read(export(labels="bicycle:0,128,0::"))
    assert names_of(imported) == ["bicycle"]
    assert any("labelmap.txt does not list" in note and "128,0,128" not in note for note in imported.notes)


def test_what_lacks_instances_is_named(export: Any, read: Any) -> None:
    folder = export()
    (folder / "SegmentationObject").rename(folder / "elsewhere")
    with pytest.raises(WorkbenchError, match="no folder SegmentationObject: it says classes of pixels"):
        read(folder)
    (folder / "SegmentationClass").rename(folder / "elsewhere2")
    with pytest.raises(WorkbenchError, match="no folder SegmentationObject: it says boxes only"):
        read(folder)


def test_broken_files_are_one_sentence(export: Any, read: Any) -> None:
    folder = export(labels="bus:128,128::")
    with pytest.raises(WorkbenchError, match="labelmap.txt, line 1"):
        read(folder)
    (folder / "labelmap.txt").unlink()
    Image.new("P", (5, 5)).save(folder / "SegmentationClass" / "a.png")
    with pytest.raises(WorkbenchError, match=r"SegmentationObject/a.png is malformed: .*size of its SegmentationClass"):
        read(folder)
    (folder / "SegmentationObject" / "a.png").write_text("no picture")
    with pytest.raises(WorkbenchError, match=r"SegmentationObject/a.png is malformed: it cannot be read"):
        read(folder)
