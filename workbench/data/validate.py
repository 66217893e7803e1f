"""Finding every fault of a dataset at once, before it costs a training run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from PIL import Image, ImageOps

from workbench.data.catalog import DatasetEntry, find_images
from workbench.data.masks import covered_pixels, mask_areas, segmentation_problem, to_rle
from workbench.data.reading import image_path, is_integer, read_coco_json
from workbench.data.vocabulary import Vocabulary, class_name, read_vocabulary
from workbench.errors import WorkbenchError, is_number

# A polygon may leave the image by this many pixels: rounding puts points on, or just over, the border.
BORDER_TOLERANCE = 1.0
_MOST_PIXELS = 2**29  # a longer run does not fit COCO's run lengths, see masks.covered_pixels
_SWAPPED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a dataset. The ids are the dataset's own; None where there is none."""

    kind: str
    message: str
    image_id: int | None = None
    annotation_id: int | None = None


class DatasetError(WorkbenchError):
    """A dataset has faults; ``faults`` lists them all."""

    def __init__(self, message: str, faults: list[Fault]):
        super().__init__(message)
        self.faults = faults


def validate(entry: DatasetEntry, check_images: bool = True) -> list[Fault]:
    """Return every fault of a dataset, in the order of its file. ``check_images`` also decodes every image file.

    WorkbenchError where the file cannot be read as a COCO dataset at all.
    """
    content = read_coco_json(entry.annotations)
    vocabulary = read_vocabulary(content, entry.annotations)
    faults = []
    if entry.images is None:
        images = entry.annotations.parent
        if check_images:
            try:
                images = find_images(entry.annotations, content)
            except WorkbenchError as error:  # the annotations can be checked all the same
                faults.append(Fault("missing image", str(error)))
                check_images = False
        entry = replace(entry, images=images)
    return faults + find_faults(content, entry, vocabulary, check_images=check_images, decode_images=check_images)


def report(faults: Iterable[Fault], limit: int | None = None) -> str:
    """The faults as text: a line for how many there are of each kind, then a line for each (the first
    ``limit``)."""
    faults = list(faults)
    if not faults:
        return "No faults found."
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in faults).most_common())
    lines = [f"{len(faults)} fault{'s' * (len(faults) > 1)}: {kinds}"]
    for fault in faults[:limit]:
        where = "" if fault.image_id is None else f"image {fault.image_id}"
        if fault.annotation_id is not None:
            where += f"{', ' if where else ''}annotation {fault.annotation_id}"
        lines.append(f"  {where + ': ' if where else ''}{fault.message} [{fault.kind}]")
    if limit is not None and len(faults) > limit:
        lines.append(f"  ... and {len(faults) - limit} more; `workbench validate` lists them all")
    return "\n".join(lines)


def find_faults(
    content: dict,
    entry: DatasetEntry,
    vocabulary: Vocabulary,
    *,
    check_images: bool,
    decode_images: bool = False,
) -> list[Fault]:
    """The faults of ``content`` (from :func:`read_coco_json`) against the class lists ``vocabulary``.

    ``check_images`` opens each image file and compares its size, ``decode_images`` reads it to the end.
    """
    faults: list[Fault] = []
    images: dict[int, tuple[int, int]] = {}
    if not content["images"]:
        faults.append(Fault("no images", f"{entry.annotations} lists no images"))
    seen: set[int] = set()
    for position, image in enumerate(content["images"]):
        problem = _image_record_problem(image)
        if problem:
            faults.append(Fault("image record", f"entry {position} of images: {problem}", _id_of(image)))
            continue
        number = image["id"]
        if number in seen:
            faults.append(Fault("duplicate id", f"the image id appears again, for {image['file_name']}", number))
            continue
        seen.add(number)
        images[number] = (image["height"], image["width"])
        found = _file_problem(image, entry, check_images, decode_images)
        if found:
            faults.append(Fault(found[0], found[1], number))

    categories = set(vocabulary.category_ids)
    covered = _covered(content["annotations"])
    seen = set()
    for position, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict) or not is_integer(annotation.get("id")):
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            message = f"entry {position} of annotations has no whole number as id"
            faults.append(Fault("annotation record", message, image_id if is_integer(image_id) else None))
            continue
        number, image_id = annotation["id"], annotation.get("image_id")
        where = (image_id if is_integer(image_id) else None, number)
        if number in seen:
            faults.append(Fault("duplicate id", "the annotation id appears again", *where))
        seen.add(number)
        size = images.get(image_id) if is_integer(image_id) else None
        if size is None:
            message = f"its image_id {image_id!r} is not among the images that can be used"
            faults.append(Fault("unknown image", message, *where))
        for kind, message in _annotation_problems(annotation, size, categories, vocabulary, covered.get(position)):
            faults.append(Fault(kind, message, *where))
    return faults


