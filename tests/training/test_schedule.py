"""Learning rates by step: scaling, warm-up, decay."""

from __future__ import annotations

import math

import pytest

from tests.training.toy import config
from workbench.errors import WorkbenchError
from workbench.training.schedule import lr_arithmetic, lr_factor, scale_to_processes, scaled_lr, schedule_arithmetic


def settings(schedule: str = "WarmupMultiStepLR", **changes: object):
    changes = {"SOLVER_WARMUP_ITERS": 0, "SOLVER_MAX_ITER": 100, "SOLVER_STEPS": [60, 80], **changes}
    return config("unused", SOLVER_LR_SCHEDULER_NAME=schedule, **changes)


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.005), ("sqrt", 0.01), ("none", 0.02)])
def test_invariant_9_learning_rate_follows_the_batch(rule: str, expected: float) -> None:
    batch = {"SOLVER_IMS_PER_BATCH": 4, "SOLVER_REFERENCE_BATCH_SIZE": 16}
    cfg = settings(SOLVER_LR_SCALING=rule, SOLVER_BASE_LR=0.02, **batch)
    assert scaled_lr(cfg) == pytest.approx(expected)
    line = lr_arithmetic(cfg)
    assert f"learning rate {expected:g} = BASE_LR 0.02" in line and "4 images a step" in line and rule in line


def test_a_recipe_for_another_number_of_processes_is_scaled_as_detectron2_scales_it() -> None:
    """``auto_scale_workers``: a recipe of eight on two has a quarter of the images and four times the steps."""
    batch = {"SOLVER_IMS_PER_BATCH": 16, "SOLVER_REFERENCE_BATCH_SIZE": 16, "SOLVER_BASE_LR": 0.02}
    cfg = settings(SOLVER_REFERENCE_WORLD_SIZE=8, SOLVER_WARMUP_ITERS=10, TEST_EVAL_PERIOD=50, **batch)
    scaled = scale_to_processes(cfg, 2)
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, list(solver.STEPS), solver.WARMUP_ITERS) == (4, 400, [240, 320], 40)
    assert scaled.TEST.EVAL_PERIOD == 200 and scaled_lr(scaled) == pytest.approx(0.005)
    assert schedule_arithmetic(scaled) == "400 steps of 4 images, as many as in 400 × 4 / 16 = 100 of 16"
    assert scale_to_processes(scaled, 2) is scaled and scale_to_processes(cfg, 8) is cfg
    with pytest.raises(WorkbenchError, match="IMS_PER_BATCH 16 and SOLVER.REFERENCE_WORLD_SIZE 3"):
        scale_to_processes(settings(SOLVER_REFERENCE_WORLD_SIZE=3, **batch), 2)


def test_a_training_that_ends_in_its_warm_up_says_what_rate_it_reaches() -> None:
    short = settings(SOLVER_WARMUP_ITERS=100, SOLVER_WARMUP_FACTOR=0.0, SOLVER_MAX_ITER=51, SOLVER_BASE_LR=0.02)
    line = lr_arithmetic(short)
    assert "never reached, as MAX_ITER 51 ends within the warm-up (WARMUP_ITERS 100): the highest is 0.01" in line
    for cfg in (settings(SOLVER_WARMUP_ITERS=99), settings(SOLVER_WARMUP_ITERS=200, SOLVER_WARMUP_FACTOR=1.0)):
        assert "never reached" not in lr_arithmetic(cfg)


def test_multistep_falls_at_its_steps() -> None:
    cfg = settings(SOLVER_GAMMA=0.1)
    assert [lr_factor(cfg, step) for step in (0, 59, 60, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_steps_beyond_the_end_are_never_reached() -> None:
    assert lr_factor(settings(SOLVER_STEPS=[200]), 99) == 1


def test_cosine_falls_to_its_end() -> None:
    cfg = settings("WarmupCosineLR", SOLVER_BASE_LR=0.02, SOLVER_BASE_LR_END=0.002)
    assert [lr_factor(cfg, step) for step in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    assert lr_factor(cfg, 25) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_poly_falls_to_nothing_or_to_its_constant() -> None:
    assert lr_factor(settings("WarmupPolyLR"), 50) == pytest.approx(0.5**0.9)
    cfg = settings("WarmupPolyLR", SOLVER_POLY_LR_CONSTANT_ENDING=0.3)
    assert [lr_factor(cfg, step) for step in (0, 99)] == pytest.approx([1, 0.3])


@pytest.mark.parametrize("schedule", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"])
def test_warm_up_rises_in_a_line_and_hands_over(schedule: str) -> None:
    warm = settings(schedule, SOLVER_WARMUP_ITERS=10, SOLVER_WARMUP_FACTOR=0.2)
    plain = settings(schedule)
    ratios = [lr_factor(warm, step) / lr_factor(plain, step) for step in (0, 5, 10, 40)]
    assert ratios == pytest.approx([0.2, 0.6, 1, 1])


def plain_factor(cfg, step: int) -> float:
    """The schedules as detectron2's and Mask2Former's own code computes them."""
    solver = cfg.SOLVER
    done, last = step / solver.WARMUP_ITERS if solver.WARMUP_ITERS else 1.0, solver.MAX_ITER
    warm = 1.0 if done >= 1 else solver.WARMUP_FACTOR * (1 - done) + done
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        return warm * solver.GAMMA ** sum(step >= each for each in solver.STEPS)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        return warm * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / last)))
    return warm * max((1 - step / last) ** solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING)


@pytest.mark.parametrize("schedule", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"])
@pytest.mark.parametrize("steps", [7, 100, 3200, 368750])
def test_every_step_has_detectron2s_rate(schedule: str, steps: int) -> None:
    decays = [9 * steps // 10, steps // 2, 2 * steps]  # in no order, one never reached
    ending = {"SOLVER_BASE_LR": 0.02, "SOLVER_BASE_LR_END": 0.0003, "SOLVER_POLY_LR_CONSTANT_ENDING": 0.01}
    warmup = {"SOLVER_WARMUP_ITERS": steps // 3, "SOLVER_WARMUP_FACTOR": 0.01, "SOLVER_STEPS": decays}
    cfg = settings(schedule, SOLVER_MAX_ITER=steps, **ending, **warmup)
    for step in sorted({*range(0, steps, max(1, steps // 500)), *(d + n for d in decays[:2] for n in (-1, 0, 1))}):
        assert lr_factor(cfg, step) == pytest.approx(plain_factor(cfg, step), rel=1e-12, abs=1e-15), step


def test_constant_warm_up_jumps() -> None:
    cfg = settings(SOLVER_WARMUP_ITERS=10, SOLVER_WARMUP_FACTOR=0.2, SOLVER_WARMUP_METHOD="constant")
    assert [lr_factor(cfg, step) for step in (0, 9, 10)] == pytest.approx([0.2, 0.2, 1])
