"""A ResNet small enough to train from random weights on two CPU cores in minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.backbones.pyramid import STAGES, freeze_stages


def _conv(inputs: int, outputs: int, stride: int, norm_layer: Callable[[int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), norm_layer(outputs))


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm_layer: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride, norm_layer)
        self.conv2 = _conv(outputs, outputs, 1, norm_layer)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                norm_layer(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Basic residual blocks after a stem of two 3x3 convolutions (ResNet-D's changes, He et al., 2019).

    Args:
        widths: channels of res2 to res5; the stem has half the first. Three widths end it at res4, where small
            images would leave nothing to see at stride 32.
        depths: blocks of each stage.
        norm_layer: normalisation, called with the number of channels.
        freeze_at: 1 freezes the stem, 2 res2 as well, and so on; 0 freezes nothing.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 96, 128),
        depths: Sequence[int] = (1, 1, 1, 1),
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        freeze_at: int = 0,
    ):
        super().__init__()
        stem = widths[0] // 2
        self.stem = nn.Sequential(
            _conv(3, stem, 2, norm_layer),
            nn.ReLU(inplace=True),
            _conv(stem, widths[0], 2, norm_layer),
            nn.ReLU(inplace=True),
        )
        inputs = widths[0]
        self.stages = nn.ModuleList()
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(_BasicBlock(inputs, width, stride, norm_layer))
                inputs = width
            self.stages.append(nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        freeze_stages(self, [("stem",), *((f"stages.{index}",) for index in range(len(widths)))], freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res2": (B, widths[0], H/4, W/4), ...}, a map for each width."""
        x = self.stem(x)
        outputs = {}
        for name, stage in zip(STAGES, self.stages, strict=False):
            x = outputs[name] = stage(x)
        return outputs
