"""Batch norm over the whole global batch when several processes share it.

Statistics of each process alone would make the result depend on the number of processes. torch's SyncBatchNorm needs
a GPU; :class:`SharedBatchNorm2d` computes the same with any backend.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def share_batch_norms(model: nn.Module) -> int:
    """Make every batch norm share its statistics between the processes; return how many there are.

    Names, parameters and buffers stay as they are. The exchange has a process group of its own, as two processes may
    reach it and the exchange of gradients in different orders.
    """
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    if not norms:
        return 0
    group = dist.new_group()
    shared = {module: _shared(module, group) for module in norms}
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if module in shared:
                setattr(parent, name, shared[module])
    return len(norms)


def _shared(module: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    on_gpu = module.weight is not None and module.weight.device.type == "cuda"
    kind = nn.SyncBatchNorm if on_gpu else SharedBatchNorm2d
    settings = module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    shared = kind(*settings, process_group=group)
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        setattr(shared, name, tensor)
    return shared.train(module.training)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the inputs (N, C, H, W) of all processes together."""

    def __init__(self, *settings: Any, process_group: dist.ProcessGroup) -> None:
        super().__init__(*settings)
        self.group = process_group

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
    """Sum over the processes, as is its gradient."""

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
