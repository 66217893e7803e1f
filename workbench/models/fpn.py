"""A feature pyramid network (Lin et al., 2017) on top of any backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from workbench.models.backbones import STAGES, PyramidError, check_pyramid, measure


class PyramidBackbone(nn.Module):
    """A backbone and torchvision's FPN; the weights have the names that torchvision's detectors give them.

    Args:
        body: (B, 3, H, W) -> {"res2": ..., "res5": ...}.
        in_features: the maps of ``body`` that the pyramid takes; those that the backbone lacks at its end are left out.
        out_channels: channels of every map.
        norm_layer: normalisation of the convolutions, called with the number of channels; None for none.

    Attributes:
        strides: {"p2": 4, ...}, the stride of each map.
        out_channels: as given.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        in_features: Sequence[str] = STAGES,
        out_channels: int = 256,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        shapes = measure(body)
        check_pyramid(shapes)
        self.in_features = [name for name in STAGES if name in in_features and name in shapes]
        if not self.in_features:
            raise PyramidError(
                f"the backbone gives {', '.join(shapes)}, and the pyramid takes {', '.join(in_features)}"
            )
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            [shapes[name].channels for name in self.in_features], out_channels, LastLevelMaxPool(), norm_layer
        )
        self.out_channels = out_channels
        strides = [shapes[name].stride for name in self.in_features]
        levels = [STAGES.index(name) + 2 for name in self.in_features]
        names = [f"p{level}" for level in (*levels, levels[-1] + 1)]
        self.strides = dict(zip(names, (*strides, 2 * strides[-1]), strict=True))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"p2": (B, out_channels, H/4, W/4), ..., "p6": ...}; the last is every second pixel of the
        one before it."""
        features = self.body(images)
        maps = self.fpn({name: features[name] for name in self.in_features})
        return dict(zip(self.strides, maps.values(), strict=True))
