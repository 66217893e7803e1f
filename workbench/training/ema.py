"""Exponential moving average of a model's weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an average of a model's parameters and floating-point buffers; other buffers (counters) are copied.

    It starts from the present weights. Batch norm statistics are averaged along with the weights they belong to.
    ``update_parameters(model)`` moves it with a decay that rises with the updates n, min(decay, (1 + n) / (10 + n)),
    so that a short run is not held back by its random start.

    Returns:
        the average, whose ``module`` is a copy of ``model`` in eval mode; its ``n_averaged`` is updates + 1, as the
        present weights count as one.
    """
    average = AveragedModel(model, multi_avg_fn=partial(_update, decay), use_buffers=True)
    average.n_averaged.fill_(1)
    return average.eval().requires_grad_(False)


def _update(decay: float, averages: list[Tensor], values: list[Tensor], n_averaged: Tensor) -> None:
    """Update tensors of one dtype; the n-th update sees ``n_averaged`` n."""
    if averages[0].is_floating_point():
        updates = int(n_averaged)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + updates) / (10 + updates)))
    else:
        torch._foreach_copy_(averages, values)
