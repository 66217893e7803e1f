"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from workbench.training.ema import moving_average


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_the_average_follows_its_definition() -> None:
    net = model()
    average = moving_average(net, decay=0.5)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for update in range(1, 30):
        net(torch.randn(4, 2) + update)  # moves the statistics of the batch norm
        with torch.no_grad():
            net[0].weight += 1.0
        average.update_parameters(net)
        decay = min(0.5, (1 + update) / (10 + update))
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                expected[name] = torch.lerp(expected[name], value, 1 - decay)
    found = average.module.state_dict()
    assert int(found["1.num_batches_tracked"]) == 29 and found["1.num_batches_tracked"].dtype == torch.int64
    assert all(torch.equal(found[n], value) for n, value in expected.items() if value.is_floating_point())
    assert not torch.equal(found["1.running_mean"], net[1].running_mean)


def test_a_long_decay_does_not_hold_a_short_run_back() -> None:
    net = model()
    nn.init.zeros_(net[0].weight)
    average = moving_average(net, decay=0.9999)
    nn.init.ones_(net[0].weight)
    for _ in range(20):
        average.update_parameters(net)
    assert average.module[0].weight.min() > 0.99


def test_the_average_is_a_model_of_its_own_that_is_not_trained() -> None:
    net = model()
    average = moving_average(net, decay=0.9)
    nn.init.constant_(net[0].weight, 5.0)
    assert average.module[0].weight.max() < 5.0
    assert not average.module.training and net.training
    assert not any(p.requires_grad for p in average.parameters()) and all(p.requires_grad for p in net.parameters())
