"""Feature extractors: (B, 3, H, W) float in, {"res2": ..., "res5": ...} out."""

from workbench.models.backbones.mobilenet import MobileNetV3Backbone
from workbench.models.backbones.pyramid import STAGES, FeatureShape, PyramidError, check_pyramid, measure
from workbench.models.backbones.resnet import ResNetBackbone
from workbench.models.backbones.small_resnet import SmallResNet

__all__ = [
    "STAGES",
    "FeatureShape",
    "MobileNetV3Backbone",
    "PyramidError",
    "ResNetBackbone",
    "SmallResNet",
    "check_pyramid",
    "measure",
]
