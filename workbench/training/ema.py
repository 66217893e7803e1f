"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of the floating-point entries of a model's state dict; the others (counters) are copied.

    The decay rises with the steps, min(decay, (1 + n) / (10 + n)), so that a short run is not held back by
    its random start. Batch norm statistics are averaged along with the weights they belong to.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.weights[name])
                values.append(value)
            else:
                self.weights[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Lend the averaged weights to the model; its own come back at the end."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, int]:
        """The counter; the weights themselves are the checkpoint's model.safetensors."""
        return {"updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, int], weights: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's counter and averaged weights."""
        self.updates = int(state["updates"])
        for name, value in self.weights.items():
            value.copy_(weights[name])
