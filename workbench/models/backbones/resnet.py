"""torchvision's ResNet without its classifier."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models import resnet

from workbench.models.backbones.pyramid import STAGES, freeze_stages

_BUILDERS = {18: resnet.resnet18, 34: resnet.resnet34, 50: resnet.resnet50, 101: resnet.resnet101}


class ResNetBackbone(nn.Module):
    """ResNet (He et al., 2016), four stages.

    Args:
        depth: 18, 34, 50 or 101.
        dilated: for res3, res4 and res5, whether dilation replaces the stage's stride (50 and 101 only).
        norm_layer: normalisation, called with the number of channels.
        stride_in_1x1: stages stride in the first convolution of a unit, as MSRA's networks do, not in the second.
        freeze_at: 1 freezes the stem, 2 res2 as well, up to 5; 0 freezes nothing.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        dilated: tuple[bool, bool, bool] = (False, False, False),
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        stride_in_1x1: bool = False,
        freeze_at: int = 0,
    ):
        super().__init__()
        if depth not in _BUILDERS:
            raise ValueError(f"there is no ResNet of depth {depth}, only of {', '.join(map(str, _BUILDERS))}")
        extra = {"replace_stride_with_dilation": list(dilated)} if any(dilated) else {}
        network = _BUILDERS[depth](weights=None, norm_layer=norm_layer, **extra)
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(network, name))
        if stride_in_1x1 and depth >= 50:
            for unit in (self.layer2[0], self.layer3[0], self.layer4[0]):
                unit.conv1.stride, unit.conv2.stride = unit.conv2.stride, unit.conv1.stride
        freeze_stages(self, [("conv1", "bn1"), *((f"layer{index}",) for index in range(1, 5))], freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> res2 to res5 at 1/4 to 1/32 (less when dilated)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = {}
        for name, stage in zip(STAGES, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            x = outputs[name] = stage(x)
        return outputs
