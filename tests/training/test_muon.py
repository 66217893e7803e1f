"""Muon's matrices are orthogonalised, everything else takes AdamW's steps, and a saved state continues exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.training.test_optimizer import Net, settings
from workbench.training.muon import Muon, orthogonalise
from workbench.training.optimizer import build_optimizer, parameter_groups


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16))


def groups(model: nn.Module, **options: float) -> list[dict]:
    parts = {True: [], False: []}
    for parameter in model.parameters():
        parts[parameter.ndim > 1].append(parameter)
    return [{"params": parts[kind], "matrices": kind, "lr": 0.01, "weight_decay": 0.1, **options} for kind in parts]


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(12, 12), (5, 40), (40, 5), (1, 9)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise(matrix[None])[0] @ vt.T
    values = inner.diagonal()
    assert values.min() > 0.5 and values.max() < 1.3
    assert (inner - values.diag()).abs().max() < 1e-4


def test_zeros_stay_zeros_and_matrices_of_a_batch_do_not_mix() -> None:
    batch = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(0))
    batch[1] = 0
    orthogonal = orthogonalise(batch)
    assert (orthogonal[1] == 0).all()
    torch.testing.assert_close(orthogonal[2], orthogonalise(batch[2:])[0])


def test_vectors_take_adamws_steps_and_matrices_updates_of_the_same_size() -> None:
    model, reference = small(), small()
    run(model, Muon(groups(model)), range(1))
    run(reference, torch.optim.AdamW(groups(reference)), range(1))
    start = dict(small().named_parameters())
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if parameter.ndim == 1:
            assert torch.equal(parameter, other)
        else:  # 0.2 is the root mean square of AdamW's updates once it runs (Liu et al.)
            change = parameter - start[name] * (1 - 0.01 * 0.1)
            assert change.square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.3)


def test_a_loaded_state_continues_bit_for_bit() -> None:
    model = small()
    optimizer = Muon(groups(model))
    run(model, optimizer, range(3))
    continued = copy.deepcopy(model)
    other = Muon(groups(continued))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(model, optimizer, range(3, 6))
    run(continued, other, range(3, 6))
    for a, b in zip(model.parameters(), continued.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_gradient_stays() -> None:
    model = small()
    before = model[3].weight.clone()
    optimizer = Muon(groups(model))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    assert torch.equal(model[3].weight, before)


def test_embeddings_norms_and_biases_are_no_matrices() -> None:
    cfg = settings(SOLVER_OPTIMIZER="MUON", SOLVER_WEIGHT_DECAY_EMBED=0.05)
    model = Net()
    matrices = {name for group in parameter_groups(model, cfg) if group["matrices"] for name in group["names"]}
    assert matrices == {"backbone.0.weight", "decoder.line.weight"}
    assert isinstance(build_optimizer(model, cfg), Muon)
