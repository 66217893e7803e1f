"""Which parameter learns how fast and decays how much, and how gradients are clipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.toy import config
from workbench.training.optimizer import build_optimizer, clip_before_steps, clip_gradients, parameter_groups, set_lr


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.decoder = nn.ModuleDict({"line": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "tied": nn.Linear(4, 4)})
        self.decoder["tied"].weight = self.decoder["line"].weight
        self.query = nn.Embedding(5, 4)
        self.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def settings(**changes: object):
    return config("unused", SOLVER_BASE_LR=0.01, **changes)


def by_name(model: nn.Module, cfg) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(model, cfg)
    return {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}


def test_learning_rate_and_decay_follow_mask2former() -> None:
    cfg = settings(SOLVER_WEIGHT_DECAY=0.05, SOLVER_WEIGHT_DECAY_NORM=0.001, SOLVER_WEIGHT_DECAY_EMBED=0.002)
    found = by_name(Net(), cfg)
    slow, fast = pytest.approx(0.001), pytest.approx(0.01)
    assert found == {
        "backbone.0.weight": (slow, 0.05),
        "backbone.0.bias": (slow, 0.05),
        "backbone.1.weight": (slow, 0.001),
        "backbone.1.bias": (slow, 0.001),
        "backbone.2.weight": (slow, 0.001),
        "backbone.2.bias": (slow, 0.001),
        "decoder.line.weight": (fast, 0.05),
        "decoder.line.bias": (fast, 0.05),
        "decoder.norm.weight": (fast, 0.001),
        "decoder.norm.bias": (fast, 0.001),
        "decoder.tied.bias": (fast, 0.05),
        "query.weight": (fast, 0.002),
        "level_embed": (fast, 0.002),
    }


def test_biases_can_have_their_own_rate_and_decay() -> None:
    found = by_name(Net(), settings(SOLVER_WEIGHT_DECAY_BIAS=0.5, SOLVER_BIAS_LR_FACTOR=2.0))
    assert found["decoder.line.bias"] == (pytest.approx(0.02), 0.5)
    assert found["decoder.norm.bias"][1] == 0.0


def test_there_are_as_few_groups_as_possible() -> None:
    assert len(parameter_groups(Net(), settings())) == 4


@pytest.mark.parametrize(("name", "kind"), [("ADAMW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_a_step_moves_every_group_at_its_own_rate(name: str, kind: type) -> None:
    model = Net()
    optimizer = build_optimizer(model, settings(SOLVER_OPTIMIZER=name, SOLVER_WEIGHT_DECAY=0.0))
    assert isinstance(optimizer, kind)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_lr(optimizer, 0.5)
    optimizer.step()
    moved = {n: float((before[n] - p.detach()).abs().max()) for n, p in model.named_parameters()}
    assert moved["decoder.line.weight"] == pytest.approx(0.005, rel=1e-4)
    assert moved["backbone.0.weight"] == pytest.approx(0.0005, rel=1e-4)
    assert moved["frozen"] == 0


def test_the_fused_kernel_takes_the_steps_of_the_plain_one() -> None:
    images, weights = torch.randn(2, 3, 8, 8), []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, settings())
        assert optimizer.defaults["fused"] is True
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(3):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
        weights.append(model[0].weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def gradients(kind: str, **changes: object) -> tuple[float, list[torch.Tensor]]:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    cfg = settings(**changes).clone()
    cfg.defrost()
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": kind != "off", "CLIP_TYPE": kind, "CLIP_VALUE": 1.0})
    norm = clip_gradients(parameters, cfg)
    return float(norm), [p.grad for p in parameters if p.grad is not None]


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [("full_model", 0.6, 0.8), ("norm", 1.0, 1.0), ("value", 1.0, 1.0), ("off", 3.0, 4.0)],
)
def test_clipping(kind: str, first: float, second: float) -> None:
    norm, (one, two) = gradients(kind)
    assert norm == 5.0
    assert one.tolist() == pytest.approx([first, 0.0], abs=1e-5)
    assert two.tolist() == pytest.approx([second], abs=1e-5)


def test_steps_of_another_loop_are_clipped() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    cfg = settings().clone()
    cfg.defrost()
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 1.0})
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    clip_before_steps(optimizer, cfg)
    for gradient in ([3.0, 4.0], [0.0, 0.0]):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    assert parameter.tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)


def test_a_grad_scaler_divides_by_its_scale_before_another_loop_s_step_is_clipped() -> None:
    moved = []
    for scale in (1.0, 1024.0):
        parameter = nn.Parameter(torch.zeros(2))
        cfg = settings().clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 1.0})
        optimizer = torch.optim.SGD([parameter], lr=1.0, fused=True)
        clip_before_steps(optimizer, cfg)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale((parameter * torch.tensor([3.0, 4.0])).sum()).backward()
        scaler.step(optimizer)
        moved.append(parameter.tolist())
    assert moved[0] == pytest.approx(moved[1], abs=1e-6)
    assert moved[1] == pytest.approx([-0.6, -0.8], abs=1e-5)
