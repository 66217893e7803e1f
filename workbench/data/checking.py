"""Checking what a dataset file says, and mending what can be mended, each annotation by its own record."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workbench.data.catalog import DatasetEntry
from workbench.data.faults import Fault
from workbench.data.image_files import ImageRules
from workbench.data.images import file_problem
from workbench.data.masks import MOST_PIXELS, covered_pixels, encode_segmentation, mask_areas, segmentation_problem
from workbench.data.polygons import mend_polygons, surely_visible
from workbench.data.reading import image_path, is_box, is_integer
from workbench.data.vocabulary import Vocabulary, class_name
from workbench.errors import is_number, kind_of, shown

_CHUNK = 1 << 14  # annotations whose masks are judged together; their coordinates take some tens of megabytes


def check(
    content: dict,
    entry: DatasetEntry,
    vocabulary: Vocabulary,
    *,
    check_images: bool,
    decode_images: bool = False,
    rules: ImageRules | None = None,
) -> list[Fault]:
    """Return the faults of ``content`` (from :func:`read_coco_json`), in its order; ``content`` is mended in place.

    Args:
        content: the file's content.
        entry: where it lies.
        vocabulary: the class lists that its annotations must keep to.
        check_images: whether each image file is opened and its size compared.
        decode_images: whether images whose damage decoding would show are decoded.
        rules: how image files are read.
    """
    sizes, faults = _check_images(content["images"], entry, check_images, decode_images, rules)
    if not content["images"]:
        faults.append(Fault("no images", f"{entry.annotations} lists no images"))
    categories = frozenset(vocabulary.category_ids)
    seen: set[int] = set()
    for start in range(0, len(content["annotations"]), _CHUNK):
        chunk = content["annotations"][start : start + _CHUNK]
        problems: list[tuple[int, Fault]] = []
        drawn: list[_Drawn] = []
        for position, annotation in enumerate(chunk, start):
            number = annotation.get("id") if isinstance(annotation, dict) else None
            if not is_integer(number):
                where = annotation.get("image_id") if isinstance(annotation, dict) else None
                fault = Fault("annotation record", "an entry of annotations has no whole number as id")
                fault = fault._replace(image_id=where if is_integer(where) else None, detail=f"entry {position}")
                problems.append((position, fault))
                continue
            image_id = annotation.get("image_id")
            size = sizes.get(image_id) if is_integer(image_id) else None
            where = (image_id if is_integer(image_id) else None, number)
            if number in seen:
                problems.append((position, Fault("duplicate id", "the annotation id appears again", *where)))
            seen.add(number)
            if size is None:
                message = "its image_id is not among the images that can be used"
                problems.append((position, Fault("unknown image", message, *where, shown(image_id))))
            problems += [(position, fault) for fault in _record_faults(annotation, where, categories, vocabulary)]
            if size is not None and annotation.get("segmentation"):
                drawn.append(_Drawn(position, annotation, where, *size))
        problems += _mask_faults(drawn)
        faults += [fault for _, fault in sorted(problems, key=lambda pair: pair[0])]
    return faults


def _check_images(
    images: list, entry: DatasetEntry, check_files: bool, decode: bool, rules: ImageRules | None
) -> tuple[dict[int, tuple[int, int]], list[Fault]]:
    """Return (height, width) by id of the images that have a record, and the faults of records and files."""
    faults: list[Fault] = []
    sizes: dict[int, tuple[int, int]] = {}
    folder = Path(entry.images).absolute()
    for position, image in enumerate(images):
        problem = _image_record_problem(image)
        if problem:
            number = image.get("id") if isinstance(image, dict) else None
            detail = f"entry {position} of images"
            fault = Fault("image record", problem, number if is_integer(number) else None, detail=detail)
            faults.append(fault)
            continue
        number, name = image["id"], image["file_name"]
        if number in sizes:
            faults.append(Fault("duplicate id", "the image id appears again", number, file_name=name))
            continue
        sizes[number] = (image["height"], image["width"])
        path = image_path(folder, name)
        if path is None:
            message = f"its file name leads out of the folder {entry.images}"
            faults.append(Fault("file name", message, number, detail=repr(name)))
        elif check_files and (found := file_problem(path, sizes[number], decode, rules)):
            kind, message, detail = found
            faults.append(Fault(kind, message.format(folder=entry.images), number, detail=detail, file_name=name))
    return sizes, faults


def _image_record_problem(image: object) -> str | None:
    if not isinstance(image, dict):
        return "it is no object"
    if not is_integer(image.get("id")):
        return "it has no whole number as id"
    if not (isinstance(image.get("file_name"), str) and image["file_name"]):
        return "it has no file_name"
    for key in ("height", "width"):
        if not (is_integer(image.get(key)) and image[key] > 0):
            return f"its {key} is {shown(image.get(key))}, not a whole number above 0"
    if image["height"] * image["width"] > MOST_PIXELS:
        return f"its size {image['width']}x{image['height']} is beyond what an image can have"
    return None


def _record_faults(
    annotation: dict, where: tuple[int | None, int], categories: Collection[int], vocabulary: Vocabulary
) -> Iterator[Fault]:
    """Yield what is wrong with one annotation, its mask aside, and mend its ``bbox`` and ``area``."""
    category = annotation.get("category_id")
    if not is_integer(category) or category not in categories:
        yield Fault("unknown category", f"its category_id {shown(category)} is not among the categories", *where)
    if annotation.get("iscrowd", 0) not in (0, 1):
        yield Fault("annotation record", f"its iscrowd is {shown(annotation['iscrowd'])}, neither 0 nor 1", *where)
    attributes = annotation.get("attributes")
    if attributes is not None:
        yield from _attribute_faults(attributes, where, vocabulary)
    box = annotation.get("bbox")
    if not annotation.get("segmentation"):
        if isinstance(box, list) and len(box) == 4:
            message = "it has a box but no mask, and only masks can be trained on; draw polygons or masks"
            yield Fault("box without a mask", message, *where)
        else:
            yield Fault("empty mask", "it has no segmentation", *where)
        return
    if not is_box(box):
        annotation.pop("bbox", None)
        what = "it has no bbox" if box is None else "its bbox is not [x, y, width, height]"
        detail = "" if box is None else shown(box, 60)
        yield Fault("box", f"{what}; the box of its mask is taken", *where, detail, mended=True)
    area = annotation.get("area")
    if not is_number(area):
        annotation.pop("area", None)
        what = "it has no area" if area is None else "its area is not a finite number"
        detail = "" if area is None else shown(area, 60)
        yield Fault("area", f"{what}; the area of its mask is taken", *where, detail, mended=True)


def _attribute_faults(attributes: object, where: tuple[int | None, int], vocabulary: Vocabulary) -> Iterator[Fault]:
    if not isinstance(attributes, dict):
        message = f"its attributes are {kind_of(attributes)}, not name: value pairs"
        yield Fault("attributes", message, *where)
        return
    for name, classes in vocabulary.subcategories.items():
        try:
            value = class_name(attributes.get(name))
        except TypeError as error:
            yield Fault("subcategory value", f"its {name} is not a class", *where, str(error))
            continue
        if value is not None and value not in classes:
            message = f"its {name} is {value[:80]!r}, which is not among {', '.join(classes)}"
            yield Fault("subcategory value", message, *where)


class _Drawn(NamedTuple):
    """An annotation with a segmentation, on an image of (height, width)."""

    position: int
    annotation: dict
    where: tuple[int | None, int]
    height: int
    width: int


def _mask_faults(items: list[_Drawn]) -> list[tuple[int, Fault]]:
    """Return (position, fault) of what is wrong with masks, and mend them.

    One at a time takes ten times as long, so compressed RLEs are judged together, and sound polygons are told
    together by :func:`surely_visible`.
    """
    sound = _surely_sound(items)
    texts = {i: counts for i, item in enumerate(items) if isinstance(counts := _counts(item), str)}
    covered = dict(zip(texts, covered_pixels(list(texts.values()))[0].tolist(), strict=True))
    faults: list[tuple[int, Fault]] = []
    measured: dict[int, dict] = {}
    for i, item in enumerate(items):
        if sound[i]:
            continue
        segmentation, size = item.annotation["segmentation"], (item.height, item.width)
        if isinstance(segmentation, list):
            segmentation, mends = mend_polygons(segmentation, *size)
            item.annotation["segmentation"] = segmentation
            faults += [(item.position, Fault(k, m, *item.where, detail, mended=True)) for k, m, detail in mends]
        problem = segmentation_problem(segmentation, *size, covered.get(i))
        if problem:
            faults.append((item.position, Fault(*problem, *item.where)))
        else:
            measured[i] = segmentation if i in covered else encode_segmentation(segmentation, *size)
    areas = mask_areas(list(measured.values())).tolist()
    empty = [items[i] for i, area in zip(measured, areas, strict=True) if not area]
    return faults + [(item.position, Fault("empty mask", "its mask covers no pixel", *item.where)) for item in empty]


def _counts(item: _Drawn) -> object:
    segmentation = item.annotation["segmentation"]
    return segmentation.get("counts") if isinstance(segmentation, dict) else None


def _surely_sound(items: list[_Drawn]) -> np.ndarray:
    """Return (N,) bool: the masks that are polygons, all of them :func:`surely_visible`."""
    polygons: list[list] = []
    owners: list[int] = []
    sound = np.zeros(len(items), dtype=bool)
    for i, item in enumerate(items):
        segmentation = item.annotation["segmentation"]
        if isinstance(segmentation, list) and all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation
        ):
            polygons += segmentation
            owners += [i] * len(segmentation)
            sound[i] = True
    if polygons:
        sizes = np.array([(items[i].height, items[i].width) for i in owners], dtype=np.float64)
        visible = surely_visible(polygons, sizes[:, 0], sizes[:, 1])
        sound[np.array(owners)[~visible]] = False
    return sound
