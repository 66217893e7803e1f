"""From COCO instances files to dataset dicts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fvcore.common.config import CfgNode

from workbench.data.catalog import DatasetEntry, find_images, get_entry
from workbench.data.masks import decode_mask, encode_mask
from workbench.data.reading import image_path, is_integer, read_coco_json
from workbench.data.validate import DatasetError, Fault, find_faults, report
from workbench.data.vocabulary import (
    Vocabulary,
    align_vocabulary,
    choose_subcategories,
    class_name,
    merge_vocabularies,
    read_vocabulary,
)
from workbench.errors import WorkbenchError

__all__ = [
    "CocoDataset",
    "DatasetError",
    "Vocabulary",
    "decode_mask",
    "encode_mask",
    "load_dataset",
    "read_coco_json",
]

logger = logging.getLogger(__name__)

XYWH_ABS = 1  # detectron2's BoxMode for COCO boxes
UNLABELLED = -1
_FAULTS_SHOWN = 50


@dataclass
class CocoDataset:
    """One or several datasets, read.

    ``dicts`` are detectron2's dataset dicts: ``file_name`` (a path), ``name`` (as the dataset file writes it),
    ``height``, ``width``, ``image_id``, ``subcategories`` (the names that every annotation holds) and ``annotations``,
    each ``{"id", "category_id" (0..K-1), "area" and "bbox" (the file's own, or None), "bbox_mode", "iscrowd",
    "segmentation", "subcategories" {name: class number, -1 unlabelled}}``. ``skipped`` counts the annotations and
    images left out for their faults.
    """

    entries: list[DatasetEntry]
    vocabulary: Vocabulary
    dicts: list[dict]
    skipped: int

    def __len__(self) -> int:
        return len(self.dicts)


def load_dataset(
    names: str | Path | Sequence[str | Path],
    *,
    root: Path | str = "data",
    vocabulary: Vocabulary | None = None,
    subcategories: Sequence[str] = ("all",),
    skip_faults: bool = False,
    filter_empty: bool = False,
    check_images: bool = True,
) -> CocoDataset:
    """Read datasets by catalog name or path.

    ``vocabulary`` (a checkpoint's) fixes the class lists and their order; without it they come from the
    files, cut to ``subcategories``. ``check_images`` opens every image file to compare its size.
    ``filter_empty`` leaves out images without an object that is no crowd.

    Faults raise DatasetError with the report, unless ``skip_faults``: then broken annotations, and broken
    images with all their annotations, are left out and counted. WorkbenchError for files that cannot be
    read and for class lists that do not fit together.
    """
    names = [names] if isinstance(names, (str, Path)) else list(names)
    if not names:
        raise WorkbenchError("No dataset is named: DATASETS.TRAIN or DATASETS.TEST is empty.")
    entries = [get_entry(name, root) for name in names]
    contents = [read_coco_json(entry.annotations) for entry in entries]
    entries = [
        replace(entry, images=find_images(entry.annotations, content)) if entry.images is None else entry
        for entry, content in zip(entries, contents, strict=True)
    ]
    found = [read_vocabulary(content, entry.annotations) for content, entry in zip(contents, entries, strict=True)]
    shared = vocabulary
    if shared is None:
        shared = choose_subcategories(found[0], subcategories)
        for other, entry in zip(found[1:], entries[1:], strict=True):
            shared = merge_vocabularies(shared, choose_subcategories(other, subcategories), entry.annotations)
    aligned = [align_vocabulary(shared, each, entry.annotations) for each, entry in zip(found, entries, strict=True)]

    dicts: list[dict] = []
    skipped = 0
    for entry, content, words in zip(entries, contents, aligned, strict=True):
        faults = find_faults(content, entry, words, check_images=check_images)
        if faults and not (skip_faults and all(map(_can_be_skipped, faults))):
            raise DatasetError(f"The dataset {entry.annotations} has {report(faults, _FAULTS_SHOWN)}", faults)
        kept, dropped = _to_dicts(content, entry, words, faults)
        if dropped:
            message = "%s: %d annotations and images are left out for %d faults"
            logger.warning(message, entry.annotations, dropped, len(faults))
        dicts += kept
        skipped += dropped
    if filter_empty:
        dicts = [d for d in dicts if any(not a["iscrowd"] for a in d["annotations"])]
    if not dicts:
        raise WorkbenchError(f"The dataset {', '.join(map(str, names))} has no image left to use.")
    return CocoDataset(entries, aligned[0], dicts, skipped)


def _can_be_skipped(fault: Fault) -> bool:
    return fault.kind != "no images"


def _to_dicts(
    content: dict, entry: DatasetEntry, vocabulary: Vocabulary, faults: list[Fault]
) -> tuple[list[dict], int]:
    """Dataset dicts of what has no fault, and how many annotations and images were left out."""
    bad_annotations = {fault.annotation_id for fault in faults} - {None}
    bad_images = {fault.image_id for fault in faults if fault.annotation_id is None} - {None}
    labels = {number: label for label, number in enumerate(vocabulary.category_ids)}
    classes = {name: {c: k for k, c in enumerate(values)} for name, values in vocabulary.subcategories.items()}

    dicts: dict[int, dict] = {}
    skipped = 0
    for image in content["images"]:
        number = image.get("id") if isinstance(image, dict) else None
        if not is_integer(number) or number in bad_images:
            skipped += 1
            continue
        dicts[number] = {
            "file_name": image_path(entry.images, image["file_name"]),
            "name": image["file_name"],
            "height": image["height"],
            "width": image["width"],
            "image_id": number,
            "subcategories": tuple(vocabulary.subcategories),
            "annotations": [],
        }
    for annotation in content["annotations"]:
        number = annotation.get("id") if isinstance(annotation, dict) else None
        if not is_integer(number) or number in bad_annotations or annotation["image_id"] not in dicts:
            skipped += 1
            continue
        attributes = annotation.get("attributes") or {}
        subcategories = {}
        for name, numbers in classes.items():
            value = class_name(attributes.get(name))
            subcategories[name] = UNLABELLED if value is None else numbers[value]
        dicts[annotation["image_id"]]["annotations"].append(
            {
                "id": number,
                "category_id": labels[annotation["category_id"]],
                "area": annotation.get("area"),
                "bbox": annotation.get("bbox"),
                "bbox_mode": XYWH_ABS,
                "iscrowd": int(annotation.get("iscrowd", 0)),
                "segmentation": annotation["segmentation"],
                "subcategories": subcategories,
            }
        )
    return list(dicts.values()), skipped


def load_data(
    cfg: CfgNode, names: Sequence[str | Path], vocabulary: Vocabulary | None, for_training: bool = False
) -> CocoDataset:
    """Read the datasets ``names`` as a config says; with ``vocabulary`` they must have its classes."""
    return load_dataset(
        names,
        root=cfg.DATASETS.ROOT,
        vocabulary=vocabulary,
        subcategories=tuple(cfg.MODEL.SUBCATEGORIES),
        skip_faults=cfg.DATASETS.SKIP_FAULTS,
        filter_empty=for_training and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )
