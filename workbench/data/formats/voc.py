"""Pascal VOC masks: ``SegmentationObject`` numbers the objects of an image, ``SegmentationClass`` their classes.

Classes are the colours of ``labelmap.txt`` (CVAT and Datumaro write it), or VOC's own twenty. Attributes are those of
the object in ``Annotations/*.xml`` whose name is the class and whose box fits the mask best.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from workbench.data.formats.builder import Builder, Frame, Imported
from workbench.data.formats.source import IMAGE_SUFFIXES, Source, as_number, read_xml, reading
from workbench.errors import WorkbenchError, reason_of

_VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = {0, 0xE0E0C0}  # colours of the background and of VOC's white borders between objects
_FLAGS = ("truncated", "difficult", "occluded")
_FITS = 0.5  # least IoU of a mask's box and the box of its XML object


def find_voc(source: Source) -> Path | None:
    """Return the folder that holds ``SegmentationClass`` or ``JPEGImages``: the source's, or one up to two below."""
    for pattern in ("", "*/", "*/*/"):
        for kind in ("SegmentationObject", "SegmentationClass", "JPEGImages"):
            found = sorted(source.folder.glob(pattern + kind))
            if found:
                return found[0].parent
    return None


def read_voc(source: Source) -> Imported:
    """Read the images that have both masks; splits are the lists in ``ImageSets/Segmentation``."""
    folder = find_voc(source)
    if folder is None or not (folder / "SegmentationObject").is_dir():
        where = folder or source.path
        what = "boxes only" if not (where / "SegmentationClass").is_dir() else "classes of pixels but not which object"
        raise WorkbenchError(f"{where} has no folder SegmentationObject: it says {what}; export masks of instances.")
    builder = Builder(source)
    colours = _class_colours(folder)
    builder.declare_categories(colours.values())
    splits = {}
    for split in ("train", "val", "test"):
        listed = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        if listed.is_file():
            for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
                splits[line.strip().split(" ")[0]] = split
    images = {
        path.relative_to(folder / "JPEGImages").with_suffix("").as_posix(): path
        for path in sorted((folder / "JPEGImages").rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    for path in sorted((folder / "SegmentationObject").rglob("*.png")):
        name = path.relative_to(folder / "SegmentationObject").with_suffix("").as_posix()
        where = source.name(path)
        classes = folder / "SegmentationClass" / f"{name}.png"
        if not classes.is_file():
            builder.note("images without SegmentationClass, left out", where)
            continue
        with reading(where):
            objects, kinds = _colours(path), _colours(classes)
            if objects.shape != kinds.shape:
                raise ValueError("it has not the size of its SegmentationClass")
            image = images.get(name)
            file_name = str(image) if image else f"{name}.jpg"
            frame = builder.add_image(file_name, where, beside=folder, size=objects.shape, split=splits.get(name))
            if frame is not None:
                described = _described(folder / "Annotations" / f"{name}.xml", source)
                _read_objects(builder, frame, objects, kinds, colours, described, where)
    return builder.finish()


def _colours(path: Path) -> np.ndarray:
    """(H, W) int64: the colour of each pixel as 0xRRGGBB, palettes looked up."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            grey = picture.mode in ("L", "1") or picture.mode.startswith("I")
            pixels = np.asarray(picture if grey else picture.convert("RGB")).astype(np.int64)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be read ({reason_of(error)})") from None
    if not grey:
        return pixels @ np.array([1 << 16, 1 << 8, 1])
    if pixels.max(initial=0) > 255:
        raise ValueError("it numbers more than 255 objects")
    return _palette()[pixels]


def _palette() -> np.ndarray:
    """(256,) int64: VOC's colour of each number, its bits dealt to red, green and blue in turn, highest first."""
    numbers = np.arange(256)
    colours = np.zeros(256, dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            value = (numbers >> (3 * bit + channel)) & 1
            colours |= value << (7 - bit) << (16 - 8 * channel)
    return colours


def _class_colours(folder: Path) -> dict[int, str]:
    """Return the class of each colour; a line of ``labelmap.txt`` is ``name:r,g,b:parts:actions``."""
    path = folder / "labelmap.txt"
    if not path.is_file():
        return dict(zip(_palette()[1:].tolist(), _VOC_CLASSES, strict=False))
    colours = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, rest = line.partition(":")
        if not name.strip() or name.startswith("#") or name in ("background", "ignored"):
            continue
        with reading(f"labelmap.txt, line {number}"):
            red, green, blue = (int(value) for value in rest.partition(":")[0].split(","))
            colours[red << 16 | green << 8 | blue] = name
    return colours


def _described(path: Path, source: Source) -> list[tuple[str, np.ndarray, dict]]:
    """Return (name, box as x0 y0 x1 y1, attributes) of the objects in an XML; none where there is no file."""
    if not path.is_file():
        return []
    described = []
    for number, item in enumerate(read_xml(path).iterfind("object"), 1):
        with reading(f"{source.name(path)}, object {number}"):
            box = np.array([as_number(item.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")])
            attributes: dict = {name: item.findtext(name) == "1" for name in _FLAGS if item.findtext(name) is not None}
            if item.findtext("pose") not in (None, "", "Unspecified"):
                attributes["pose"] = item.findtext("pose")
            for attribute in item.iterfind("attributes/attribute"):
                value = attribute.findtext("value") or ""
                known = {"true": True, "false": False}
                attributes[attribute.findtext("name") or ""] = known.get(value.lower(), value)
            described.append((item.findtext("name") or "", box, attributes))
    return described


def _read_objects(
    builder: Builder,
    frame: Frame,
    objects: np.ndarray,
    kinds: np.ndarray,
    colours: dict[int, str],
    described: list[tuple[str, np.ndarray, dict]],
    where: str,
) -> None:
    numbers = [number for number in np.unique(objects).tolist() if number not in _VOID]
    left = list(described)
    for number in numbers:
        mask = objects == number
        values, counts = np.unique(kinds[mask], return_counts=True)
        colour = int(values[counts.argmax()])
        place = f"{where}, the object of colour {number >> 16},{number >> 8 & 255},{number & 255}"
        if colour not in colours:
            builder.note("objects whose class colour labelmap.txt does not list, left out", place)
            continue
        ys, xs = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        box = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
        fits = [(_iou(box, other), i) for i, (name, other, _) in enumerate(left) if name == colours[colour]]
        best = max(fits, default=(0.0, -1))
        attributes = left.pop(best[1])[2] if best[0] >= _FITS else {}
        frame.add_mask(colours[colour], mask, place, attributes)


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    """IoU of two boxes x0 y0 x1 y1."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return float(shared / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared))
