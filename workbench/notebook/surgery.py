"""Backbone surgery: networks that a backbone is cut from, and two networks compared layer by layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchvision.models import mobilenet_v3_large
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from workbench.config import get_cfg
from workbench.data.images import read_image
from workbench.errors import WorkbenchError
from workbench.models.backbones import STAGES, MobileNetV3Backbone, PyramidError, ResNetBackbone, measure
from workbench.models.backbones.mobilenet import DEFAULT_TAPS, Layer, layer_table, measure_layers
from workbench.models.weights import load_backbone, load_state, require_backbone, torchvision_state
from workbench.weights.naming import torchvision_backbone
from workbench.weights.reading import read_state

TAPS = dict(zip(STAGES, DEFAULT_TAPS, strict=True))  # {"res2": 3, ...}


class Donor(NamedTuple):
    """A network that a backbone is cut from, and where its weights are from."""

    network: nn.Module
    source: str

    @property
    def layers(self) -> nn.Sequential:
        """The layers of its MobileNetV3 in a row, whether they lie in ``features`` or in DeepLabV3's dict."""
        backbone = getattr(self.network, "backbone", None)
        return self.network.features if backbone is None else nn.Sequential(*backbone.values())

    def table(self) -> str:
        """Return the measured layers as text, those that a backbone taps marked."""
        return layer_table(measure_layers(self.layers), DEFAULT_TAPS)

    def load_into(self, backbone: nn.Module) -> nn.Module:
        """Copy the weights into a backbone; return it in eval mode."""
        load_backbone(backbone, self.network.state_dict(), self.source)
        return backbone.eval()


def donor_network(weights: str) -> Donor:
    """Return DeepLabV3 with a MobileNetV3-Large and the given weights: "random", "deeplabv3" or a path.

    Where the published weights cannot be fetched, random ones of the same shape take their place, and ``source``
    says so.
    """
    return _donor(deeplab_network(), weights, "deeplabv3", "DeepLabV3")


def donor_classifier(weights: str) -> Donor:
    """Return the classifier of the same architecture: with its published weights where ``weights`` is
    "deeplabv3", else with other random ones."""
    return _donor(
        classifier_network(seed=1), "imagenet" if weights == "deeplabv3" else "random", "imagenet", "the classifier"
    )


def _donor(network: nn.Module, weights: str, published: str, name: str) -> Donor:
    random = f"random weights in the shape of {name}"
    if weights == "random":
        return Donor(network, random)
    try:
        state = torchvision_state("mobilenet_v3_large", published) if weights == published else read_state(weights)
    except WorkbenchError as error:
        if weights != published:
            raise
        return Donor(network, f"{random}, as {error}")
    report = load_state(network, state)
    require_backbone(report, weights)
    return Donor(network, f"{weights} weights: {report}")


def surgery_image(file: str | None, size: int) -> tuple[np.ndarray, Tensor]:
    """Return a picture (size, size, 3) uint8 and the same as a network's input (1, 3, size, size), normalised.

    ``file``: the picture; None takes the photograph that matplotlib brings along.
    """
    picture = read_image(file or str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    picture = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))
    cfg = get_cfg()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return picture, ((torch.from_numpy(picture.copy()).permute(2, 0, 1) - mean) / std)[None]


class LayerPair(NamedTuple):
    """The outputs of one layer in two networks: (channels, height, width) each, and their largest absolute
    difference, None where the sizes differ."""

    index: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    difference: float | None


def deeplab_network(seed: int = 0) -> nn.Module:
    """Return torchvision's DeepLabV3 with a MobileNetV3-Large, its weights drawn from ``seed``; in eval mode."""
    return _random(lambda: deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None), seed)


def classifier_network(seed: int = 0) -> nn.Module:
    """Return torchvision's MobileNetV3-Large as a classifier, its weights drawn from ``seed``; in eval mode."""
    return _random(lambda: mobilenet_v3_large(weights=None), seed)


