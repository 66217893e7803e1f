"""Datasets by name or by path."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from workbench.data.reading import image_path, refuse_other_file
from workbench.errors import WorkbenchError, nearest
from workbench.yaml_files import read_yaml

CATALOG_FILE = "catalog.yaml"


@dataclass(frozen=True)
class DatasetEntry:
    """Where a dataset lies: its COCO instances JSON and the folder its file names are relative to.

    The JSON may be of COCO's panoptic form, or a folder of label maps (:mod:`workbench.data.segments`). ``images`` is
    None where the folder is to be looked for near the JSON, see :func:`find_images`. ``label_maps`` is the folder of
    PNG files that semantic predictions are compared with, where it is there.
    """

    name: str
    annotations: Path
    images: Path | None
    label_maps: Path | None = None


@dataclass(frozen=True)
class _Place:
    """An entry of the catalog; a folder may be called by a number, such as 2017."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "coerce_numbers_to_str": True}
    annotations: str
    images: str


def _builtin() -> dict[str, tuple[str, ...]]:
    """Usual places of known datasets below the data folder, as (annotations, images) and perhaps label maps."""
    places: dict[str, tuple[str, ...]] = {}
    for split in ("train", "val", "test"):
        for name in ("shapes", "shapes_crowded"):
            places[f"{name}_{split}"] = (f"{name}/annotations/{split}.json", f"{name}/{split}")
    for year in (2014, 2017):
        for split in ("train", "val"):
            places[f"coco_{year}_{split}"] = (
                f"coco/annotations/instances_{split}{year}.json",
                f"coco/{split}{year}",
            )
    for split in ("train2017", "val2017"):
        panoptic = (f"coco/annotations/panoptic_{split}.json", f"coco/{split}", f"coco/panoptic_semseg_{split}")
        for suffix in ("panoptic", "panoptic_with_sem_seg"):
            places[f"coco_2017_{split[:-4]}_{suffix}"] = panoptic
    ade20k = "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
        images, label_maps = f"{ade20k}/images/{folder}", f"{ade20k}/annotations_detectron2/{folder}"
        places[f"ade20k_instance_{split}"] = (f"{ade20k}/ade20k_instance_{split}.json", images)
        places[f"ade20k_panoptic_{split}"] = (f"{ade20k}/ade20k_panoptic_{split}.json", images, label_maps)
        places[f"ade20k_sem_seg_{split}"] = (label_maps, images)
    return places


_BUILTIN = _builtin()
_REGISTERED: dict[str, DatasetEntry] = {}


def register(name: str, annotations: Path | str, images: Path | str) -> DatasetEntry:
    """Make a dataset known by name for this process; a later call with the same name replaces it."""
    entry = DatasetEntry(name, Path(annotations), Path(images))
    _REGISTERED[name] = entry
    return entry


def known_names(root: Path | str = "data") -> list[str]:
    """All names :func:`get_entry` knows, sorted; whether their files are there is not looked at."""
    return sorted({*_REGISTERED, *_read_catalog(_data_folder(root)), *_BUILTIN})


def _data_folder(root: Path | str) -> Path:
    """Return ``root``; where that is relative and not here, the one in the checkout that this package is part of."""
    here, checkout = Path(root), Path(__file__).parents[2]
    return checkout / here if not here.exists() and (checkout / here).is_dir() else here


def get_entry(name_or_path: str | Path, root: Path | str = "data") -> DatasetEntry:
    """Return the dataset of that name, or at that path. No dataset file is read, but a file of another format is named.

    A name is looked up among the registered ones, then in ``<root>/catalog.yaml``, then among the built-in places below
    ``root``; a ``root`` that is not in the working directory is that of the checkout. A path ends in ``.json``, and may
    be followed by ``@`` and the folder of its images (``labels.json@pictures``). WorkbenchError for an unknown name,
    with the nearest known one.
    """
    text, root = str(name_or_path), _data_folder(root)
    annotations, at, images = text.rpartition("@")
    if at and annotations.endswith(".json"):
        return DatasetEntry(Path(annotations).stem, Path(annotations), Path(images))
    if text.endswith(".json"):
        return DatasetEntry(Path(text).stem, Path(text), None)
    if text in _REGISTERED:
        return _REGISTERED[text]
    catalog = _read_catalog(root)
    if text in catalog:
        return catalog[text]
    if text in _BUILTIN:
        return DatasetEntry(text, *(root / place for place in _BUILTIN[text]))
    if Path(text).is_dir():
        raise WorkbenchError(
            f"{text} is a folder; a dataset is the path of its COCO JSON. `workbench import {text} OUT` reads "
            "folders of other formats, such as LabelMe, YOLO and Pascal VOC."
        )
    if Path(text).is_file():
        refuse_other_file(text)
    raise WorkbenchError(
        f"No dataset is called {text!r}{nearest(text, known_names(root))}. A dataset of your own is the path of its "
        f"JSON, or a line '{text}: {{annotations: labels.json, images: pictures}}' in {root / CATALOG_FILE}."
    )


def _read_catalog(root: Path) -> dict[str, DatasetEntry]:
    path = root / CATALOG_FILE
    if not os.path.exists(path):
        return {}
    from workbench.typed_files import Text, check_type  # a quarter of a second, which few commands need

    title = f"The catalog {path}"
    content = read_yaml(path, title)
    places = check_type(dict[Text | int, _Place], {} if content is None else content, title)
    return {
        str(name): DatasetEntry(str(name), root / place.annotations, root / place.images)
        for name, place in places.items()
    }


def find_images(annotations: Path, content: dict, without: Collection[Path] = ()) -> Path:
    """Return the folder, of the usual ones near a dataset file, that holds its first image, or where that is missing
    the next one that is not. ``content`` is what :func:`read_coco_json` returns for the file; folders of ``without``
    hold no images.

    WorkbenchError where no folder holds any of them.
    """
    names = [image.get("file_name") for image in content["images"] if isinstance(image, dict)]
    names = [name for name in names if isinstance(name, str)]
    here = annotations.absolute().parent
    stem = annotations.stem
    subset = stem.removeprefix("instances_").removeprefix("panoptic_")
    candidates = []
    for base in (here, here.parent):
        candidates += [base / "images", base / "images" / subset, base / stem, base / subset]
    candidates += [here, here.parent]
    candidates = [folder for folder in dict.fromkeys(candidates) if folder.is_dir() and folder not in without]
    if not names:  # no image to look for: an empty dataset is for validation to speak of
        return candidates[0]
    for name in names:
        for folder in candidates:
            path = image_path(folder, name)
            if path is not None and os.path.isfile(path):  # unlike Path, it takes names that no system allows
                return folder
    tried = ", ".join(map(str, candidates))
    raise WorkbenchError(
        f"The images of {annotations}, such as {names[0]!r}, are in none of the folders {tried}; "
        f"name the folder after an @, as in {annotations}@images."
    )
