"""CVAT for images 1.1: one XML, images in ``images/``.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. A mask's ``rle`` holds counts of a crop at
``left``, ``top``, row by row, the first of zeros.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from workbench.data.formats.builder import Builder, Frame, Imported
from workbench.data.formats.source import Source, as_number, as_points, ellipse, read_xml, reading
from workbench.data.masks import MOST_PIXELS
from workbench.errors import WorkbenchError

_NO_MASKS = {"polyline": "polylines", "points": "points", "cuboid": "cuboids", "skeleton": "skeletons"}


def read_cvat(source: Source) -> Imported:
    """Read every CVAT XML of the source. Shapes of one image, label and ``group_id`` are one object, as in CVAT's own
    COCO export."""
    builder = Builder(source)
    for path in source.files(".xml"):
        root, name = read_xml(path), source.name(path)
        if root.tag != "annotations":
            continue
        if root.find("track") is not None:
            raise WorkbenchError(f"{name} is CVAT for video; export the task as CVAT for images 1.1.")
        kinds: dict[tuple[str, str], str] = {}
        for label in root.iterfind(".//label"):
            title = label.findtext("name") or ""
            builder.declare_categories([title] if title else [])
            for attribute in label.iterfind("attributes/attribute"):
                kinds[title, attribute.findtext("name") or ""] = attribute.findtext("input_type") or ""
        for image in root.iterfind("image"):
            _read_image(builder, path, image, kinds)
    return builder.finish()


def _read_image(builder: Builder, path: Path, image: Element, kinds: dict[tuple[str, str], str]) -> None:
    where = f"{builder.source.name(path)}, image {image.get('name', image.get('id'))!r}"
    with reading(where):
        size = (int(image.attrib["height"]), int(image.attrib["width"]))
        name = image.attrib["name"]
    subset = image.get("subset")
    folders = [path.parent, *([path.parent / "images" / subset] if subset else [])]
    beside = next((folder for folder in folders if (folder / name).is_file()), path.parent)
    frame = builder.add_image(name, where, beside=beside, size=size, split=subset)
    if frame is None:
        return
    tags = [shape for shape in image if shape.tag == "tag"]
    if tags:
        frame.record["tags"] = [tag.get("label", "") for tag in tags]
        values = {name: value for tag in tags for name, value in _attributes(tag, kinds).items()}
        frame.record.update({"attributes": values} if values else {})
    for number, shape in enumerate((shape for shape in image if shape.tag != "tag"), 1):
        with reading(f"{where}, shape {number} ({shape.tag})"):
            _read_shape(frame, shape, f"{where}, shape {number}", kinds)


def _read_shape(frame: Frame, shape: Element, where: str, kinds: dict[tuple[str, str], str]) -> None:
    if shape.tag == "box" or shape.tag in _NO_MASKS:
        frame.leave_out(_NO_MASKS.get(shape.tag, "boxes"), where)
        return
    group = shape.get("group_id", "0")
    common = {"where": where, "attributes": _attributes(shape, kinds), "group": None if group == "0" else group}
    label = shape.attrib["label"]
    if shape.tag == "polygon":
        points = as_points([[float(v) for v in pair.split(",")] for pair in shape.attrib["points"].split(";")])
        frame.add_polygons(label, [points], **common)
    elif shape.tag == "ellipse":
        cx, cy, rx, ry = (as_number(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
        angle = np.deg2rad(as_number(shape.get("rotation", "0")))
        frame.add_polygons(label, [ellipse(cx, cy, rx, ry, angle)], **common)
    elif shape.tag == "mask":
        width, height, left, top = (int(as_number(shape.attrib[k])) for k in ("width", "height", "left", "top"))
        frame.add_mask(label, _decode_rle(shape.attrib["rle"], height, width), left=left, top=top, **common)
    else:
        raise ValueError("it is of an unknown kind")


def _decode_rle(text: str, height: int, width: int) -> np.ndarray:
    """(height, width) bool from counts of zeros and ones in turn, row by row; a missing last count is of zeros."""
    counts = [int(count) for count in text.split(",")]
    if min(height, width, *counts) < 0 or height * width > MOST_PIXELS or sum(counts) > height * width:
        raise ValueError(f"its rle covers {sum(counts)} pixels of {width}x{height}")
    flat = np.zeros(height * width, dtype=bool)
    flat[: sum(counts)] = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(height, width)


def _attributes(shape: Element, kinds: dict[tuple[str, str], str]) -> dict[str, object]:
    """Return the attributes of a shape or tag: checkboxes as bool, numbers as numbers, all others as text."""
    values: dict[str, object] = {}
    for attribute in shape.iterfind("attribute"):
        name, text = attribute.attrib["name"], attribute.text or ""
        kind = kinds.get((shape.get("label", ""), name))
        if kind == "checkbox" and text in ("true", "false"):
            values[name] = text == "true"
        elif kind == "number" and text:
            values[name] = as_number(text)
        else:
            values[name] = text
    return values