def _random(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Batch norms measure their statistics on noise, without which deep layers would put out nearly nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        update_bn([F.interpolate(torch.randn(4, 3, 16, 16), (128, 128), mode="bilinear")], network)
    return network.eval()


def refused_taps(*choices: Sequence[int]) -> str:
    """Return, a line each, the messages with which a backbone refuses choices of taps."""
    lines = []
    for taps in choices:
        try:
            MobileNetV3Backbone(taps=taps)
            lines.append(f"taps {list(taps)}: accepted")
        except PyramidError as error:
            lines.append(f"taps {list(taps)}: {str(error).splitlines()[0]}")
    return "\n\n".join(lines)


def loading_reports(donor: Donor) -> str:
    """Return what is loaded into a backbone from the weights as they are named, and from the renamed ones."""
    state = donor.network.state_dict()
    before = load_state(MobileNetV3Backbone(), state)
    after = load_backbone(MobileNetV3Backbone(), state, donor.source)
    counters = sum(name.endswith("num_batches_tracked") for name in after.loaded)
    return (
        f"without renaming: {before}\n"
        f"with renaming:    {after}\n"
        f"Of the {len(after.loaded)} loaded, {len(after.loaded) - counters} are weights and statistics. The other "
        f"{counters} count batches in the batch norms; many files lack them, so they are never called missing."
    )


def match_names(state: Mapping[str, Tensor], backbone: nn.Module) -> pd.DataFrame:
    """Return one row a tensor of a whole torchvision network, in the state dict's order: its name there, its name
    in the backbone, "(left out)" where the backbone has none, and its shape."""
    own = backbone.state_dict()
    # torchvision_backbone keeps the order and the tensors themselves, which say which came from where.
    names = {id(tensor): name for name, tensor in torchvision_backbone(state).items() if name in own}
    rows = [(name, names.get(id(tensor), "(left out)"), tuple(tensor.shape)) for name, tensor in state.items()]
    return pd.DataFrame(rows, columns=["in the network", "in the backbone", "shape"])


@torch.no_grad()
def compare_layers(first: nn.Sequential, second: nn.Sequential, image: Tensor) -> list[LayerPair]:
    """Send (1, 3, H, W) through both networks, layer by layer, to the end of the shorter one."""
    pairs, one, two = [], image, image
    for index, (layer, reference) in enumerate(zip(first, second, strict=False)):
        one, two = layer(one), reference(two)
        difference = (one - two).abs().max().item() if one.shape == two.shape else None
        pairs.append(LayerPair(index, tuple(one.shape[1:]), tuple(two.shape[1:]), difference))
    return pairs


def compare_backbones(donor: Donor, classifier: Donor, image: Tensor) -> dict[str, list[LayerPair]]:
    """Compare the donor's layers with three backbones: its own weights with the dilation kept and removed, and the
    classifier's weights."""
    backbones = {
        "dilation kept": donor.load_into(MobileNetV3Backbone(dilated=True)),
        "dilation removed": donor.load_into(MobileNetV3Backbone()),
        "classifier's weights": classifier.load_into(MobileNetV3Backbone(dilated=True)),
    }
    return {name: compare_layers(donor.layers, each.features, image) for name, each in backbones.items()}


def resnet_layers(depth: int = 50) -> tuple[list[Layer], list[str], dict[str, int]]:
    """Measure every layer of a ResNet, the stem and then block by block: the layers, their names, and which are
    tapped as {stage: layer number}."""
    backbone = ResNetBackbone(depth=depth)
    named: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu), maxpool=backbone.maxpool
    )
    taps = {}
    for number, stage in enumerate(STAGES, start=1):
        for block, module in enumerate(getattr(backbone, f"layer{number}")):
            named[f"layer{number}.{block}"] = module
        taps[stage] = len(named) - 1
    return measure_layers(nn.Sequential(*named.values())), list(named), taps


def pyramids() -> pd.DataFrame:
    """Return channels and stride of each stage, one row a backbone."""
    backbones = {
        "MobileNetV3-Large": MobileNetV3Backbone(),
        "MobileNetV3-Large, dilated": MobileNetV3Backbone(dilated=True),
        "ResNet-50": ResNetBackbone(depth=50),
    }
    rows = {
        name: {stage: f"{shape.channels} at 1/{shape.stride}" for stage, shape in measure(each).items()}
        for name, each in backbones.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("backbone")
