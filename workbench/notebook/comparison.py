"""Two networks of one architecture laid beside each other: names, weights, and what each layer puts out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from workbench.models.backbones.mobilenet import Layer, measure_layers
from workbench.models.backbones.resnet import ResNetBackbone
from workbench.models.weights import backbone_state


class NamePair(NamedTuple):
    """One tensor of a state dict and where it goes: ``here`` is "" for a tensor the backbone has no place
    for."""

    there: str
    here: str
    shape: tuple[int, ...]


class LayerPair(NamedTuple):
    """The outputs of one layer in two networks: (channels, height, width) each, and their largest absolute
    difference, None where the sizes differ."""

    index: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    difference: float | None


def deeplab_network(seed: int = 0) -> nn.Module:
    """torchvision's DeepLabV3 with a MobileNetV3-Large, its weights drawn from ``seed``; in eval mode."""
    return _random(lambda: deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None), seed)


def classifier_network(seed: int = 0) -> nn.Module:
    """torchvision's MobileNetV3-Large as a classifier, its weights drawn from ``seed``; in eval mode."""
    return _random(lambda: mobilenet_v3_large(weights=None), seed)


def _random(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Batch norms measure their statistics on noise, without which deep layers would put out nearly nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            network.train()(F.interpolate(torch.randn(4, 3, 16, 16), (128, 128), mode="bilinear"))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return network.eval()


def layers_of(backbone: Mapping[str, nn.Module] | nn.Sequential) -> nn.Sequential:
    """The layers of a MobileNetV3 in a row, whether they lie in ``features`` or in DeepLabV3's dict."""
    return backbone if isinstance(backbone, nn.Sequential) else nn.Sequential(*backbone.values())


def resnet_layers(backbone: ResNetBackbone) -> tuple[list[Layer], list[str]]:
    """Every layer of a ResNet, the stem and then block by block, measured; and their names."""
    named: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu), maxpool=backbone.maxpool
    )
    for number in range(1, 5):
        for block, module in enumerate(getattr(backbone, f"layer{number}")):
            named[f"layer{number}.{block}"] = module
    return measure_layers(nn.Sequential(*named.values())), list(named)


def match_names(state: Mapping[str, Tensor], backbone: nn.Module) -> list[NamePair]:
    """Where each tensor of a whole torchvision network goes in a backbone, in the state dict's order."""
    own = backbone.state_dict()
    # backbone_state keeps the order and the tensors themselves, which say which came from where.
    went = {id(tensor): name for name, tensor in backbone_state(state).items()}
    return [
        NamePair(name, here if (here := went.get(id(tensor), "")) in own else "", tuple(tensor.shape))
        for name, tensor in state.items()
    ]


@torch.no_grad()
def compare_layers(
    first: Sequence[nn.Module] | nn.Sequential, second: Sequence[nn.Module] | nn.Sequential, image: Tensor
) -> list[LayerPair]:
    """Send (1, 3, H, W) through both networks, layer by layer, as far as both go."""
    pairs, one, two = [], image, image
    for index, (ours, theirs) in enumerate(zip(first, second, strict=False)):
        one, two = ours(one), theirs(two)
        same = one.shape == two.shape
        difference = (one - two).abs().max().item() if same else None
        pairs.append(LayerPair(index, tuple(one.shape[1:]), tuple(two.shape[1:]), difference))
    return pairs
