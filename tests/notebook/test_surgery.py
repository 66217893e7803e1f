"""Networks beside each other: which weights went where, and whether the outputs agree."""

from __future__ import annotations

import pytest
import torch

from workbench.models.backbones import MobileNetV3Backbone
from workbench.models.backbones.mobilenet import measure_layers
from workbench.models.weights import load_backbone
from workbench.notebook.surgery import (
    Donor,
    classifier_network,
    compare_layers,
    deeplab_network,
    match_names,
    refused_taps,
    resnet_layers,
)


@pytest.fixture(scope="module")
def donor() -> Donor:
    return Donor(deeplab_network(), "random")


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_dilated_backbone_is_the_donor_bit_for_bit(donor: Donor, image: torch.Tensor) -> None:
    backbone = MobileNetV3Backbone(dilated=True).eval()
    load_backbone(backbone, donor.network.state_dict(), "donor")
    pairs = compare_layers(donor.layers, backbone.features, image)
    assert [pair.difference for pair in pairs] == [0.0] * 16


def test_without_dilation_the_sizes_part_at_layer_13(donor: Donor, image: torch.Tensor) -> None:
    backbone = MobileNetV3Backbone().eval()
    load_backbone(backbone, donor.network.state_dict(), "donor")
    pairs = compare_layers(donor.layers, backbone.features, image)
    assert [pair.difference for pair in pairs] == [0.0] * 13 + [None] * 3
    assert pairs[15].first[1] == 2 * pairs[15].second[1]


def test_a_classifiers_weights_fit_and_are_still_others(donor: Donor, image: torch.Tensor) -> None:
    backbone = MobileNetV3Backbone(dilated=True).eval()
    report = load_backbone(backbone, classifier_network(seed=1).state_dict(), "classifier")
    assert not report.missing and not report.mismatched
    pairs = compare_layers(donor.layers, backbone.features, image)
    assert all(pair.difference > 1e-3 for pair in pairs)


def test_every_tensor_has_a_place_or_stays_behind(donor: Donor) -> None:
    backbone = MobileNetV3Backbone()
    names = match_names(donor.network.state_dict(), backbone)
    kept = names[names["in the backbone"] != "(left out)"]
    assert len(names) == len(donor.network.state_dict())
    assert set(kept["in the backbone"]) == set(backbone.state_dict())
    assert (kept["in the backbone"] == kept["in the network"].str.replace("backbone.", "features.", n=1)).all()


def test_choices_of_taps_are_refused_with_a_reason_or_accepted() -> None:
    refused, accepted = refused_taps([3, 6, 10, 12], [3, 6, 10, 15]).split("\n\n")
    assert "taps [3, 6, 10, 12]" in refused and "stage of stride 16" in refused
    assert accepted == "taps [3, 6, 10, 15]: accepted"


def test_measuring_leaves_each_layers_mode_alone(donor: Donor) -> None:
    measure_layers(donor.layers)  # a new container, which is in training mode itself
    assert not any(module.training for module in donor.network.modules())


def test_random_networks_are_the_same_for_a_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = classifier_network(0), classifier_network(0), classifier_network(1)
    assert torch.equal(before, torch.get_rng_state())
    weight = "features.5.block.0.1.running_var"
    assert torch.equal(first.state_dict()[weight], second.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_resnet_layers_are_measured_block_by_block() -> None:
    layers, names, taps = resnet_layers(depth=50)
    assert [names[tap] for tap in taps.values()] == ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]
    table = {name: (layer.channels, layer.stride) for layer, name in zip(layers, names, strict=True)}
    assert table["stem"] == (64, 2) and table["maxpool"] == (64, 4)
    assert [table[f"layer{n}.{last}"] for n, last in ((1, 2), (2, 3), (3, 5), (4, 2))] == [
        (256, 4),
        (512, 8),
        (1024, 16),
        (2048, 32),
    ]
