"""Finding every fault of datasets at once, and summing them up, before a training is started on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycocotools import mask as coco_mask

from workbench.data.coco import CocoDataset, Reading, common_vocabulary, open_dataset
from workbench.data.crowds import brush_masks
from workbench.data.faults import Fault, broken, mended, report
from workbench.data.image_files import ImageRules, describe_depth
from workbench.data.masks import encode_segmentation, mask_areas, segmentation_problem
from workbench.data.summary import cautions, describe_needs, shared_images, summarize
from workbench.data.vocabulary import Vocabulary, read_attributes
from workbench.errors import WorkbenchError, counted, shown
from workbench.files import write_json

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode


@dataclass
class Validation:
    """What there is to say of one dataset.

    ``dataset`` is the part of it that is not broken. ``conflicts`` stop a training on the datasets before it that is
    evaluated on it; ``cautions`` stop nothing. ``needs`` say what training on it takes.
    """

    reading: Reading
    dataset: CocoDataset
    cautions: list[str]
    conflicts: list[str] = field(default_factory=list)
    depths: list[str] = field(default_factory=list)  # how deep images are scaled, and what they hold
    needs: list[str] = field(default_factory=list)

    @property
    def stops(self) -> bool:
        """Whether a training would stop at the dataset."""
        return bool(broken(self.faults) or self.conflicts)

    @property
    def faults(self) -> list[Fault]:
        return self.reading.faults

    def text(self, *, every_place: bool = False) -> str:
        """Return everything as lines of text; ``every_place`` gives each fault a line of its own."""
        path = self.reading.entry.annotations
        parts = [
            f"{path}: {report(self.faults, every_place=every_place)}{self.reading.remedy()}",
            f"{path}: {summarize(self.dataset, read_attributes(self.reading.content), self.reading.declared())}",
            *(f"  depth       {sentence}" for sentence in self.depths),
            *(f"  {sentence}" for sentence in self.needs),
            *(f"  caution: {sentence}" for sentence in self.cautions),
            *(f"  conflict: {sentence}" for sentence in self.conflicts),
        ]
        return "\n".join(parts)


def validate(
    names: Sequence[str | Path],
    *,
    root: Path | str = "data",
    cfg: CfgNode | None = None,
    check_images: bool = True,
    crowds_are_objects: bool = False,
    held_out: Sequence[str | Path] = (),
) -> list[Validation]:
    """Read datasets as training does and say what is wrong with them and what they hold.

    Args:
        names: datasets by catalog name or path; with ``held_out``, those of a training.
        root: where named datasets lie.
        cfg: a config, whose input size and queries are compared with the objects.
        check_images: whether image files are opened, their sizes compared, and those that may be damaged decoded.
        crowds_are_objects: whether ``iscrowd`` 1 is read as 0.
        held_out: datasets that the training is evaluated on; they are compared with ``names``.

    Raises:
        WorkbenchError: a file cannot be read as a COCO dataset at all.
    """
    train: list[Reading] = []
    known = None
    for name in names:
        train.append(open_dataset(name, root, known=known, crowds_are_objects=crowds_are_objects))
        known = train[0].found.categories
    subcategories = ("all",) if cfg is None else tuple(cfg.MODEL.SUBCATEGORIES)
    conflicts = []
    try:
        shared = common_vocabulary(train, subcategories)
    except WorkbenchError as error:
        shared = common_vocabulary(train[:1])
        conflicts.append(str(error))
    rules = ImageRules() if cfg is None else ImageRules.from_config(cfg)
    options = {"check_images": check_images, "decode_images": check_images, "rules": rules}
    validations = [_validate(reading, shared, cfg, options) for reading in train]
    validations[-1].conflicts += [each for each in conflicts if each not in validations[-1].conflicts]
    for item in validations:
        item.needs = describe_needs(item.dataset)
    datasets = [item.dataset for item in validations]
    for name in held_out:
        reading = open_dataset(name, root, known=shared.categories, crowds_are_objects=crowds_are_objects)
        item = _validate(reading, shared, cfg, options)
        item.cautions += shared_images(datasets, item.dataset)
        validations.append(item)
    return validations


def _validate(reading: Reading, vocabulary: Vocabulary, cfg: CfgNode | None, options: dict[str, Any]) -> Validation:
    """Check a dataset against ``vocabulary``, or where its classes do not fit, which is a conflict, its own."""
    conflicts = []
    try:
        reading.check(vocabulary, **options)
    except WorkbenchError as error:
        conflicts.append(str(error))
        reading.check(common_vocabulary([reading]), **options)
    dataset = reading.dataset()
    sentences = [*brush_masks(reading.content), *(cautions(dataset, cfg) if dataset.dicts else [])]
    files = [item["file_name"] for item in dataset.dicts] if options["check_images"] else []
    return Validation(reading, dataset, sentences, conflicts, describe_depth(files, options["rules"]))


def write_mended(reading: Reading, path: Path) -> str:
    """Write the mended content of a dataset as a COCO JSON, with the boxes and areas of its masks where it has none.

    Returns:
        a sentence that says what was written, and how it is used.

    Raises:
        WorkbenchError: ``path`` is the dataset's own file.
        OSError: the disk is full or not writable.
    """
    entry = reading.entry
    if path.resolve() == entry.annotations.resolve():
        raise WorkbenchError(f"--fix would overwrite {path}; name another file.")
    if path.suffix != ".json":
        raise WorkbenchError(f"--fix takes the name of a .json file, not {shown(str(path))}.")
    _measure(reading.content)
    write_json(path, reading.content)
    stopping = broken(reading.faults)
    left = sum(fault.image_id is not None or fault.annotation_id is not None for fault in stopping)
    remaining = f", with {counted(left, 'broken fault')} still in it" if left else ""
    images = entry.images if left == len(stopping) else "IMAGES"  # the fault without an id: no folder was found
    return f"Wrote {path}, {counted(len(mended(reading.faults)), 'fault')} mended{remaining}; use it as {path}@{images}"


def _measure(content: dict) -> None:
    """Give each annotation whose mask can be drawn a ``bbox`` and an ``area`` where it has none."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"] if isinstance(i, dict) and i.keys() >= _SIZE}
    for annotation in content["annotations"]:
        if not isinstance(annotation, dict) or ("bbox" in annotation and "area" in annotation):
            continue
        size, segmentation = sizes.get(annotation.get("image_id")), annotation.get("segmentation")
        if size is None or segmentation_problem(segmentation, *size):
            continue
        rle = encode_segmentation(segmentation, *size)
        annotation.setdefault("bbox", coco_mask.toBbox(rle).tolist())
        annotation.setdefault("area", int(mask_areas([rle])[0]))


_SIZE = {"id", "height", "width"}
