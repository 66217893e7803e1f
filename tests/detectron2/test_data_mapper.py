"""The workbench's mapper in detectron2's loaders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

from workbench.data.mapper import LargeScaleJitter, TrainMapper
from workbench.detectron2 import add_workbench_config
from workbench.detectron2.data import WorkbenchMapper
from workbench.detectron2.results import WorkbenchEvaluator


def test_a_training_batch_is_what_the_workbench_s_mapper_makes(host_config: CfgNode) -> None:
    loader = build_detection_train_loader(host_config, mapper=WorkbenchMapper(host_config, is_train=True))
    batch = next(iter(loader))
    assert len(batch) == 2 and batch[0]["seed"] != batch[1]["seed"]
    dicts = {item["image_id"]: item for item in get_detection_dataset_dicts(["shapes_train"])}
    own = TrainMapper(LargeScaleJitter(64, 0.8, 1.2))
    for item in batch:
        expected = own(dicts[item["image_id"]], item["seed"])
        instances, targets = item["instances"], expected["targets"]
        assert torch.equal(item["image"], expected["image"])
        assert torch.equal(instances.gt_masks.tensor, targets["masks"])
        assert torch.equal(instances.gt_classes, targets["labels"])
        for name, values in targets["subcategories"].items():
            assert torch.equal(instances.get(f"gt_{name}"), values)
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.equal(instances.gt_boxes.tensor, boxes)


def test_test_images_come_whole(host_config: CfgNode) -> None:
    mapper = WorkbenchMapper(host_config, is_train=False)
    (item,) = next(iter(build_detection_test_loader(host_config, "shapes_val", mapper=mapper)))
    assert item["image"].shape == (3, 64, 64) and (item["height"], item["width"]) == (64, 64)
    assert "instances" not in item


def test_dicts_of_detectron2_s_own_datasets_are_taken(host_config: CfgNode) -> None:
    (item,) = DatasetCatalog.get("shapes_train")[:1]
    plain = {key: value for key, value in item.items() if key not in ("subcategories", "name")}
    plain["annotations"] = [
        {key: a[key] for key in ("bbox", "bbox_mode", "category_id", "segmentation")} for a in item["annotations"]
    ]
    mapped = WorkbenchMapper(host_config, is_train=True)(plain)
    assert len(mapped["instances"]) and not mapped["instances"].has("gt_colour")


def mask_rcnn_config(host_config: CfgNode) -> CfgNode:
    """A small Mask R-CNN of detectron2 on the workbench's MobileNetV3."""
    cfg = get_cfg()
    add_workbench_config(cfg, defaults=False)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_mobilenet_v3_large_fpn_backbone"
    cfg.MODEL.MASK_ON, cfg.MODEL.BACKBONE.FREEZE_AT = True, 0
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = host_config.MODEL.PIXEL_MEAN, host_config.MODEL.PIXEL_STD
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "StandardROIHeads", 5
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 32, 7
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 16
    cfg.INPUT.FORMAT, cfg.INPUT.MASK_FORMAT = "RGB", "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = (64,), 64, 0.8, 1.2
    cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 0.01, 2, 0
    cfg.DATASETS.TRAIN = ("shapes_train",)
    return cfg


def test_detectron2_s_mask_rcnn_trains_with_our_mobilenet_and_data(host_config: CfgNode) -> None:
    cfg = mask_rcnn_config(host_config)
    dicts = get_detection_dataset_dicts(["shapes_train"])[:2]
    mappers = (WorkbenchMapper(cfg, is_train=True), DatasetMapper(cfg, is_train=True, augmentations=[]))
    batch = [mapper(item) for mapper in mappers for item in dicts]
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    totals = []
    for _ in range(6):
        with EventStorage():
            losses = model(batch)
        assert {"loss_mask", "loss_cls", "loss_rpn_cls"} <= set(losses)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total))
    assert totals[-1] < 0.9 * totals[0]
    stem = next(model.backbone.parameters())
    assert stem.grad is not None and stem.grad.abs().sum() > 0


def test_detectron2_s_trainer_trains_it_and_the_workbench_scores_it(host_config: CfgNode, tmp_path: Path) -> None:
    class OwnData(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return build_detection_train_loader(cfg, mapper=WorkbenchMapper(cfg, is_train=True))

        @classmethod
        def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> WorkbenchEvaluator:
            return WorkbenchEvaluator(cfg, dataset_name)

    cfg = mask_rcnn_config(host_config)
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = 2, ("shapes_val",), str(tmp_path)
    cfg.INPUT.MIN_SIZE_TEST = 64
    trainer = OwnData(cfg)
    trainer.train()
    assert set(trainer._last_eval_results) >= {"segm", "bbox"}
    assert json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])["iteration"] == 2
