"""Panoptic and semantic annotations, whose masks lie in PNG files, as COCO annotations: one for each segment."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from workbench.console import follow
from workbench.data.catalog import DatasetEntry, find_images
from workbench.data.image_files import ERRORS, ImageRules, open_image
from workbench.data.masks import encode_labels, mask_areas
from workbench.data.reading import image_path, is_integer, read_coco_json
from workbench.errors import WorkbenchError, errors_as, reason_of
from workbench.files import cache_folder, file_name, write_json

UNLABELLED = 255  # in label maps
_VERSION = 1  # of what is written into the cache
_NAMES, _ADE20K_NAMES = "classes.txt", "objectInfo150.txt"


def open_content(entry: DatasetEntry) -> tuple[DatasetEntry, dict]:
    """Return the content of a dataset in the form of a COCO instances file, and the entry of that file.

    A COCO panoptic file becomes annotations with an RLE for each segment, a folder of label maps one for each class in
    an image. The result is written into the cache once and read from there afterwards.

    Raises:
        WorkbenchError: a file cannot be read, does not fit another, or is missing.
    """
    path = entry.annotations
    place = _place(path)
    if place.is_file():
        content = read_coco_json(place)
    else:
        content = _of_label_maps(entry) if path.is_dir() else read_coco_json(path)
        if not path.is_dir():
            if not any(isinstance(item, dict) and "segments_info" in item for item in content["annotations"][:1]):
                return entry, content
            content = _of_panoptic_file(path, content)
        for number, annotation in enumerate(content["annotations"], start=1):
            annotation["id"] = number
        with errors_as(f"the segments of {path} cannot be kept in {place}", OSError):
            write_json(place, content)
    images = entry.images or find_images(path, content, _png_folders(path))
    return replace(entry, annotations=place, images=images), content


def _place(path: Path) -> Path:
    """Return where converted annotations are kept: another place once the file, or the folder, was changed."""
    try:
        facts = str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns
    except (OSError, ValueError):  # a ValueError: the path holds a null character
        facts = (str(path),)
    digest = hashlib.sha256(repr((_VERSION, *facts)).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return cache_folder() / "datasets" / f"{file_name(path.stem)}_{digest}.json"


def _of_panoptic_file(path: Path, content: dict) -> dict:
    """Return a COCO panoptic file with an annotation for each segment; image ids that are no numbers get numbers."""
    folders = _png_folders(path)
    folder = next((each for each in folders if each.is_dir()), None)
    if folder is None:
        raise WorkbenchError(f"The segments of {path} are PNG files in {folders[0]} or {folders[1]}; neither is there.")
    images = [
        image for image in content["images"] if isinstance(image, dict) and isinstance(image.get("id"), (int, str))
    ]
    ids = list(dict.fromkeys(image["id"] for image in images))
    numbers = {key: key if all(map(is_integer, ids)) else number for number, key in enumerate(ids, start=1)}
    pictures = [_picture(path, folder, number, item) for number, item in enumerate(content["annotations"])]
    annotations: list[dict] = []
    with ThreadPoolExecutor() as pool:
        encoded = pool.map(partial(_encoded, colours=True), [picture[1] for picture in pictures])
        shown = follow(pictures, f"segments of {path.name}", "image")
        for (image_id, _, segments), rles in zip(shown, encoded, strict=True):
            for segment in segments:
                category, crowd = segment["category_id"], segment.get("iscrowd", 0)
                annotations.append(_annotation(numbers.get(image_id), category, rles.get(segment["id"]), crowd))
    images = [{**image, "id": numbers[image["id"]]} for image in images]
    return {"images": images, "annotations": annotations, "categories": content["categories"]}


def _png_folders(path: Path) -> tuple[Path, Path]:
    """Return where the segments of a panoptic file may be: beside it, or as COCO has them."""
    here = path.absolute()
    return here.with_suffix(""), here.parent.parent / here.stem


def _picture(path: Path, folder: Path, number: int, item: Any) -> tuple[int | str, str, list[dict]]:
    """Return image id, path of the PNG and ``segments_info`` of an entry of a panoptic file's annotations."""
    item = item if isinstance(item, dict) else {}
    image_id, name, segments = (item.get(key) for key in ("image_id", "file_name", "segments_info"))
    sound = isinstance(image_id, (int, str)) and isinstance(name, str) and isinstance(segments, list)
    if not sound or not all(isinstance(s, dict) and is_integer(s.get("id")) and "category_id" in s for s in segments):
        raise WorkbenchError(
            f"Entry {number} of the annotations of {path} is not an image_id, a file_name and segments_info, a list of "
            "objects with id and category_id."
        )
    file = image_path(folder, name)
    if file is None:
        raise WorkbenchError(f"{path}: the PNG {name!r} of image {image_id} is outside of the folder {folder}.")
    return image_id, file, segments


