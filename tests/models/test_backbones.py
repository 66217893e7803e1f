import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_large, resnet50
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
from torchvision.ops import FrozenBatchNorm2d

from workbench.errors import WorkbenchError
from workbench.models.backbones import (
    FeatureShape,
    MobileNetV3Backbone,
    PyramidError,
    ResNetBackbone,
    SmallResNet,
    check_pyramid,
    measure,
)
from workbench.models.backbones.mobilenet import layer_table, measure_layers
from workbench.models.weights import load_backbone, load_state
from workbench.weights.naming import torchvision_backbone, torchvision_kind
from workbench.weights.reading import read_state


def test_the_layers_of_mobilenet_are_what_torchvision_says():
    """Invariant 1: the table, measured."""
    layers = measure_layers(mobilenet_v3_large(weights=None).features)
    expected = (
        [(16, 2)] * 2 + [(24, 4)] * 2 + [(40, 8)] * 3 + [(80, 16)] * 4 + [(112, 16)] * 2 + [(160, 32)] * 3 + [(960, 32)]
    )
    assert [(layer.channels, layer.stride) for layer in layers] == expected
    assert {layer.dilation for layer in layers} == {1}


def test_the_right_taps():
    """Invariant 1: res2 to res5 are 24, 40, 80 and 160 channels at 1/4, 1/8, 1/16 and 1/32, dry and for real."""
    backbone = MobileNetV3Backbone().eval()
    shapes = measure(backbone)
    assert list(shapes.values()) == [(24, 4), (40, 8), (80, 16), (160, 32)]
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert {n: f.shape for n, f in features.items()} == {
        n: (1, s.channels, 64 // s.stride, 96 // s.stride) for n, s in shapes.items()
    }


@pytest.mark.parametrize(
    "taps",
    [
        [3, 6, 10, 12],  # the 112-channel layer for res5: right channels for some other network, stride 16
        [2, 6, 10, 15],  # inside a group
        [3, 6, 12, 14],
        [1, 3, 6, 10],  # all one stage too early
        [3, 6, 10],
        [3, 6, 10, 17],
        [6, 3, 10, 15],
    ],
)
def test_a_wrong_tap_fails_when_built_and_shows_the_table(taps):
    """Invariant 1."""
    with pytest.raises(PyramidError) as error:
        MobileNetV3Backbone(taps=taps)
    assert "layer  channels  stride" in str(error.value)
    assert "   12       112    1/16" in str(error.value)


def test_dilated_strides_are_told_truly():
    """Invariant 2: DeepLabV3's MobileNetV3 keeps stride 16 in layers 13 to 15."""
    layers = measure_layers(mobilenet_v3_large(weights=None, dilated=True).features)
    assert [(layer.stride, layer.dilation) for layer in layers[13:16]] == [(16, 2)] * 3
    shapes = measure(MobileNetV3Backbone(dilated=True))
    assert [shape.stride for shape in shapes.values()] == [4, 8, 16, 16]
    with pytest.raises(PyramidError):  # the stage is judged by the undilated network
        MobileNetV3Backbone(dilated=True, taps=[3, 6, 10, 12])


@pytest.fixture(scope="module")
def deeplab():
    torch.manual_seed(3)
    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5, aux_loss=True).eval()


@pytest.mark.parametrize("dilated", [False, True])
def test_deeplab_weights_fit_the_backbone_exactly(deeplab, dilated):
    """Invariant 2: names and shapes all fit, and where the dilation agrees so do the features, number by number."""
    backbone = MobileNetV3Backbone(dilated=dilated).eval()
    report = load_backbone(backbone, deeplab.state_dict(), "deeplabv3")
    assert not report.missing and not report.mismatched and not report.unexpected
    image = torch.randn(1, 3, 64, 64)
    features = backbone(image)
    x = image
    for index in range(16):
        x = deeplab.backbone[str(index)](x)
        if index == 10:
            torch.testing.assert_close(features["res4"], x, rtol=0, atol=0)
    if dilated:
        torch.testing.assert_close(features["res5"], x, rtol=0, atol=0)
    else:
        assert features["res5"].shape[-1] * 2 == x.shape[-1]


def test_classification_and_segmentation_weights_are_told_apart(deeplab):
    classifier = mobilenet_v3_large(weights=None).state_dict()
    assert torchvision_kind(deeplab.state_dict()) == "segmentation"
    assert torchvision_kind(classifier) == "classification"
    assert not any(name.startswith("classifier") for name in torchvision_backbone(classifier))
    report = load_backbone(MobileNetV3Backbone(), classifier, "imagenet")
    assert not report.missing and not report.unexpected


