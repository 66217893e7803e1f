"""Supervisely: a project with ``meta.json`` and datasets, each ``img/NAME`` and ``ann/NAME.json``.

A bitmap is base64 of zlib of a PNG that lies at ``origin``; a polygon may have interiors. Tags become attributes.
"""

from __future__ import annotations

from workbench.data.formats.builder import Builder, Frame, Imported
from workbench.data.formats.source import (
    Source,
    as_points,
    decode_base64,
    decode_mask_picture,
    joined,
    reading,
)
from workbench.errors import WorkbenchError

_NO_MASKS = {"rectangle": "boxes", "point": "points", "line": "lines", "graph": "skeletons", "cuboid": "cuboids"}


def read_supervisely(source: Source) -> Imported:
    """Read all datasets of the project, nested ones too. A tag without a value is ``True``, and ``False`` for all other
    objects; dataset names such as train and val are splits."""
    meta_path = source.folder / "meta.json"
    if not meta_path.is_file():
        raise WorkbenchError(f"{source.folder} has no meta.json; name the folder of a Supervisely project.")
    builder = Builder(source)
    with reading(source.name(meta_path)):
        meta = source.read_json(meta_path)
        builder.declare_categories(item["title"] for item in meta["classes"])
        flags = [item["name"] for item in meta.get("tags") or [] if item.get("value_type") == "none"]
    paths = sorted(path for path in source.folder.rglob("*.json") if path.parent.name == "ann")
    if not paths:
        raise WorkbenchError(f"{source.folder} has no annotations in folders called ann.")
    for path in paths:
        where = source.name(path)
        with reading(where):
            content = source.read_json(path)
            size = (content["size"]["height"], content["size"]["width"])
            beside = path.parent.parent / "img"
            options = (path.stem, *(f"{path.stem}{suffix}" for suffix in (".jpg", ".png", ".jpeg")))
            name = next((option for option in options if (beside / option).is_file()), path.stem)
            frame = builder.add_image(name, where, beside=beside, size=size, split=path.parent.parent.name)
            if frame is None:
                continue
            values = _tags(content)
            frame.record.update({"attributes": values} if values else {})
            objects = list(enumerate(content["objects"], 1))
        for number, item in objects:
            with reading(f"{where}, object {number}"):
                _read_object(frame, item, f"{where}, object {number}")
    used = {name for drawn in builder.objects for name in drawn.attributes}
    for drawn in builder.objects:
        drawn.attributes.update({flag: False for flag in flags if flag in used and flag not in drawn.attributes})
    return builder.finish()


def _tags(record: dict) -> dict[str, object]:
    """Return tags as attributes; several of one name are joined."""
    values: dict[str, list] = {}
    for tag in record.get("tags") or []:
        tag = {"name": tag} if isinstance(tag, str) else tag  # old projects list names only
        value = tag.get("value")
        values.setdefault(str(tag["name"]), []).append(True if value is None else value)
    return {name: given[0] if len(given) == 1 else joined(given) for name, given in values.items()}


def _read_object(frame: Frame, item: dict, where: str) -> None:
    kind = item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon")
    if kind in _NO_MASKS:
        frame.leave_out(_NO_MASKS[kind], where)
        return
    category, attributes = item["classTitle"], _tags(item)
    if kind == "polygon":
        points = item["points"]
        holes = [as_points(hole) for hole in points.get("interior") or []]
        frame.add_polygons(category, [as_points(points["exterior"])], where, attributes, holes=holes)
    elif kind == "bitmap":
        height, width = frame.size
        left, top = (int(value) for value in item["bitmap"]["origin"])
        picture = decode_base64(item["bitmap"]["data"], 8 * height * width + 10_000, inflate=True)
        frame.add_mask(category, decode_mask_picture(picture, height * width), where, attributes, left=left, top=top)
    else:
        raise ValueError(f"its geometryType {kind!r} is not known")
