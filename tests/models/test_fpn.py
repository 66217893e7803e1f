"""The feature pyramid on a backbone: torchvision's, on any of the backbones."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from workbench.models.backbones import PyramidError, ResNetBackbone, SmallResNet
from workbench.models.fpn import PyramidBackbone


def test_it_is_torchvisions_pyramid() -> None:
    reference = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d).eval()
    pyramid = PyramidBackbone(ResNetBackbone(depth=18)).eval()
    pyramid.load_state_dict(reference.state_dict())
    images = torch.randn(1, 3, 64, 96)
    maps = pyramid(images)
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
    for result, expected in zip(maps.values(), reference(images).values(), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("widths", "in_features", "strides"),
    [
        ((8, 8, 8, 8), ["res2", "res3", "res4", "res5"], {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}),
        ((8, 8, 8), ["res2", "res3", "res4", "res5"], {"p2": 4, "p3": 8, "p4": 16, "p5": 32}),
        ((8, 8, 8, 8), ["res4", "res3"], {"p3": 8, "p4": 16, "p5": 32}),
    ],
)
def test_strides_are_those_of_the_maps(widths: tuple, in_features: list[str], strides: dict[str, int]) -> None:
    body = SmallResNet(widths=widths, depths=[1] * len(widths))
    pyramid = PyramidBackbone(body, in_features=in_features, out_channels=4)
    assert pyramid.strides == strides
    maps = pyramid(torch.zeros(1, 3, 128, 64))
    assert {name: tuple(each.shape[1:]) for name, each in maps.items()} == {
        name: (4, 128 // stride, 64 // stride) for name, stride in strides.items()
    }


def test_a_map_that_the_backbone_lacks_is_one_sentence() -> None:
    body = SmallResNet(widths=(8, 8, 8), depths=(1, 1, 1))
    with pytest.raises(PyramidError, match="the backbone gives res2, res3, res4, and the pyramid takes res5"):
        PyramidBackbone(body, in_features=["res5"])
