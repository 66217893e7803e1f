"""VGG Image Annotator 2: a project file (``_via_img_metadata``) or its JSON export, images beside it.

The main category is one of the region attributes; VIA does not say which.
"""

from __future__ import annotations

from workbench.data.formats.builder import Builder, Frame, Imported
from workbench.data.formats.detect import VIA, detect_format
from workbench.data.formats.source import Source, as_number, as_points, ellipse, joined, reading, rectangle
from workbench.errors import WorkbenchError, nearest

_CATEGORY_NAMES = ("category", "class", "label", "name", "type", "object", "objects")
_NO_MASKS = {"point": "points", "polyline": "polylines"}
UNNAMED = "object"  # the category of regions without attributes


def read_via(source: Source) -> Imported:
    """Read every VIA JSON of the source. Rectangles, circles and ellipses become masks of that form.

    Raises:
        WorkbenchError: several region attributes could be the main category, and ``source.category`` is None.
    """
    builder = Builder(source)
    contents = [(path, source.read_json(path)) for path in source.files(".json")]
    contents = [(path, content) for path, content in contents if detect_format(content) == VIA]
    records, names = [], set()
    for path, content in contents:
        name = source.name(path)
        if "view" in content and "_via_img_metadata" not in content:
            raise WorkbenchError(f"{name} is a project of VIA 3; its projects are not read, those of VIA 2 are.")
        with reading(name):
            for entry in content.get("_via_img_metadata", content).values():
                where = f"{name}, image {entry['filename']!r}"
                regions = entry.get("regions") or []
                regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1
                records.append((path, entry, where, regions))
                names |= {key for region in regions for key in region.get("region_attributes") or {}}
    key = _category_key(names, source)
    for path, entry, where, regions in records:
        with reading(where):
            image = entry["filename"].rpartition("/")[2] if "://" in entry["filename"] else entry["filename"]
            frame = builder.add_image(image, where, beside=path.parent, split=path.parent.name)
            if frame is None:
                continue
            values = {name: _value(value) for name, value in (entry.get("file_attributes") or {}).items()}
        frame.record.update({"attributes": values} if values else {})
        for number, region in enumerate(regions, 1):
            with reading(f"{where}, region {number}"):
                _read_region(builder, frame, region, key, f"{where}, region {number}")
    return builder.finish()


def _category_key(names: set[str], source: Source) -> str | None:
    """Return the region attribute that names the main category; None where regions have no attributes."""
    listed = ", ".join(sorted(names))
    if source.category is not None:
        if source.category not in names:
            hint = nearest(source.category, names)
            raise WorkbenchError(
                f"No region of {source.path} has an attribute {source.category!r}{hint}; they have {listed or 'none'}."
            )
        return source.category
    if len(names) <= 1:
        return next(iter(names), None)
    likely = [name for wanted in _CATEGORY_NAMES for name in sorted(names) if name.strip().lower() == wanted]
    if not likely:
        raise WorkbenchError(
            f"The regions of {source.path} have the attributes {listed}; name the one that is the main category, as in "
            f"--category {sorted(names)[0]}."
        )
    return likely[0]


def _value(value: object) -> object:
    """Return an attribute's value; of the ticked boxes of a checkbox group, their names."""
    return joined([name for name, ticked in value.items() if ticked]) if isinstance(value, dict) else value


def _read_region(builder: Builder, frame: Frame, region: dict, key: str | None, where: str) -> None:
    attributes = {name: _value(value) for name, value in (region.get("region_attributes") or {}).items()}
    category = attributes.pop(key, None) if key is not None else UNNAMED
    if category in (None, ""):
        builder.note(f"regions without {key}, left out", where)
        return
    shape = region["shape_attributes"]
    kind = shape["name"]
    if kind in _NO_MASKS:
        frame.leave_out(_NO_MASKS[kind], where)
        return
    if kind == "polygon":
        xs, ys = shape["all_points_x"], shape["all_points_y"]
        outline = as_points([list(pair) for pair in zip(xs, ys, strict=True)])
    elif kind == "rect":
        outline = rectangle(*(as_number(shape[name]) for name in ("x", "y", "width", "height")))
        frame.add_box(str(category), outline, where, attributes)
        return
    elif kind == "circle":
        cx, cy, r = (as_number(shape[name]) for name in ("cx", "cy", "r"))
        outline = ellipse(cx, cy, r, r)
    elif kind == "ellipse":
        outline = ellipse(*(as_number(shape[n]) for n in ("cx", "cy", "rx", "ry")), as_number(shape.get("theta", 0)))
    else:
        raise ValueError(f"its shape {kind!r} is not known")
    frame.add_polygons(str(category), [outline], where, attributes)
