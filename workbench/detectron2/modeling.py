"""Backbones and models in detectron2's registries, and conversions between its structures and the workbench's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from workbench.detectron2.config import PREFIX, workbench_config
from workbench.detectron2.datasets import vocabulary_of
from workbench.errors import WorkbenchError
from workbench.models.backbones import measure
from workbench.models.build import build_backbone, build_model, build_pyramid
from workbench.registry import BACKBONES, MODELS

_TAKEN = ("classes", "boxes", "masks", "keypoints")  # a subcategory of that name would replace a field of detectron2's
_registered: dict[tuple[int, str], str] = {}


class WorkbenchBackbone(Backbone):
    """A backbone of the workbench, or a feature pyramid on one, as detectron2's models take it.

    Args:
        network: (B, 3, H, W) -> {name: feature map}. Its channels and strides are measured.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self._shapes = {name: ShapeSpec(channels=c, stride=s) for name, (c, s) in measure(network).items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of normalised RGB images (B, 3, H, W)."""
        return self.network(images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self._shapes.values())


def register_parts() -> None:
    """Register the workbench's backbones and models, and those of the user's imported files, with detectron2.

    A backbone ``build_<name>_backbone`` is also registered as ``build_<name>_fpn_backbone``, under a feature pyramid
    network as MODEL.FPN says; other names get the ending ``_fpn``. Names that detectron2 has taken get the prefix
    ``workbench_``. May be called again after parts were imported.
    """
    names = [name for name in BACKBONES if not name.startswith("timm/") and not name.endswith("_fpn_backbone")]
    names += [f"timm/{name}" for name in (*timm.list_models(), *timm.list_pretrained())]
    for name in names:
        pyramid = name.removesuffix("_backbone") + "_fpn" + "_backbone" * name.endswith("_backbone")
        _register(BACKBONE_REGISTRY, name, _backbone_builder(name, build_backbone))
        _register(BACKBONE_REGISTRY, pyramid, _backbone_builder(name, build_pyramid))
    for name in MODELS:
        _register(META_ARCH_REGISTRY, name, _model_builder(name))


def is_workbench_model(cfg: CfgNode) -> bool:
    """Return whether MODEL.META_ARCHITECTURE of a detectron2 config is one of the workbench's models."""
    return cfg.MODEL.META_ARCHITECTURE in [
        name for (key, _), name in _registered.items() if key == id(META_ARCH_REGISTRY)
    ]


def host_model(model: nn.Module, subcategories: Mapping[str, Any]) -> nn.Module:
    """Make a model of the workbench take and give what detectron2's models do; return the same module.

    Its weights keep their names, so that either host loads what the other has saved.

    In training it takes ``image`` and ``instances`` with ``gt_classes``, ``gt_masks`` (``PolygonMasks`` or
    ``BitMasks``) and, for each subcategory, ``gt_<name>`` (N,) int64, -1 unlabelled; it returns the weighted losses.
    In evaluation it returns a list of ``{"instances": Instances, "predictions": the workbench's own rows}``, see
    :func:`to_instances`. Batched inputs of the workbench are taken too.
    """
    wrong = [name for name in subcategories if name in _TAKEN]
    if wrong:
        raise WorkbenchError(f"subcategory {wrong[0]!r} has the name of a field of detectron2's Instances: rename it")
    names = tuple(subcategories)
    model.register_forward_pre_hook(lambda module, args: (_to_batched_inputs(args[0], names, module.training),))
    model.register_forward_hook(lambda module, args, output: _to_outputs(output, args[0]))
    return model


def to_targets(instances: Instances, subcategories: Sequence[str]) -> dict[str, Any]:
    """Return the ``targets`` of a batched input for ground truth of detectron2."""
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    targets = {
        "labels": instances.gt_classes,
        "masks": masks.tensor if isinstance(masks, BitMasks) else masks,
        "subcategories": {name: instances.get(f"gt_{name}") for name in subcategories if instances.has(f"gt_{name}")},
    }
    return targets | ({"annotation_ids": instances.annotation_ids} if instances.has("annotation_ids") else {})


def to_instances(predictions: Mapping[str, Any], size: tuple[int, int]) -> Instances:
    """Return one image's predictions as ``Instances`` of the original ``size`` (height, width).

    Fields: ``scores``, ``pred_classes``, ``pred_masks`` (N, H, W) bool, ``pred_boxes`` and, for each subcategory,
    ``pred_<name>`` (N,) int64, -1 where no-object is the likeliest.
    """
    instances = Instances(
        size,
        scores=predictions["scores"],
        pred_classes=predictions["labels"],
        pred_masks=predictions["masks"],
        pred_boxes=Boxes(predictions["boxes"]),
    )
    for name, probabilities in predictions["subcategories"].items():
        best = probabilities.argmax(-1)
        instances.set(f"pred_{name}", best.masked_fill(best == probabilities.shape[-1] - 1, -1))
    return instances


def _to_batched_inputs(batch: Sequence[Mapping[str, Any]], subcategories: Sequence[str], training: bool) -> list[dict]:
    if not training:
        return list(batch)
    return [
        {**inputs, "targets": to_targets(inputs["instances"], subcategories)} if "instances" in inputs else inputs
        for inputs in batch
    ]


def _to_outputs(output: Any, batch: Sequence[Mapping[str, Any]]) -> Any:
    if isinstance(output, Mapping):
        return output  # losses
    sizes = [(i.get("height", i["image"].shape[-2]), i.get("width", i["image"].shape[-1])) for i in batch]
    return [{"instances": to_instances(p, size), "predictions": p} for p, size in zip(output, sizes, strict=True)]


def _register(registry: Registry, name: str, entry: Callable[..., nn.Module]) -> None:
    key = id(registry), name
    if key not in _registered:
        _registered[key] = entry.__name__ = PREFIX + name if name in registry else name
        registry.register(entry)


def _backbone_builder(name: str, build: Callable[[CfgNode], nn.Module]) -> Callable[..., WorkbenchBackbone]:
    def builder(cfg: CfgNode, input_shape: ShapeSpec) -> WorkbenchBackbone:
        keys = cfg.MODEL
        if cfg.INPUT.FORMAT != "RGB" or max(keys.PIXEL_STD) == 1:
            raise WorkbenchError(
                f"config keys INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {keys.PIXEL_MEAN} and MODEL.PIXEL_STD "
                f"{keys.PIXEL_STD} are not those of {name}, which takes RGB: set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN "
                "[123.675, 116.28, 103.53] and MODEL.PIXEL_STD [58.395, 57.12, 57.375]"
            )
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.NAME = name
        return WorkbenchBackbone(build(cfg))

    return builder


def _model_builder(name: str) -> Callable[[CfgNode], nn.Module]:
    def builder(cfg: CfgNode) -> nn.Module:
        vocabulary = vocabulary_of(cfg)
        return host_model(
            build_model(workbench_config(cfg), vocabulary, pretrained=not cfg.MODEL.WEIGHTS), vocabulary.subcategories
        )

    return builder