def test_weights_of_another_network_are_refused_with_the_report():
    """Invariant 3."""
    with pytest.raises(WorkbenchError, match=r"only 0 of the backbone's \d+ tensors.*missing"):
        load_backbone(MobileNetV3Backbone(), resnet50(weights=None).state_dict(), "r50.pth")


def test_the_load_report_names_every_kind():
    """Invariant 3."""
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(5), "9.weight": torch.ones(1)}
    report = load_state(module, state)
    assert report.loaded == ["0.weight"]
    assert report.missing == ["1.weight", "1.bias"]
    assert report.unexpected == ["9.weight"]
    assert report.mismatched == [("0.bias", (3,), (5,))]
    assert torch.equal(module[0].weight, torch.ones(3, 2))
    assert (
        str(report)
        == "1 loaded; 2 missing (1.weight, 1.bias); 1 unexpected (9.weight); 1 mismatched (0.bias [5] for [3])"
    )


def test_a_pickle_is_never_loaded(tmp_path):
    import pickle

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(WorkbenchError, match="cannot be read as tensors"):
        read_state(path)
    with pytest.raises(WorkbenchError, match="does not exist"):
        read_state(tmp_path / "none.pth")


def test_resnet50_is_measured_and_loads_torchvision_weights():
    network = resnet50(weights=None)
    backbone = ResNetBackbone(depth=50).eval()
    assert list(measure(backbone).values()) == [(256, 4), (512, 8), (1024, 16), (2048, 32)]
    assert not load_backbone(backbone, network.state_dict(), "imagenet").missing
    dilated = ResNetBackbone(depth=50, dilated=(False, False, True))
    assert [shape.stride for shape in measure(dilated).values()] == [4, 8, 16, 16]


@pytest.mark.parametrize(
    ("backbone", "frozen", "norms"),
    [
        (ResNetBackbone(depth=18, freeze_at=2), {"conv1", "bn1", "layer1"}, 5),
        (SmallResNet(widths=(8, 8, 16), depths=(1, 1, 1), freeze_at=1), {"stem"}, 2),
        (MobileNetV3Backbone(freeze_at=5), {"features"}, 45),
    ],
    ids=lambda value: type(value).__name__,
)
def test_freeze_at_freezes_the_stem_and_stages(backbone, frozen, norms):
    """detectron2's meaning: no gradients, and batch norms whose statistics stay."""
    assert {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad} >= frozen - {"bn1"}
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert not trained & frozen
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()) == norms


def test_freeze_at_keeps_what_the_weights_compute():
    """A frozen norm has the eps of the one that it replaces: MobileNet's is 0.001."""
    torch.manual_seed(4)
    free, frozen = MobileNetV3Backbone().eval(), MobileNetV3Backbone(freeze_at=3).eval()
    assert {name.split(".")[1] for name, p in frozen.named_parameters() if not p.requires_grad} == set("0123456")
    assert not load_backbone(frozen, free.state_dict(), "free").missing
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(frozen(image)["res5"], free(image)["res5"])


def test_measuring_changes_nothing():
    backbone = SmallResNet(widths=(8, 8, 16, 16)).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    measure(backbone)
    assert backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_pyramid_with_a_gap_is_refused():
    shapes = {"res2": FeatureShape(8, 4), "res3": FeatureShape(8, 8), "res4": FeatureShape(8, 32)}
    with pytest.raises(PyramidError, match="res4 8 channels at 1/32"):
        check_pyramid(shapes)


def test_a_pyramid_may_end_at_res4():
    shapes = measure(SmallResNet(widths=(8, 8, 16), depths=(1, 1, 1)))
    assert [(name, shape.stride) for name, shape in shapes.items()] == [("res2", 4), ("res3", 8), ("res4", 16)]
    check_pyramid(shapes)
    with pytest.raises(PyramidError):  # the strides alone are right
        check_pyramid({"res2": shapes["res2"], "res3": shapes["res3"], "res5": shapes["res4"]})


def test_the_table_marks_the_taps():
    layers = measure_layers(mobilenet_v3_large(weights=None).features)
    table = layer_table(layers, (3, 6, 10, 15)).splitlines()
    assert [line.split()[-1] for line in table if "res" in line] == ["res2", "res3", "res4", "res5"]


def test_strides_move_into_the_1x1_convolutions():
    backbone = ResNetBackbone(depth=50, stride_in_1x1=True)
    assert list(measure(backbone).values()) == [(256, 4), (512, 8), (1024, 16), (2048, 32)]
    assert [backbone.layer3[0].conv1.stride, backbone.layer3[0].conv2.stride] == [(2, 2), (1, 1)]
