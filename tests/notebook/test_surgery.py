"""Networks beside each other: which weights went where, and whether the outputs agree."""

from __future__ import annotations

import pytest
import torch

from workbench.models.backbones import MobileNetV3Backbone, ResNetBackbone
from workbench.models.backbones.mobilenet import measure_layers
from workbench.models.weights import load_backbone
from workbench.notebook.surgery import (
    classifier_network,
    compare_layers,
    deeplab_network,
    layers_of,
    match_names,
    resnet_layers,
)


@pytest.fixture(scope="module")
def donor() -> torch.nn.Module:
    return deeplab_network()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_dilated_backbone_is_the_donor_bit_for_bit(donor: torch.nn.Module, image: torch.Tensor) -> None:
    backbone = MobileNetV3Backbone(dilated=True).eval()
    load_backbone(backbone, donor.state_dict(), "donor")
    pairs = compare_layers(layers_of(donor.backbone), backbone.features, image)
    assert [pair.difference for pair in pairs] == [0.0] * 16


def test_without_dilation_the_sizes_part_at_layer_13(donor: torch.nn.Module, image: torch.Tensor) -> None:
    backbone = MobileNetV3Backbone().eval()
    load_backbone(backbone, donor.state_dict(), "donor")
    pairs = compare_layers(layers_of(donor.backbone), backbone.features, image)
    assert [pair.difference for pair in pairs] == [0.0] * 13 + [None] * 3
    assert pairs[15].first[1] == 2 * pairs[15].second[1]


def test_a_classifiers_weights_fit_and_are_still_others(donor: torch.nn.Module, image: torch.Tensor) -> None:
    backbone = MobileNetV3Backbone(dilated=True).eval()
    report = load_backbone(backbone, classifier_network(seed=1).state_dict(), "classifier")
    assert not report.missing and not report.mismatched
    pairs = compare_layers(layers_of(donor.backbone), backbone.features, image)
    assert all(pair.difference > 1e-3 for pair in pairs)


def test_every_tensor_has_a_place_or_stays_behind(donor: torch.nn.Module) -> None:
    backbone = MobileNetV3Backbone()
    pairs = match_names(donor.state_dict(), backbone)
    assert len(pairs) == len(donor.state_dict())
    assert {pair.here for pair in pairs if pair.here} == set(backbone.state_dict())
    assert all(pair.here == pair.there.replace("backbone.", "features.", 1) for pair in pairs if pair.here)


def test_measuring_leaves_each_layers_mode_alone(donor: torch.nn.Module) -> None:
    measure_layers(layers_of(donor.backbone))  # a new container, which is in training mode itself
    assert not any(module.training for module in donor.modules())


def test_random_networks_are_the_same_for_a_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = classifier_network(0), classifier_network(0), classifier_network(1)
    assert torch.equal(before, torch.get_rng_state())
    weight = "features.5.block.0.1.running_var"
    assert torch.equal(first.state_dict()[weight], second.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_resnet_layers_are_measured_block_by_block() -> None:
    layers, names = resnet_layers(ResNetBackbone(depth=50))
    table = {name: (layer.channels, layer.stride) for layer, name in zip(layers, names, strict=True)}
    assert table["stem"] == (64, 2) and table["maxpool"] == (64, 4)
    assert [table[f"layer{n}.{last}"] for n, last in ((1, 2), (2, 3), (3, 5), (4, 2))] == [
        (256, 4),
        (512, 8),
        (1024, 16),
        (2048, 32),
    ]
