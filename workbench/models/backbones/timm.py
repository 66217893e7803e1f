"""Any of timm's models that gives feature maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

import timm
from timm.models import is_model
from torch import Tensor, nn

from workbench.models.backbones.pyramid import STAGES, PyramidError, dry_run

_STRIDES = (4, 8, 16, 32)
_SIZE = 256, 352  # height and width of the trial: not square, and no whole number of windows of 7 or 12


class TimmBackbone(nn.Module):
    """One of timm's models without its classifier.

    Args:
        name: timm's name of the model, such as ``convnext_tiny`` or ``resnet50.a1_in1k``.
        pretrained: load the weights that timm publishes under that name; it downloads them where they are not cached.

    Raises:
        PyramidError: timm has no model of that name, or its feature maps lack one of the four strides, or it takes
            images of one size only.
    """

    def __init__(self, name: str, *, pretrained: bool = False):
        super().__init__()
        if not is_model(name):
            raise PyramidError(f"timm {timm.__version__} has no model {name!r}")
        self.network = self._create(name, pretrained)
        reductions = self.network.feature_info.reduction()
        if not set(_STRIDES) <= set(reductions):
            raise PyramidError(f"timm's {name} has feature maps at strides {reductions}, not at all of {_STRIDES}")
        # Of several maps of one stride the last has seen the most of the network.
        self.taps = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in _STRIDES]
        try:
            maps = dry_run(self.network, *_SIZE)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise PyramidError(f"timm's {name} does not take images of every size: {error}") from None
        self.channels_last = tuple(maps[self.taps[0]].shape[1:3]) == tuple(side // _STRIDES[0] for side in _SIZE)

    @staticmethod
    def _create(name: str, pretrained: bool) -> nn.Module:
        try:  # models with windows are made for one size of image unless they are told otherwise
            return timm.create_model(name, features_only=True, pretrained=pretrained, strict_img_size=False)
        except TypeError:  # the others do not know the option
            return timm.create_model(name, features_only=True, pretrained=pretrained)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> res2 to res5 at 1/4 to 1/32."""
        maps = self.network(x)
        maps = [maps[tap].permute(0, 3, 1, 2).contiguous() if self.channels_last else maps[tap] for tap in self.taps]
        return dict(zip(STAGES, maps, strict=True))
