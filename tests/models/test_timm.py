import pytest
import torch

from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.models.backbones import PyramidError, TimmBackbone, measure
from workbench.models.build import build_backbone


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("mobilenetv3_small_050", [8, 16, 24, 288]),  # has a map at stride 2 as well
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768]),  # channels last, and made for 224 pixels
    ],
)
def test_a_timm_model_is_a_pyramid_at_any_size(name, channels):
    backbone = build_backbone(load_config(None, ["MODEL.BACKBONE.NAME", f"timm/{name}"])).eval()
    assert [shape.channels for shape in measure(backbone).values()] == channels
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 96, 160))
    expected = [(1, c, 96 // s, 160 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(feature.shape) for feature in features.values()] == expected


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_model", "has no model 'no_such_model'"),
        ("vit_tiny_patch16_224", "not at all of"),
        ("maxvit_pico_rw_256", "does not take images of every size"),
    ],
)
def test_a_model_that_cannot_serve_is_refused(name, sentence):
    with pytest.raises(PyramidError, match=sentence):
        TimmBackbone(name)


def test_a_timm_model_is_not_frozen_in_part():
    cfg = load_config(None, ["MODEL.BACKBONE.NAME", "timm/resnet18", "MODEL.BACKBONE.FREEZE_AT", "2"])
    with pytest.raises(WorkbenchError, match="FREEZE_AT is 2"):
        build_backbone(cfg)
