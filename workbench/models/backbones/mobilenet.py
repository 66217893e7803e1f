"""torchvision's MobileNetV3-Large, tapped at four layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

from workbench.models.backbones.pyramid import STAGES, FeatureShape, PyramidError, check_pyramid, freeze_stages, measure

DEFAULT_TAPS = (3, 6, 10, 15)


class _EveryLayer(nn.Module):
    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for index, layer in enumerate(self.features):
            x = outputs[str(index)] = layer(x)
        return outputs


class Layer(NamedTuple):
    """One layer of ``features``: its index, output channels, output stride and largest dilation."""

    index: int
    channels: int
    stride: int
    dilation: int


def measure_layers(features: nn.Sequential) -> list[Layer]:
    """Return every layer of torchvision's ``features``, measured on a dry run."""
    shapes = measure(_EveryLayer(features))
    return [Layer(index, *shapes[str(index)], _dilation(layer)) for index, layer in enumerate(features)]


def _dilation(layer: nn.Module) -> int:
    return max((m.dilation[0] for m in layer.modules() if isinstance(m, nn.Conv2d)), default=1)


def layer_table(layers: Sequence[Layer], taps: Sequence[int] = ()) -> str:
    """Return the layers as text, the tapped ones marked."""
    names = dict(zip(taps, STAGES, strict=False))
    rows = [
        f"{layer.index:5d}  {layer.channels:8d}  {f'1/{layer.stride}':>6}  {layer.dilation:8d}  "
        f"{names.get(layer.index, '')}".rstrip()
        for layer in layers
    ]
    return "\n".join(["layer  channels  stride  dilation  tap", *rows])


class MobileNetV3Backbone(nn.Module):
    """MobileNetV3-Large (Howard et al., 2019) without its classifier.

    Args:
        taps: the four layers that become res2, res3, res4 and res5.
        dilated: keep stride 16 in the last stage by dilation, as DeepLabV3 does; res5 then has stride 16.
        norm_layer: normalisation, called with the number of channels.
        freeze_at: 1 freezes the stem (layer 0), 2 the layers up to the first tap as well, up to 5; 0 freezes nothing.

    Raises:
        PyramidError: a tap that is no layer, is out of order, or is not the last layer of its stage, so that the
            strides, or the channels the next stage was built on, are not those of the stage it stands for. The
            message shows the table of layers.
    """

    def __init__(
        self,
        *,
        taps: Sequence[int] = DEFAULT_TAPS,
        dilated: bool = False,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        freeze_at: int = 0,
    ):
        super().__init__()
        # A stage is a stage of the undilated network; dilation only keeps its resolution up.
        check_taps(measure_layers(mobilenet_v3_large(weights=None).features), taps)
        build = mobilenet_v3_large
        if norm_layer is not nn.BatchNorm2d:  # torchvision gives its own choice another eps and momentum
            build = partial(build, norm_layer=norm_layer)
        self.features = build(weights=None, dilated=dilated).features[: max(taps) + 1]
        self.taps = tuple(taps)
        edges = pairwise([0, 1, *(tap + 1 for tap in taps)])
        stages = [[f"features.{layer}" for layer in range(*edge)] for edge in edges]
        freeze_stages(self, stages, freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res2": (B, 24, H/4, W/4), "res3": 40 at 1/8, "res4": 80 at 1/16, "res5": 160 at 1/32}."""
        outputs = {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                outputs[STAGES[self.taps.index(index)]] = x
        return outputs


def check_taps(layers: Sequence[Layer], taps: Sequence[int]) -> None:
    """Raise PyramidError, showing the table, unless the taps end a group of layers at strides 4, 8, 16 and 32."""
    table = layer_table(layers, taps)
    last = len(layers) - 1
    if len(taps) != len(STAGES) or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] > last:
        raise PyramidError(f"the taps {list(taps)} must be four rising layer numbers from 0 to {last}.\n{table}")
    tapped = {name: layers[tap] for name, tap in zip(STAGES, taps, strict=True)}
    check_pyramid({name: FeatureShape(layer.channels, layer.stride) for name, layer in tapped.items()}, table)
    if tapped["res5"].stride != 32:
        raise PyramidError(
            f"res5 taps layer {taps[-1]}, which belongs to the stage of stride "
            f"{tapped['res5'].stride} and not to that of stride 32.\n{table}"
        )
    for name, layer in tapped.items():
        after = layers[layer.index + 1] if layer.index < last else None
        if after is not None and (after.channels, after.stride) == (layer.channels, layer.stride):
            raise PyramidError(
                f"{name} taps layer {layer.index}, but its group of {layer.channels} channels at 1/{layer.stride} goes "
                f"on after it; tap the last layer of the group.\n{table}"
            )
