"""Backbone surgery: networks that a backbone is cut from, and two networks compared layer by layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from workbench.config import get_cfg
from workbench.data.images import read_image
from workbench.errors import WorkbenchError
from workbench.models.backbones.mobilenet import Layer, measure_layers
from workbench.models.backbones.resnet import ResNetBackbone
from workbench.models.weights import backbone_state, load_state, read_state, require_backbone, torchvision_state


def donor_network(weights: str) -> tuple[nn.Module, str]:
    """DeepLabV3 with a MobileNetV3-Large, and where its weights are from: "random", "deeplabv3" or a path.

    Where the published weights cannot be had, random ones of the same shape take their place, and the
    sentence says so.
    """
    return _donor(deeplab_network(), weights, "deeplabv3", "DeepLabV3")


def donor_classifier(weights: str) -> tuple[nn.Module, str]:
    """The classifier of the same architecture: its published weights, or other random ones."""
    wanted = "imagenet" if weights == "deeplabv3" else "random"
    return _donor(classifier_network(seed=1), wanted, "imagenet", "the classifier")


def _donor(network: nn.Module, weights: str, published: str, name: str) -> tuple[nn.Module, str]:
    if weights == "random":
        return network, f"random weights in the shape of {name}"
    try:
        if weights == published:
            state = torchvision_state("mobilenet_v3_large", published)
        else:
            state = read_state(weights)
    except WorkbenchError as error:
        if weights != published:
            raise
        return network, f"random weights in the shape of {name}, as {error}"
    report = load_state(network, state)
    require_backbone(report, weights)
    return network, f"{weights} weights: {report}"


def surgery_image(file: str, size: int) -> tuple[np.ndarray, Tensor]:
    """A picture (size, size, 3) uint8 and the same as a network's input (1, 3, size, size), normalised.

    ``file``: the picture; "" takes the first of the shapes dataset, and where that has not been made a
    drawing.
    """
    if not file:
        places = sorted(Path("data/shapes/val").glob("*.png"))
        picture = read_image(str(places[0])) if places else _drawing(size)
    else:
        picture = read_image(file)
    picture = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))
    cfg = get_cfg()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return picture, ((torch.from_numpy(picture.copy()).permute(2, 0, 1) - mean) / std)[None]


def _drawing(size: int) -> np.ndarray:
    """A disc and a bar on a ramp."""
    y, x = np.mgrid[:size, :size] / size
    picture = np.stack([80 + 100 * x, 90 + 60 * y, np.full_like(x, 120)], axis=2)
    picture[(x - 0.35) ** 2 + (y - 0.4) ** 2 < 0.05] = (220, 160, 30)
    picture[(abs(x - 0.72) < 0.08) & (abs(y - 0.55) < 0.3)] = (30, 110, 190)
    return picture.astype(np.uint8)


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
