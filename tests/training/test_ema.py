"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from workbench.training.ema import WeightAverage


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_the_average_follows_its_definition() -> None:
    net = model()
    average = WeightAverage(net, decay=0.5)
    expected = net[0].weight.detach().clone()
    for update in range(1, 30):
        with torch.no_grad():
            net[0].weight += 1.0
        net[1].num_batches_tracked += 1
        average.update(net)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    assert average.weights["0.weight"].flatten().tolist() == pytest.approx(expected.flatten().tolist())
    assert int(average.weights["1.num_batches_tracked"]) == 29


def test_a_long_decay_does_not_hold_a_short_run_back() -> None:
    net = model()
    nn.init.zeros_(net[0].weight)
    average = WeightAverage(net, decay=0.9999)
    nn.init.ones_(net[0].weight)
    for _ in range(20):
        average.update(net)
    assert average.weights["0.weight"].min() > 0.99


def test_the_weights_are_lent_and_given_back_even_after_an_error() -> None:
    net = model()
    average = WeightAverage(net, decay=0.9)
    nn.init.constant_(net[0].weight, 5.0)
    with pytest.raises(RuntimeError), average.applied(net):
        assert torch.equal(net[0].weight, average.weights["0.weight"])
        raise RuntimeError
    assert torch.equal(net[0].weight, torch.full((2, 2), 5.0))
