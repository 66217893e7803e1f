"""From COCO instances files to dataset dicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from fvcore.common.config import CfgNode
from pycocotools import mask as coco_mask

from workbench.data.catalog import DatasetEntry, find_images, get_entry
from workbench.data.checking import check
from workbench.data.crowds import brush_masks, crowds_to_objects
from workbench.data.faults import DatasetError, Fault, broken, can_be_left_out, fault_lines, mended, report
from workbench.data.image_files import ImageRules
from workbench.data.masks import decode_mask, encode_mask, to_rle
from workbench.data.reading import collector_paused, image_path, is_integer, read_coco_json
from workbench.data.segments import open_content
from workbench.data.vocabulary import (
    Vocabulary,
    align_vocabulary,
    choose_subcategories,
    class_name,
    declared_subcategories,
    mend_categories,
    merge_vocabularies,
    read_vocabulary,
)
from workbench.errors import WorkbenchError, counted

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

    def plain_dicts(self) -> list[dict]:
        """Return ``dicts`` for readers that need each object's ``bbox``, and that know no uncompressed run lengths."""
        return [{**item, "annotations": [_plain(a, item) for a in item["annotations"]]} for item in self.dicts]

    @property
    def objects(self) -> int:
        """How many annotations are objects, crowds aside."""
        return sum(len(item["annotations"]) for item in self.dicts) - self.crowds

    @property
    def crowds(self) -> int:
        """How many annotations are crowds."""
        return sum(annotation["iscrowd"] for item in self.dicts for annotation in item["annotations"])

    def counted(self) -> str:
        """Return its size in words, such as ``100 images, 830 objects, 9 crowds``."""
        crowds = f", {counted(self.crowds, 'crowd')}" if self.crowds else ""
        return f"{counted(len(self), 'image')}, {counted(self.objects, 'object')}{crowds}"

    def left_out(self) -> str:
        """Return the end of a sentence on its size: how much is left out for faults, nothing where nothing is."""
        return f", {_left_out(self.skipped)} left out for faults" if self.skipped else ""


def _left_out(number: int) -> str:
    return counted(number, "annotation or image", "annotations and images")


@dataclass
class Reading:
    """A dataset file, read and mended: the one way that training, evaluation and validation read it.

    ``content`` is the file's, mended. ``found`` are its own class lists and ``vocabulary`` those it is read for, with
    its category ids. ``faults`` are those seen so far; the broken ones are still in ``content``.
    """

    entry: DatasetEntry
    content: dict
    found: Vocabulary
    vocabulary: Vocabulary
    faults: list[Fault]

    @collector_paused()
    def check(
        self,
        vocabulary: Vocabulary,
        *,
        check_images: bool = True,
        decode_images: bool = False,
        rules: ImageRules | None = None,
    ) -> None:
        """Check, and mend, each image and annotation; ``check_images`` opens each image file, as ``rules`` say, to
        compare its size, ``decode_images`` decodes it too.

        WorkbenchError where the file's classes do not fit ``vocabulary``; then nothing has been checked.
        """
        self.vocabulary = align_vocabulary(vocabulary, self.found, self.entry.annotations)
        if self.entry.images is None:
            images = self.entry.annotations.parent
            try:
                images = find_images(self.entry.annotations, self.content)
            except WorkbenchError as error:  # the annotations can be checked all the same
                if check_images:
                    self.faults.append(Fault("missing image", str(error)))
                check_images = False
            self.entry = replace(self.entry, images=images)
        options = {"check_images": check_images, "decode_images": check_images and decode_images, "rules": rules}
        self.faults += check(self.content, self.entry, self.vocabulary, **options)
        self.faults = [*_with_file_names(self.faults, self.content["images"])]

    def declared(self) -> Collection[str]:
        """Return the names of the subcategories that the file lists."""
        return declared_subcategories(self.content, self.entry.annotations) or ()

    def settle(self, skip_faults: bool) -> None:
        """Log what was mended and what is left out.

        Raises:
            DatasetError: there are broken faults, and ``skip_faults`` is False or nothing would be left.
        """
        path, stopping = self.entry.annotations, broken(self.faults)
        if stopping and not (skip_faults and can_be_left_out(stopping)):
            raise DatasetError(f"The dataset {path} has {report(stopping)}{self.remedy()}", stopping)
        for line in fault_lines(mended(self.faults)):
            _warn_once(f"{path}, mended: {line.strip()}")
        for sentence in brush_masks(self.content):
            _warn_once(f"{path}: {sentence}")
        if stopping:
            images, annotations = _sound(self.content, stopping)
            count = len(self.content["images"]) + len(self.content["annotations"]) - len(images) - len(annotations)
            _warn_once(f"{path}: {_left_out(count)} left out for {counted(len(stopping), 'fault')}")

    def sound_content(self) -> dict:
        """Return ``content`` without the images and annotations that are broken."""
        images, annotations = _sound(self.content, broken(self.faults))
        return {**self.content, "images": images, "annotations": annotations}

    @collector_paused()
    def dataset(self) -> CocoDataset:
        """Return what is not broken."""
        dicts, skipped = _to_dicts(self.content, self.entry, self.vocabulary, broken(self.faults))
        return CocoDataset([self.entry], self.vocabulary, dicts, skipped)

    def remedy(self) -> str:
        """Return a line that says how to use the dataset without what is broken; nothing where no object would stay."""
        stopping = broken(self.faults)
        if not (stopping and can_be_left_out(stopping)):
            return ""
        rest = self.dataset()
        if not (rest.objects or rest.crowds):
            return ""
        kept = f"DATASETS.SKIP_FAULTS True leaves out what is broken and keeps {rest.counted()}"
        return f"\n  {kept}; `workbench init` writes it where needed."