def _id_of(record: object) -> int | None:
    number = record.get("id") if isinstance(record, dict) else None
    return number if is_integer(number) else None


def _image_record_problem(image: object) -> str | None:
    if not isinstance(image, dict):
        return "it is no object"
    if not is_integer(image.get("id")):
        return "it has no whole number as id"
    if not (isinstance(image.get("file_name"), str) and image["file_name"]):
        return "it has no file_name"
    for key in ("height", "width"):
        if not (is_integer(image.get(key)) and image[key] > 0):
            return f"its {key} is {image.get(key)!r}, not a whole number above 0"
    if image["height"] * image["width"] > _MOST_PIXELS:
        return f"its size {image['width']}x{image['height']} is beyond what an image can have"
    return None


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image after its EXIF orientation is applied."""
    width, height = image.size
    return (width, height) if image.getexif().get(_ORIENTATION) in _SWAPPED else (height, width)


def _file_problem(image: dict, entry: DatasetEntry, check: bool, decode: bool) -> tuple[str, str] | None:
    name = image["file_name"]
    path = image_path(entry.images, name)
    if path is None:
        return "file name", f"its file name {name!r} leads out of the folder {entry.images}"
    if not check:
        return None
    if not os.path.isfile(path):
        return "missing image", f"there is no file {path}"
    try:
        with Image.open(path) as opened:
            size = oriented_size(opened)
            stored = (opened.height, opened.width)
            if decode:
                ImageOps.exif_transpose(opened).load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return "unreadable image", f"{path} cannot be read: {error}"
    said = (image["height"], image["width"])
    if size != said:
        turned = " (its EXIF orientation turns it)" if stored == said else ""
        return "image size", (
            f"{name} is {size[1]}x{size[0]}{turned} but the dataset says {said[1]}x{said[0]} (width x height)"
        )
    return None


def _annotation_problems(
    annotation: dict,
    size: tuple[int, int] | None,
    categories: set[int],
    vocabulary: Vocabulary,
    covered: int | None,
) -> list[tuple[str, str]]:
    """Return (kind, message) of everything wrong with one annotation, on an image of ``size`` (height, width).

    ``covered`` is how many pixels its compressed RLE covers, where it has one.
    """
    problems = []
    category = annotation.get("category_id")
    if not is_integer(category) or category not in categories:
        problems.append(("unknown category", f"its category_id {category!r} is not among the categories"))
    if annotation.get("iscrowd", 0) not in (0, 1):
        problems.append(("annotation record", f"its iscrowd is {annotation['iscrowd']!r}, neither 0 nor 1"))
    bbox = annotation.get("bbox")
    if bbox is not None and not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))):
        problems.append(("not a number", f"its bbox {str(bbox)[:60]} is not four finite numbers"))
    problems += _attribute_problems(annotation.get("attributes"), vocabulary)
    if "segmentation" not in annotation:
        problems.append(("segmentation", "it has no segmentation"))
    elif size is not None:
        problem = _mask_problem(annotation["segmentation"], *size, covered)
        if problem:
            problems.append(problem)
    return problems


def _attribute_problems(attributes: object, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    if attributes is None:
        return []
    if not isinstance(attributes, dict):
        return [("attributes", f"its attributes are {type(attributes).__name__}, not name: value pairs")]
    problems = []
    for name, classes in vocabulary.subcategories.items():
        try:
            value = class_name(attributes.get(name))
        except TypeError as error:
            problems.append(("subcategory value", f"its {name} is wrong: {error}"))
            continue
        if value is not None and value not in classes:
            message = f"its {name} is {value!r}, which is not among {', '.join(classes)}"
            problems.append(("subcategory value", message))
    return problems


def _covered(annotations: list) -> dict[int, int]:
    """Return what :func:`covered_pixels` says of each compressed RLE, by position; one at a time takes ten times as
    long."""
    masks = {i: item.get("segmentation") for i, item in enumerate(annotations) if isinstance(item, dict)}
    counts = {i: mask.get("counts") for i, mask in masks.items() if isinstance(mask, dict)}
    texts = {i: text for i, text in counts.items() if isinstance(text, str)}
    return dict(zip(texts, covered_pixels(list(texts.values())).tolist(), strict=True))


def _mask_problem(segmentation: object, height: int, width: int, covered: int | None) -> tuple[str, str] | None:
    problem = segmentation_problem(segmentation, height, width, covered)
    if problem:
        return problem
    if isinstance(segmentation, list):
        for polygon in segmentation:
            xs, ys = polygon[::2], polygon[1::2]
            outside = max(-min(xs), -min(ys), max(xs) - width, max(ys) - height)
            if outside > BORDER_TOLERANCE:
                return "mask outside image", (
                    f"its polygon reaches {outside:g} pixels outside the {width}x{height} image"
                )
    if not mask_areas([to_rle(segmentation, height, width, checked=True)])[0]:
        return "empty mask", "its mask covers no pixel"
    return None
