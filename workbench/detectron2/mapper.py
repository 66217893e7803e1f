"""The workbench's mappers for detectron2's loaders."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.common.config import CfgNode

from workbench.data.mapper import build_mapper
from workbench.detectron2.config import workbench_config
from workbench.models.postprocess import boxes_of_masks


class WorkbenchMapper:
    """The mapper that INPUT.DATASET_MAPPER_NAME names, for ``build_detection_train_loader`` and its sibling for tests.

    ``mapper(dataset_dict)`` returns ``image`` (3, H, W) uint8 RGB, the original ``height`` and ``width``, ``file_name``
    and ``image_id``; in training also ``instances`` with ``gt_classes``, ``gt_masks`` (``BitMasks``), ``gt_boxes``, for
    each subcategory ``gt_<name>`` (N,) int64, -1 unlabelled, and ``annotation_ids``; and ``seed``, drawn from torch's
    global generator, on which all that is random in the image and its losses depends. Dicts of detectron2's own
    datasets are taken too; they have no subcategories.

    Args:
        cfg: detectron2's config, with the workbench's keys.
        is_train: whether images are augmented and get their instances.
    """

    def __init__(self, cfg: CfgNode, is_train: bool):
        self.is_train, self.mapper = is_train, build_mapper(workbench_config(cfg, model=False), is_train)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        if not self.is_train:
            return self.mapper(dataset_dict)
        if "subcategories" not in dataset_dict:
            unset = {"iscrowd": 0, "subcategories": {}}
            annotations = [{**unset, "id": k, **a} for k, a in enumerate(dataset_dict["annotations"])]
            dataset_dict = {**dataset_dict, "subcategories": (), "annotations": annotations}
        mapped = self.mapper(dataset_dict, int(torch.empty((), dtype=torch.int64).random_()))
        return {**mapped, "instances": target_instances(mapped.pop("targets"))}


def target_instances(targets: dict[str, Any]) -> Instances:
    """Return the ``targets`` of a batched input as ground truth of detectron2, see :class:`WorkbenchMapper`."""
    masks = targets["masks"]
    instances = Instances(
        tuple(masks.shape[-2:]),
        gt_classes=targets["labels"],
        gt_masks=BitMasks(masks),
        gt_boxes=Boxes(boxes_of_masks(masks)),
        annotation_ids=targets["annotation_ids"],
    )
    for name, values in targets["subcategories"].items():
        instances.set(f"gt_{name}", values)
    return instances
