"""Networks that a backbone is cut from, and a picture to send through them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from workbench.config import get_cfg
from workbench.data.images import read_image
from workbench.errors import WorkbenchError
from workbench.models.weights import load_state, read_state, require_backbone, torchvision_state
from workbench.notebook.comparison import classifier_network, deeplab_network


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
