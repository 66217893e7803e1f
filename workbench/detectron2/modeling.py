"""Backbones and models in detectron2's registries, and conversions between its structures and the workbench's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from workbench.detectron2.config import PREFIX, workbench_config
from workbench.detectron2.data import vocabulary_of
from workbench.errors import WorkbenchError
from workbench.models.backbones import measure
from workbench.models.build import build_backbone, build_model, build_pyramid
from workbench.registry import BACKBONES, MODELS

_FIELDS = ("classes", "boxes", "masks", "keypoints")  # a subcategory of that name would replace a field of detectron2
_TAKEN = {name for registry in (BACKBONE_REGISTRY, META_ARCH_REGISTRY) for name, _ in registry}


class WorkbenchBackbone(Backbone):
    """A ``network`` (B, 3, H, W) -> {name: feature map} of the workbench, as detectron2's models take it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, shapes = network, measure(network)
        self._out_features = list(shapes)
        self._out_feature_channels = {name: channels for name, (channels, _) in shapes.items()}
        self._out_feature_strides = {name: stride for name, (_, stride) in shapes.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.network(images)

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())


def register_parts() -> None:
    """Register the workbench's backbones and models, and those of the user's imported files, with detectron2.

    ``build_<name>_backbone`` is also registered under a feature pyramid network as ``build_<name>_fpn_backbone``; other
    names get the ending ``_fpn``. Names that detectron2 has taken get the prefix ``workbench_``. May be called again.
    """
    names = [name for name in BACKBONES if not name.startswith("timm/") and not name.endswith("_fpn_backbone")]
    names += [f"timm/{name}" for name in (*timm.list_models(), *timm.list_pretrained())]
    for name in names:
        pyramid = name.removesuffix("_backbone") + "_fpn" + "_backbone" * name.endswith("_backbone")
        _register(BACKBONE_REGISTRY, name, partial(_hosted_backbone, name, build_backbone))
        _register(BACKBONE_REGISTRY, pyramid, partial(_hosted_backbone, name, build_pyramid))
    for name in MODELS:
        _register(META_ARCH_REGISTRY, name, partial(hosted_model))


def _register(registry: Registry, name: str, build: partial) -> None:
    build.__name__ = PREFIX + name if name in _TAKEN else name
    if build.__name__ not in registry:
        registry.register(build)


def _hosted_backbone(name: str, build: Callable[[CfgNode], nn.Module], cfg: CfgNode, _: ShapeSpec) -> Backbone:
    if cfg.INPUT.FORMAT != "RGB" or max(cfg.MODEL.PIXEL_STD) == 1:
        raise WorkbenchError(
            f"{name} takes no images of INPUT.FORMAT {cfg.INPUT.FORMAT} and MODEL.PIXEL_STD {cfg.MODEL.PIXEL_STD}: set "
            "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53], MODEL.PIXEL_STD [58.395, 57.12, 57.375]"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = name
    return WorkbenchBackbone(build(cfg))


def hosted_model(cfg: CfgNode) -> nn.Module:
    """Return the workbench's model that a detectron2 config describes, on MODEL.DEVICE, as :func:`host_model`."""
    config, vocabulary = workbench_config(cfg), vocabulary_of(cfg)
    model = build_model(config, vocabulary, pretrained=not config.MODEL.WEIGHTS)
    return host_model(model, vocabulary.subcategories).to(torch.device(cfg.MODEL.DEVICE))


def host_model(model: nn.Module, subcategories: Sequence[str]) -> nn.Module:
    """Make a model of the workbench take and give what detectron2's models do; return the same module.

    Its weights keep their names, so that either host loads what the other has saved. In training it takes ``image`` and
    ``instances`` with ``gt_classes``, ``gt_masks`` (``PolygonMasks`` or ``BitMasks``) and, for each subcategory,
    ``gt_<name>`` (N,) int64, -1 unlabelled, or the workbench's own ``targets``; it returns the weighted losses. In
    evaluation it returns ``{"instances": Instances, "predictions": the workbench's own rows}`` of each image, with
    ``pred_<name>`` (N,) int64 for each subcategory, -1 where no-object is the likeliest.
    """
    if wrong := [name for name in subcategories if name in _FIELDS]:
        raise WorkbenchError(f"subcategory {wrong[0]!r} has the name of a field of detectron2's Instances: rename it")

    def take(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return ([_batched_input(inputs, subcategories) for inputs in args[0]],) if module.training else None

    def give(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        losses = isinstance(output, Mapping)
        return output if losses else [{"instances": _instances(rows), "predictions": rows} for rows in output]

    model.register_forward_pre_hook(take)
    model.register_forward_hook(give)
    return model


def _batched_input(inputs: Mapping[str, Any], subcategories: Sequence[str]) -> Mapping[str, Any]:
    """Return the input of one image with the ``targets`` of its ``instances``, if it has them."""
    if "instances" not in inputs:
        return inputs
    truth = inputs["instances"]
    masks = truth.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *truth.image_size)
    labelled = {name: truth.get(f"gt_{name}") for name in subcategories if truth.has(f"gt_{name}")}
    targets = {"labels": truth.gt_classes, "masks": getattr(masks, "tensor", masks), "subcategories": labelled}
    if truth.has("annotation_ids"):
        targets["annotation_ids"] = truth.annotation_ids
    return {**inputs, "targets": targets}


def _instances(rows: Mapping[str, Any]) -> Instances:
    """Return the predictions of one image as ``Instances`` of its original size, see :func:`host_model`."""
    fields = {"scores": rows["scores"], "pred_classes": rows["labels"], "pred_masks": rows["masks"]}
    for name, probabilities in rows["subcategories"].items():
        best = probabilities.argmax(-1)
        fields[f"pred_{name}"] = best.masked_fill(best == probabilities.shape[-1] - 1, -1)
    return Instances(tuple(rows["masks"].shape[-2:]), pred_boxes=Boxes(rows["boxes"]), **fields)