def _with_file_names(faults: Iterable[Fault], images: Iterable) -> Iterator[Fault]:
    """Yield the faults, those of annotations with the file name of their image."""
    names = {i["id"]: i.get("file_name") for i in images if isinstance(i, dict) and is_integer(i.get("id"))}
    for fault in faults:
        name = names.get(fault.image_id) if fault.annotation_id is not None and not fault.file_name else None
        yield fault._replace(file_name=name) if isinstance(name, str) else fault


_warned: set[str] = set()


def _warn_once(sentence: str) -> None:
    """Log a warning. A notebook reads a dataset several times: where it was said, only log.txt gets it again."""
    repeated = sentence in _warned
    _warned.add(sentence)
    if not repeated or logger.hasHandlers():  # without handlers Python writes warnings to stderr
        logger.warning(sentence, extra={"only_in_file": repeated})


def open_dataset(
    name: str | Path,
    root: Path | str = "data",
    *,
    known: Collection[str] | None = None,
    used: Collection[int] = (),
    crowds_are_objects: bool = False,
) -> Reading:
    """Read a dataset's file and class lists, without checking what they hold; panoptic and semantic ones are converted.

    Args:
        name: catalog name or path.
        root: where named datasets lie.
        known: the names of the categories that the file is read for, where they are fixed.
        used: ids of categories that are kept, whether annotations have them or not.
        crowds_are_objects: whether ``iscrowd`` 1 is read as 0.

    Raises:
        WorkbenchError: the file is no COCO instances file, or its class lists are garbled.
    """
    entry, content = open_content(get_entry(name, root))
    faults = mend_categories(content, known, used)
    if crowds_are_objects:
        faults += crowds_to_objects(content["annotations"])
    found = read_vocabulary(content, entry.annotations)
    return Reading(entry, content, found, found, faults)


def common_vocabulary(readings: Sequence[Reading], subcategories: Sequence[str] = ("all",)) -> Vocabulary:
    """Return the class lists for training on datasets together, of their subcategories those named.

    WorkbenchError where their categories differ, or none has a subcategory that is named.
    """
    shared, declared = readings[0].found, set(readings[0].declared())
    for reading in readings[1:]:
        shared = merge_vocabularies(shared, reading.found, reading.entry.annotations)
        declared |= set(reading.declared())
    return choose_subcategories(shared, subcategories, declared)


def load_dataset(
    names: str | Path | Sequence[str | Path],
    *,
    root: Path | str = "data",
    vocabulary: Vocabulary | None = None,
    subcategories: Sequence[str] = ("all",),
    skip_faults: bool = False,
    check_images: bool = True,
    crowds_are_objects: bool = False,
    rules: ImageRules | None = None,
) -> CocoDataset:
    """Read datasets by catalog name or path.

    Args:
        names: one dataset or several, which are joined.
        root: where named datasets lie.
        vocabulary: a checkpoint's, which fixes the class lists and their order; without it they come from the files.
        subcategories: the names of those to keep, of the files' own.
        skip_faults: whether broken annotations, and broken images with all their annotations, are left out and counted.
        check_images: whether every image file is opened to compare its size.
        crowds_are_objects: whether ``iscrowd`` 1 is read as 0.
        rules: how image files are read.

    Raises:
        DatasetError: there are broken faults and ``skip_faults`` is False; the message is the report.
        WorkbenchError: a file cannot be read, class lists do not fit together, or no image is left.
    """
    names = [names] if isinstance(names, (str, Path)) else list(names)
    if not names:
        raise WorkbenchError("No dataset is named: DATASETS.TRAIN or DATASETS.TEST is empty.")
    readings: list[Reading] = []
    known = None if vocabulary is None else vocabulary.categories
    for name in names:
        readings.append(open_dataset(name, root, known=known, crowds_are_objects=crowds_are_objects))
        known = readings[0].found.categories if known is None else known
    shared = common_vocabulary(readings, subcategories) if vocabulary is None else vocabulary
    for reading in readings:
        reading.check(shared, check_images=check_images, rules=rules)
    dicts: list[dict] = []
    skipped = 0
    for reading in readings:
        reading.settle(skip_faults)
        part = reading.dataset()
        dicts += part.dicts
        skipped += part.skipped
    if not dicts:
        raise WorkbenchError(f"The dataset {', '.join(map(str, names))} has no image left to use.")
    return CocoDataset([reading.entry for reading in readings], readings[0].vocabulary, dicts, skipped)


