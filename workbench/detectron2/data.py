"""The workbench's datasets in detectron2's catalogs, and its mappers in detectron2's loaders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.common.config import CfgNode

from workbench.config import get_cfg
from workbench.data.catalog import get_entry, known_names
from workbench.data.coco import CocoDataset, dataset_readers
from workbench.data.mapper import build_mapper
from workbench.data.vocabulary import Vocabulary
from workbench.detectron2.config import workbench_config
from workbench.errors import WorkbenchError
from workbench.models.postprocess import boxes_of_masks
from workbench.visualization.drawing import PALETTE

_readers: dict[str, Callable[[], CocoDataset]] = {}  # of the names that are the workbench's


def register_datasets(cfg: CfgNode | None = None, vocabulary: Vocabulary | None = None) -> None:
    """Register the datasets, names and paths, of DATASETS.TRAIN, VAL and TEST of the workbench's config ``cfg``.

    A name that both know becomes the workbench's; one that only detectron2 knows is left to it. Without ``cfg``, all
    names are registered that the workbench knows and detectron2 does not. The classes are those of ``vocabulary``, or
    else of the datasets to train on. WorkbenchError for a name that neither knows and for faults in the training data.
    """
    if cfg is None:
        cfg, own = get_cfg(), [name for name in known_names() if name not in DatasetCatalog]
    else:
        names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST))
        own = [name for name in names if is_own(name, cfg.DATASETS.ROOT)]
    for name, read in dataset_readers(cfg, own, vocabulary).items():
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(name, None)
        DatasetCatalog.register(name, partial(_read, name))
        _readers[name] = read


def is_own(name: str, root: str) -> bool:
    """Return whether a dataset is the workbench's, or else detectron2's; WorkbenchError where neither knows it."""
    try:
        get_entry(name, root)
    except WorkbenchError:
        if name not in DatasetCatalog:
            raise
        return name in _readers
    return True


def loaded_dataset(name: str) -> CocoDataset | None:
    """Return the workbench's dataset that ``name`` is registered for; None where the name is detectron2's own."""
    return _readers[name]() if name in _readers else None


def vocabulary_of(cfg: CfgNode) -> Vocabulary:
    """Return the classes of the first of DATASETS.TRAIN, or else of DATASETS.TEST.

    Those of detectron2's own datasets are the ``thing_classes`` and ``subcategory_classes`` of their metadata;
    WorkbenchError where there is no dataset, or it has no ``thing_classes``.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if not names:
        raise WorkbenchError("the model's classes are those of a dataset: name one in DATASETS.TRAIN or DATASETS.TEST")
    if (dataset := loaded_dataset(names[0])) is not None:
        return dataset.vocabulary
    metadata = MetadataCatalog.get(names[0])
    if not hasattr(metadata, "thing_classes") and names[0] in DatasetCatalog:
        DatasetCatalog.get(names[0])  # which sets the metadata, as detectron2's own datasets do too
    if not hasattr(metadata, "thing_classes"):
        raise WorkbenchError(f"dataset {names[0]!r} has no thing_classes in detectron2's MetadataCatalog")
    classes = tuple(metadata.thing_classes)
    labels = metadata.get("thing_dataset_id_to_contiguous_id") or {k: k for k in range(len(classes))}
    subcategories = {name: tuple(values) for name, values in metadata.get("subcategory_classes", {}).items()}
    return Vocabulary(tuple(sorted(labels, key=labels.get)), classes, subcategories)


def _read(name: str) -> list[dict]:
    """Return a dataset's dicts as detectron2's own mapper takes them, and set its metadata."""
    dataset = _readers[name]()
    vocabulary, entry = dataset.vocabulary, dataset.entries[0]
    MetadataCatalog.get(name).set(
        thing_classes=list(vocabulary.categories),
        thing_colors=[PALETTE[k % len(PALETTE)] for k in range(vocabulary.num_classes)],
        thing_dataset_id_to_contiguous_id={number: k for k, number in enumerate(vocabulary.category_ids)},
        subcategory_classes={subcategory: list(values) for subcategory, values in vocabulary.subcategories.items()},
        json_file=str(entry.annotations),
        image_root=str(entry.images),
        evaluator_type="coco",
    )
    return dataset.plain_dicts()


class WorkbenchMapper:
    """The mapper that INPUT.DATASET_MAPPER_NAME names, for ``build_detection_train_loader`` and its sibling for tests.

    In training it returns ``instances`` for ``targets``: ``gt_classes``, ``gt_masks`` (``BitMasks``), ``gt_boxes``,
    ``annotation_ids`` and, for each subcategory, ``gt_<name>`` (N,) int64, -1 unlabelled. All that is random follows
    from a seed of torch's global generator. Dicts of detectron2's own datasets, without subcategories, are taken too.
    """

    def __init__(self, cfg: CfgNode, is_train: bool):
        self.is_train, self.mapper = is_train, build_mapper(workbench_config(cfg, model=False), is_train)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        if not self.is_train:
            return self.mapper(dataset_dict)
        mapped = self.mapper(dataset_dict, int(torch.empty((), dtype=torch.int64).random_()))
        mapped["instances"] = target_instances(mapped.pop("targets"))
        return mapped


def target_instances(targets: dict[str, Any]) -> Instances:
    """Return the ``targets`` of a batched input as ground truth of detectron2."""
    masks, subcategories = targets["masks"], {f"gt_{name}": k for name, k in targets["subcategories"].items()}
    fields = {"gt_classes": targets["labels"], "annotation_ids": targets["annotation_ids"], **subcategories}
    return Instances(tuple(masks.shape[-2:]), gt_masks=BitMasks(masks), gt_boxes=Boxes(boxes_of_masks(masks)), **fields)