def _of_label_maps(entry: DatasetEntry) -> dict:
    """Return a folder of label maps, PNG files named as the images, as a COCO instances file; all classes are stuff."""
    folder = entry.annotations
    names = _class_names(folder)
    files = sorted(folder.glob("*.png"))
    if not files:
        raise WorkbenchError(f"The folder {folder} has no PNG files, which label maps are.")
    pictures = {file.stem: file.name for file in entry.images.glob("*")} if entry.images else {}
    images, annotations = [], []
    with ThreadPoolExecutor() as pool:
        encoded = pool.map(_encoded, files)
        for number, (file, rles) in enumerate(
            zip(follow(files, f"label maps of {folder.name}", "image"), encoded, strict=True), start=1
        ):
            height, width = next(iter(rles.values()))["size"]
            name = pictures.get(file.stem, f"{file.stem}.jpg")
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            rles.pop(UNLABELLED, None)
            if rles and max(rles) >= len(names):
                raise WorkbenchError(f"The label map {file} holds {max(rles)}, and there are {len(names)} classes.")
            annotations += [_annotation(number, value, rle, 0) for value, rle in rles.items()]
    categories = [{"id": value, "name": name, "isthing": 0} for value, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _class_names(folder: Path) -> list[str]:
    """Return the names of the classes of label maps, from a file in their folder or in one of two above it."""
    places = [place / name for place in (folder, *folder.parents[:2]) for name in (_NAMES, _ADE20K_NAMES)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise WorkbenchError(
            f"The label maps in {folder} need the names of their classes: {_NAMES} in it or in a folder above it, one "
            f"a line in the order of the values, or ADE20K's {_ADE20K_NAMES}."
        )
    with errors_as(f"{file} cannot be read", OSError, UnicodeDecodeError):
        lines = file.read_text(encoding="utf-8").splitlines()
    if file.name == _NAMES:
        return [line.strip() for line in lines if line.strip()]
    synonyms = [line.rsplit("\t", 1)[-1].strip() for line in lines[1:] if line.strip()]
    first = [names.split(",")[0].split(";")[0].strip() for names in synonyms]
    return [name if first.count(name) == 1 else names for name, names in zip(first, synonyms, strict=True)]


def _encoded(file: str | Path, colours: bool = False) -> dict[int, dict]:
    """Return the RLE of each value of a PNG; with ``colours`` of red + 256 green + 256² blue."""
    return encode_labels(_read(file, colours))


def read_label_map(file: Path) -> np.ndarray:
    """Return the values of a label map, (H, W) uint8; WorkbenchError where it cannot be read."""
    return _read(file, colours=False)


def _read(file: str | Path, colours: bool) -> np.ndarray:
    try:
        with open_image(file, ImageRules()) as image:
            if colours:
                return np.asarray(image.convert("RGB"), dtype=np.int32) @ np.array([1, 256, 65536], dtype=np.int32)
            if image.mode not in ("L", "P"):
                raise ValueError("it is no image of one channel of 8 bits")
            return np.array(image)
    except ERRORS as error:
        raise WorkbenchError(f"The PNG {file} cannot be read: {reason_of(error)}.") from None


def _annotation(image_id: int | None, category: object, rle: dict | None, crowd: object) -> dict:
    annotation = {"image_id": image_id, "category_id": category, "iscrowd": crowd, "segmentation": rle}
    if rle is not None:
        annotation |= {"area": int(mask_areas([rle])[0]), "bbox": coco_mask.toBbox(rle).tolist()}
    return annotation