def _to_dicts(
    content: dict, entry: DatasetEntry, vocabulary: Vocabulary, faults: list[Fault]
) -> tuple[list[dict], int]:
    """Dataset dicts of what has no fault, and how many annotations and images were left out."""
    images, annotations = _sound(content, faults)
    skipped = len(content["images"]) + len(content["annotations"]) - len(images) - len(annotations)
    labels = {number: label for label, number in enumerate(vocabulary.category_ids)}
    classes = {name: {c: k for k, c in enumerate(values)} for name, values in vocabulary.subcategories.items()}

    dicts: dict[int, dict] = {}
    for image in images:
        dicts[image["id"]] = {
            "file_name": image_path(entry.images, image["file_name"]),
            "name": image["file_name"],
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "subcategories": tuple(vocabulary.subcategories),
            "annotations": [],
        }
    for annotation in annotations:
        attributes = annotation.get("attributes") or {}
        subcategories = {}
        for name, numbers in classes.items():
            value = class_name(attributes.get(name))
            subcategories[name] = UNLABELLED if value is None else numbers[value]
        dicts[annotation["image_id"]]["annotations"].append(
            {
                "id": annotation["id"],
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


def _plain(annotation: dict, item: dict) -> dict:
    """Return an annotation of a dataset dict with a box, and run lengths compressed."""
    segmentation = annotation["segmentation"]
    if annotation["bbox"] is None or (isinstance(segmentation, dict) and isinstance(segmentation["counts"], list)):
        rle = to_rle(segmentation, item["height"], item["width"])
        segmentation = segmentation if isinstance(segmentation, list) else rle
        annotation = {**annotation, "bbox": coco_mask.toBbox(rle).tolist(), "segmentation": segmentation}
    return annotation


def _sound(content: dict, faults: list[Fault]) -> tuple[list[dict], list[dict]]:
    """Return the images, and the annotations on them, that have no fault."""
    bad_annotations = {fault.annotation_id for fault in faults} - {None}
    bad_images = {fault.image_id for fault in faults if fault.annotation_id is None} - {None}
    images = [i for i in content["images"] if _has_id(i) and i["id"] not in bad_images]
    known = {image["id"] for image in images}
    annotations = [
        a for a in content["annotations"] if _has_id(a) and a["id"] not in bad_annotations and a["image_id"] in known
    ]
    return images, annotations


def _has_id(record: object) -> bool:
    return isinstance(record, dict) and is_integer(record.get("id"))


def load_data(
    cfg: CfgNode, names: Sequence[str | Path], vocabulary: Vocabulary | None, for_training: bool = False
) -> CocoDataset:
    """Read the datasets ``names`` as a config says; with ``vocabulary`` they must have its classes.

    WorkbenchError as :func:`load_dataset`, and ``for_training`` where there is no object to train on.
    """
    dataset = load_dataset(
        names,
        root=cfg.DATASETS.ROOT,
        vocabulary=vocabulary,
        subcategories=tuple(cfg.MODEL.SUBCATEGORIES),
        skip_faults=cfg.DATASETS.SKIP_FAULTS,
        crowds_are_objects=cfg.DATASETS.CROWDS_ARE_OBJECTS,
        rules=ImageRules.from_config(cfg),
    )
    if for_training:
        if not dataset.objects:
            left_out = dataset.left_out()
            remedy = " If the crowds are single objects, set DATASETS.CROWDS_ARE_OBJECTS True." * bool(dataset.crowds)
            where = ", ".join(map(str, names))
            raise WorkbenchError(f"There is no object to train on in {where}: {dataset.counted()}{left_out}.{remedy}")
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            with_objects = [d for d in dataset.dicts if any(not a["iscrowd"] for a in d["annotations"])]
            dataset = replace(dataset, dicts=with_objects)
    return dataset


def dataset_readers(
    cfg: CfgNode, names: Sequence[str], vocabulary: Vocabulary | None = None
) -> dict[str, Callable[[], CocoDataset]]:
    """Return for each of ``names`` a function that reads it once, as a config says, see :func:`load_data`.

    All are read for the classes of ``vocabulary``, or else of those among them that DATASETS.TRAIN names, which are
    read and checked here; without any of these each has its own classes.
    """
    readers = {}
    train, used = [name for name in cfg.DATASETS.TRAIN if name in names], (*cfg.DATASETS.VAL, *cfg.DATASETS.TEST)
    if vocabulary is None and train:
        joined = load_data(cfg, train, None, for_training=True)
        vocabulary = joined.vocabulary
        if len(train) == 1 and train[0] not in used:  # only training may leave out its images without objects
            readers[train[0]] = lambda: joined
    return {name: cache(partial(load_data, cfg, [name], vocabulary)) for name in names} | readers
