"""Backbones and models in detectron2: the same losses and instances as in the workbench."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_backbone, build_model
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import nn

from tests.workflows.test_baselines import MODELS
from workbench.config import load_config
from workbench.data.coco import load_data
from workbench.data.mapper import build_mapper
from workbench.data.masks import encode_polygons
from workbench.detectron2 import add_workbench_config, register_datasets, register_parts
from workbench.detectron2.modeling import host_model
from workbench.errors import WorkbenchError
from workbench.models import build_model as build_own
from workbench.registry import BACKBONES


@pytest.fixture()
def batch(own_config: Any) -> list[dict]:
    """Four training images of the workbench."""
    dataset, mapper = load_data(own_config, ["shapes_train"], None), build_mapper(own_config, is_train=True)
    return [mapper(dataset.dicts[k], seed=k) for k in range(4)]


@pytest.fixture(params=["MaskFormer", *MODELS])
def pair(request: pytest.FixtureRequest, tiny_config: Path) -> tuple[nn.Module, nn.Module]:
    """A model of the workbench, and the same weights in detectron2."""
    keys = {"MODEL.META_ARCHITECTURE": request.param, "MODEL.FPN.OUT_CHANNELS": "16", **MODELS.get(request.param, {})}
    config = load_config(tiny_config, [part for pair in keys.items() for part in pair])
    own = build_own(config, load_data(config, ["shapes_train"], None).vocabulary)
    register_datasets(config)
    cfg = get_cfg()
    add_workbench_config(cfg, config)
    if request.param == "GeneralizedRCNN":  # which detectron2 has too
        cfg.MODEL.META_ARCHITECTURE = "workbench_GeneralizedRCNN"
    hosted = build_model(cfg)
    hosted.load_state_dict(own.state_dict())
    return own, hosted


def map_nested(values: dict, change: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    return {k: map_nested(v, change) if isinstance(v, dict) else change(v) for k, v in values.items()}


def as_detectron2(item: dict, polygons: bool) -> dict:
    targets, size = item["targets"], tuple(item["image"].shape[-2:])
    masks = targets["masks"]
    if polygons:
        masks = PolygonMasks([[np.array(p) for p in encode_polygons(mask.numpy())] for mask in masks])
    else:
        masks = BitMasks(masks)
    instances = Instances(size, gt_classes=targets["labels"], gt_masks=masks)
    for name, values in targets["subcategories"].items():
        instances.set(f"gt_{name}", values)
    return {key: value for key, value in item.items() if key != "targets"} | {"instances": instances}


@pytest.mark.parametrize("polygons", [False, True], ids=["bitmasks", "polygons"])
def test_losses_are_the_workbench_s(pair: tuple[nn.Module, nn.Module], batch: list[dict], polygons: bool) -> None:
    own, hosted = pair
    if polygons:  # no polygons describe a mask with a hole
        for item in batch:
            keep = torch.tensor([encode_polygons(mask.numpy()) is not None for mask in item["targets"]["masks"]])
            item["targets"] = map_nested(item["targets"], lambda values, keep=keep: values[keep])
    assert sum(len(item["targets"]["labels"]) for item in batch) >= 4
    torch.manual_seed(5)  # of what a model draws by itself
    expected = own.train()(batch)
    torch.manual_seed(5)
    losses = hosted.train()([as_detectron2(item, polygons) for item in batch])
    assert list(losses) == list(expected)
    for name, value in expected.items():
        assert torch.equal(losses[name], value), name
    assert any("colour" in name for name in losses)


def test_instances_are_the_workbench_s(pair: tuple[nn.Module, nn.Module], batch: list[dict]) -> None:
    own, hosted = pair
    inputs = [{"image": item["image"], "height": 50, "width": 40, "image_id": item["image_id"]} for item in batch]
    with torch.no_grad():
        expected, outputs = own.eval()(inputs), hosted.eval()(inputs)
    for reference, output in zip(expected, outputs, strict=True):
        instances = output["instances"]
        assert instances.image_size == (50, 40)
        assert torch.equal(instances.pred_masks, reference["masks"]) and instances.pred_masks.dtype == torch.bool
        assert torch.equal(instances.pred_boxes.tensor, reference["boxes"])
        assert torch.equal(instances.scores, reference["scores"])
        assert torch.equal(instances.pred_classes, reference["labels"])
        assert output["predictions"].get("no_object_fraction") == reference.get("no_object_fraction")
        for name, probabilities in reference["subcategories"].items():
            best = probabilities.argmax(-1)
            best[best == probabilities.shape[-1] - 1] = -1
            assert torch.equal(instances.get(f"pred_{name}"), best)


def test_a_subcategory_that_no_field_holds_is_named(pair: tuple[nn.Module, nn.Module], batch: list[dict]) -> None:
    item = as_detectron2(batch[0], polygons=False)
    item["instances"].remove("gt_colour")
    with pytest.raises(WorkbenchError, match="no labels for subcategory 'colour'"):
        pair[1].train()([item])


def test_a_subcategory_named_as_a_field_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="'classes' has the name of a field"):
        host_model(nn.Identity(), {"classes": ("a", "b")})


def test_a_model_can_be_copied(pair: tuple[nn.Module, nn.Module], batch: list[dict]) -> None:
    copied = copy.deepcopy(pair[1]).eval()
    with torch.no_grad():
        assert "instances" in copied(batch[:1])[0]


def test_every_backbone_is_registered() -> None:
    own = [name for name in BACKBONES if not name.startswith("timm/")]
    assert len(own) >= 4
    for name in own:
        assert name in BACKBONE_REGISTRY
    assert "workbench_build_resnet_backbone" in BACKBONE_REGISTRY
    assert "timm/resnet50" in BACKBONE_REGISTRY and "timm/resnet50.a1_in1k" in BACKBONE_REGISTRY
    assert "MaskFormer" in META_ARCH_REGISTRY


def test_parts_of_the_user_s_are_registered_later() -> None:
    @BACKBONES.register("build_stripes_backbone")
    def stripes(cfg: Any, pretrained: bool) -> nn.Module:
        raise NotImplementedError

    assert "build_stripes_backbone" not in BACKBONE_REGISTRY
    register_parts()
    assert "build_stripes_backbone" in BACKBONE_REGISTRY and "build_stripes_fpn_backbone" in BACKBONE_REGISTRY
    register_parts()


@pytest.fixture()
def backbone_config() -> CfgNode:
    cfg = get_cfg()
    add_workbench_config(cfg)
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    return cfg


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("build_mobilenet_v3_large_backbone", {"res2": 24, "res3": 40, "res4": 80, "res5": 160}),
        ("build_mobilenet_v3_large_fpn_backbone", dict.fromkeys(("p2", "p3", "p4", "p5", "p6"), 256)),
        ("workbench_build_resnet_backbone", {"res2": 64, "res3": 128, "res4": 256, "res5": 512}),
        ("timm/resnet10t", {"res2": 64, "res3": 128, "res4": 256, "res5": 512}),
    ],
)
def test_backbones_tell_detectron2_their_shapes(name: str, channels: dict[str, int], backbone_config: CfgNode) -> None:
    backbone_config.MODEL.BACKBONE.NAME = name
    backbone = build_backbone(backbone_config)
    shapes = backbone.output_shape()
    assert {key: shape.channels for key, shape in shapes.items()} == channels
    assert [shape.stride for shape in shapes.values()][:4] == [4, 8, 16, 32]
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, 64, 64))
    assert {key: value.shape[1:] for key, value in maps.items()} == {
        key: (shape.channels, 64 // shape.stride, 64 // shape.stride) for key, shape in shapes.items()
    }


def test_a_backbone_refuses_pixels_it_was_not_trained_on() -> None:
    cfg = get_cfg()
    add_workbench_config(cfg, defaults=False)
    cfg.MODEL.BACKBONE.NAME = "build_mobilenet_v3_large_backbone"
    with pytest.raises(WorkbenchError, match="INPUT.FORMAT BGR.*set INPUT.FORMAT RGB"):
        build_backbone(cfg, ShapeSpec(channels=3))
