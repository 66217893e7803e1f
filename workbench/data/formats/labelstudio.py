"""Label Studio: the JSON export, images beside it or in ``images/``.

A region is one or several results of the same ``id``: its shape, its label, and what was chosen for it (choices,
ratings, numbers, texts), which become its attributes under the names of their tags. Coordinates are in percent.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from workbench.data.formats.builder import Builder, Frame, Imported
from workbench.data.formats.detect import LABEL_STUDIO, detect_format
from workbench.data.formats.source import Source, as_number, as_points, ellipse, joined, reading
from workbench.data.masks import MOST_PIXELS
from workbench.errors import WorkbenchError

_SHAPES = ("polygon", "brush", "ellipse", "rectangle", "keypoint")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it before the name of an uploaded file


def read_label_studio(source: Source) -> Imported:
    """Read every Label Studio JSON of the source. Of several annotations of a task, the ground truth or else the first
    that was not cancelled is read."""
    builder = Builder(source)
    for path in source.files(".json"):
        content = source.read_json(path)
        if detect_format(content) != LABEL_STUDIO:
            continue
        for position, task in enumerate(content if isinstance(content, list) else [content], 1):
            where = f"{source.name(path)}, task {task.get('id', position) if isinstance(task, dict) else position}"
            if isinstance(task, dict) and "data" not in task:
                raise WorkbenchError(f"{where} is of the JSON-MIN export; export the project as JSON.")
            with reading(where):
                _read_task(builder, path, task, where)
    return builder.finish()


def _read_task(builder: Builder, path: Path, task: dict, where: str) -> None:
    given = [item for item in task.get("annotations") or task.get("completions") or [] if not item.get("was_cancelled")]
    if len(given) > 1:
        builder.note("tasks with several annotations, of which one is read", where)
    chosen = next((item for item in given if item.get("ground_truth")), given[0] if given else None)
    if chosen is None:
        builder.note("tasks that are not annotated, left out", where)
        return
    results = chosen.get("result") or []
    sizes = {(item["original_height"], item["original_width"]) for item in results if item.get("original_height")}
    if len(sizes) > 1:
        raise ValueError("its results are of images of several sizes")
    text = next((value for value in task["data"].values() if isinstance(value, str) and _image_name(value)), None)
    if text is None:
        builder.note("tasks that name no image file, left out", where)
        return
    name = _image_name(text)
    last = name.rpartition("/")[2]
    names = [name, last, _UPLOAD_PREFIX.sub("", last)]
    name = next((each for each in names if builder.source.find_image(each, path.parent)), name)
    frame = builder.add_image(name, where, beside=path.parent, size=next(iter(sizes), None))
    if frame is None:
        return
    regions: dict[str, list[dict]] = {}
    for number, item in enumerate(results):
        regions.setdefault(str(item.get("id", f"#{number}")), []).append(item)
    for number, items in enumerate(regions.values(), 1):
        with reading(f"{where}, region {number}"):
            _read_region(builder, frame, items, f"{where}, region {number}")


def _image_name(text: str) -> str:
    """Return the path of the image that a task's data names; empty where it is no image file.

    ``/data/upload/3/1234abcd-a.jpg``, ``/data/local-files/?d=photos/a.jpg``, ``s3://bucket/a.jpg`` and addresses.
    """
    parts = urlsplit(text.replace("\\", "/"))
    name = parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path)
    name = name.removeprefix("/data/upload/").lstrip("/")
    return name if re.search(r"\.(png|jpe?g|bmp|tiff?|webp|gif)$", name, re.IGNORECASE) else ""


def _read_region(builder: Builder, frame: Frame, items: list[dict], where: str) -> None:
    shape, labels, attributes = None, [], {}
    for item in items:
        kind, value = item["type"], item["value"]
        plain = kind.removesuffix("labels")
        if plain in _SHAPES:
            shape = (plain, item)
        if kind.endswith("labels") and value.get(kind):
            labels = value[kind]
        elif plain not in _SHAPES and item.get("from_name"):
            attributes[item["from_name"]] = _chosen(kind, value)
    if shape is None:  # chosen for the whole image
        frame.record.update({"attributes": {**frame.record.get("attributes", {}), **attributes}} if attributes else {})
        return
    kind, item = shape
    value = item["value"]
    if kind in ("rectangle", "keypoint"):
        frame.leave_out("boxes" if kind == "rectangle" else "points", where)
    elif not labels:
        builder.note("regions without a label, left out", where)
    elif item.get("image_rotation"):
        builder.note("regions drawn on a turned image, left out", where)
    elif kind == "brush":
        if value.get("format", "rle") != "rle":
            raise ValueError(f"its brush format {value['format']!r} is not known")
        frame.add_mask(joined(labels), decode_brush(value["rle"], *frame.size), where, attributes)
    else:
        height, width = frame.size
        if kind == "polygon":
            outline = as_points(value["points"])
        else:
            x, y, rx, ry = (as_number(value[name]) for name in ("x", "y", "radiusX", "radiusY"))
            angle = np.deg2rad(as_number(value.get("rotation", 0)))
            # The percentages are of width and height, the angle is of the picture: turn in pixels.
            outline = ellipse(0, 0, rx * width, ry * height, angle) / (width, height) + (x, y)
        frame.add_polygons(joined(labels), [outline * (width / 100, height / 100)], where, attributes)


def _chosen(kind: str, value: dict) -> object:
    """Return what a per-region tag says: its number, or its words joined."""
    chosen = value.get(kind, value.get("text"))
    if kind == "taxonomy" and isinstance(chosen, list):
        chosen = ["/".join(map(str, path)) if isinstance(path, list) else path for path in chosen]
    return joined(chosen) if isinstance(chosen, list) else chosen


def decode_brush(data: list[int], height: int, width: int) -> np.ndarray:
    """(height, width) bool of a brush stroke.

    The bytes are a bit stream, as packed by the JavaScript library rle-pack: 32 bits for how many values follow, 5 for
    their width less one, four times 4 for the widths less one of run lengths. Then runs: one bit for whether one value
    is repeated, 2 bits for which width its length less one has, the length less one, the value or values. The values
    are the RGBA bytes of the picture, row by row; the mask is where alpha is not 0.
    """
    if not (isinstance(data, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in data)):
        raise ValueError("its rle is no list of bytes")
    wanted = 4 * height * width
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise ValueError(f"its original size {width}x{height} is not possible")
    packed = bytes(data)
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    place = 0

    def read(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise ValueError("its rle ends early")
        first, place = place // 8, place + count
        return int.from_bytes(packed[first : -(-place // 8)], "big") >> -place % 8 & (1 << count) - 1

    total, size = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != wanted:
        raise ValueError(f"its rle holds {total} values, but {width}x{height} pixels take {wanted}")
    values = np.zeros(total, dtype=bool)
    at = 0
    while at < total:
        repeated = read(1)
        end = at + 1 + read(lengths[read(2)])
        if end > total:
            raise ValueError("its rle has more values than it says")
        if repeated:
            values[at:end] = read(size) != 0
        else:
            taken = bits[place : place + size * (end - at)]
            if len(taken) < size * (end - at):
                raise ValueError("its rle ends early")
            values[at:end] = taken.reshape(-1, size).any(axis=1)
            place += len(taken)
        at = end
    return values.reshape(height, width, 4)[..., 3]
