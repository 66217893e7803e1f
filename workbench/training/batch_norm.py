"""Batch norm over the whole global batch when several processes share it.

Per-process statistics would make the result depend on how many processes there are. torch's SyncBatchNorm
needs a GPU; :class:`SharedBatchNorm2d` does the same with any backend.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def share_batch_norms(model: nn.Module) -> int:
    """Make every batch norm share its statistics between the processes; returns how many there are.

    Names, parameters and buffers stay as they are. The exchange has a process group of its own, so that it
    cannot be confused with the gradients' when two processes reach them in another order.
    """
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    found = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if isinstance(module, kinds)
    ]
    if not found:
        return 0
    group = dist.new_group()
    replaced: dict[nn.Module, nn.Module] = {}
    for parent, name, module in found:
        if module not in replaced:
            replaced[module] = _shared(module, group)
        setattr(parent, name, replaced[module])
    return len(replaced)


def _shared(module: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    on_gpu = module.weight is not None and module.weight.device.type == "cuda"
    kind, place = (nn.SyncBatchNorm, {"process_group": group}) if on_gpu else (SharedBatchNorm2d, {"group": group})
    affine, tracking = module.affine, module.track_running_stats
    shared = kind(module.num_features, module.eps, module.momentum, affine, tracking, **place)
    for name, parameter in module.named_parameters(recurse=False):
        setattr(shared, name, parameter)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(shared, name, buffer)
    return shared.train(module.training)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the inputs (N, C, H, W) of all processes together."""

    def __init__(self, num_features, eps, momentum, affine, track_running_stats, *, group: dist.ProcessGroup) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        summed = _Sum.apply(torch.cat([values.sum((0, 2, 3)), count[None]]), self.group)
        mean, total = summed[:-1] / summed[-1], summed[-1]
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3)), self.group) / total
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(variance * total / (total - 1), weight)
        out = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None
