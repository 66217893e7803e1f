"""Feature extractors: (B, 3, H, W) float in, {"res2": ..., "res5": ...} out."""

from workbench.models.backbones.mobilenet import MobileNetV3Backbone
from workbench.models.backbones.pyramid import STAGES, FeatureShape, PyramidError, check_pyramid, measure
from workbench.models.backbones.resnet import ResNetBackbone
from workbench.models.backbones.small_resnet import SmallResNet
from workbench.models.backbones.swin import SwinBackbone
from workbench.models.backbones.timm import TimmBackbone

__all__ = [
    "STAGES",
    "FeatureShape",
    "MobileNetV3Backbone",
    "PyramidError",
    "ResNetBackbone",
    "SmallResNet",
    "SwinBackbone",
    "TimmBackbone",
    "check_pyramid",
    "measure",
]
