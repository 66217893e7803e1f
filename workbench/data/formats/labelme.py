"""LabelMe: one JSON an image, beside it; the image may also be inside, as base64.

Written by labelme, and with the same keys by AnyLabeling and X-AnyLabeling.
"""

from __future__ import annotations

import numpy as np

from workbench.data.formats.builder import Builder, Frame, Imported
from workbench.data.formats.detect import LABELME, detect_format
from workbench.data.formats.source import (
    Source,
    as_points,
    decode_base64,
    decode_mask_picture,
    ellipse,
    reading,
    rectangle,
)
from workbench.data.masks import MOST_PIXELS

IGNORED = "__ignore__"  # labelme's own label of what is to be left out
_NO_MASKS = {"line": "lines", "linestrip": "lines", "point": "points", "points": "points"}


def read_labelme(source: Source) -> Imported:
    """Read every LabelMe JSON of the source. Shapes of one label and ``group_id`` are one object, as in labelme's own
    converters. Rectangles and circles become masks of that form."""
    builder = Builder(source)
    for path in source.files(".json"):
        content, where = source.read_json(path), source.name(path)
        if detect_format(content) != LABELME:
            continue
        with reading(where):
            size = (content.get("imageHeight"), content.get("imageWidth"))
            data = content.get("imageData")
            data = decode_base64(data, MOST_PIXELS) if data else None
            name = content["imagePath"] or path.stem
            if data and source.find_image(name, path.parent) is None:
                name = path.stem  # several files may call the images inside them by one name
            frame = builder.add_image(
                name,
                where,
                beside=path.parent,
                size=size if all(size) else None,
                data=data,
                split=path.parent.name,
            )
            if frame is None:
                continue
            flags = content.get("flags")
            if flags:
                frame.record["attributes"] = dict(flags)
            shapes = list(enumerate(content["shapes"], 1))
        for number, shape in shapes:
            with reading(f"{where}, shape {number}"):
                _read_shape(frame, shape, f"{where}, shape {number}")
    return builder.finish()


def _read_shape(frame: Frame, shape: dict, where: str) -> None:
    kind = shape.get("shape_type") or "polygon"
    if kind in _NO_MASKS:
        frame.leave_out(_NO_MASKS[kind], where)
        return
    label, points = shape["label"], as_points(shape["points"])
    attributes = {**(shape.get("flags") or {}), **(shape.get("attributes") or {})}
    common = {"where": where, "attributes": attributes, "group": shape.get("group_id")}
    if label == IGNORED:
        frame.leave_out(f"shapes labelled {IGNORED}", where)
    elif kind == "polygon":
        frame.add_polygons(label, [points], **common)
    elif kind == "rotation":  # X-AnyLabeling's turned box, by its corners
        frame.add_box(label, points, **common)
    elif kind == "rectangle":
        frame.add_box(label, rectangle(*points.min(axis=0), *np.ptp(points, axis=0)), **common)
    elif kind == "circle":  # its centre, and a point on the line
        radius = float(np.hypot(*(points[1] - points[0])))
        frame.add_polygons(label, [ellipse(*points[0], radius, radius)], **common)
    elif kind == "mask":  # the picture covers the pixels from the first point to the second
        height, width = frame.size
        mask = decode_mask_picture(decode_base64(shape["mask"], 8 * height * width + 10_000), height * width)
        left, top = (int(value) for value in points.min(axis=0))
        frame.add_mask(label, mask, left=left, top=top, **common)
    else:
        raise ValueError(f"its shape_type {kind!r} is not known")
