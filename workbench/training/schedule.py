"""Learning rates as a function of the step alone, so that resuming needs no schedule state.

The shapes are detectron2's, made of fvcore's schedules: a warm-up times a multistep, cosine or polynomial decay over
SOLVER.MAX_ITER steps.
"""

from __future__ import annotations

import math
from functools import partial

from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    PolynomialDecayParamScheduler,
)

from workbench.config import follow
from workbench.errors import WorkbenchError, counted


def scaled_lr(cfg: CfgNode) -> float:
    """Return the peak learning rate: BASE_LR scaled from REFERENCE_BATCH_SIZE to IMS_PER_BATCH images a step.

    "linear" follows Goyal et al. 2017 (arXiv 1706.02677, section 2.1), "sqrt" is its gentler form for
    adaptive optimisers, "none" keeps BASE_LR.
    """
    ratio = cfg.SOLVER.IMS_PER_BATCH / cfg.SOLVER.REFERENCE_BATCH_SIZE
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[cfg.SOLVER.LR_SCALING]
    return cfg.SOLVER.BASE_LR * factor


def lr_arithmetic(cfg: CfgNode) -> str:
    """Return one line that shows where the learning rate comes from, and whether it is reached."""
    solver = cfg.SOLVER
    rate = f"{scaled_lr(cfg):.6g}"
    if solver.LR_SCALING == "none":
        images = solver.IMS_PER_BATCH
        line = f"learning rate {rate} = BASE_LR {solver.BASE_LR:g} (LR_SCALING none; {counted(images, 'image')} a step)"
    else:
        ratio = f"{counted(solver.IMS_PER_BATCH, 'image')} a step / {solver.REFERENCE_BATCH_SIZE} reference"
        ratio = f"sqrt({ratio})" if solver.LR_SCALING == "sqrt" else ratio
        line = f"learning rate {rate} = BASE_LR {solver.BASE_LR:g} × {ratio} (LR_SCALING {solver.LR_SCALING})"
    return line + _unreached(cfg)


def _unreached(cfg: CfgNode) -> str:
    """Return how the sentence on the learning rate ends where the training is over before the warm-up is."""
    solver = cfg.SOLVER
    if solver.MAX_ITER > solver.WARMUP_ITERS or not solver.MAX_ITER:
        return ""
    most = max(lr_factor(cfg, step) for step in range(solver.MAX_ITER))
    if most >= 1:
        return ""
    return (
        f"; it is never reached, as MAX_ITER {solver.MAX_ITER} ends within the warm-up (WARMUP_ITERS "
        f"{solver.WARMUP_ITERS}): the highest is {most * scaled_lr(cfg):.3g}"
    )


def schedule_arithmetic(cfg: CfgNode) -> str:
    """Return one line that compares the steps with those of the reference batch."""
    solver = cfg.SOLVER
    steps, images, reference = solver.MAX_ITER, solver.IMS_PER_BATCH, solver.REFERENCE_BATCH_SIZE
    line = f"{counted(steps, 'step')} of {counted(images, 'image')}"
    if images != reference and solver.LR_SCALING != "none":
        line += f", as many as in {steps} × {images} / {reference} = {steps * images / reference:.6g} of {reference}"
    return line


def scale_to_processes(cfg: CfgNode, processes: int) -> CfgNode:
    """Return the config for this number of processes, as detectron2's ``auto_scale_workers`` does.

    Where SOLVER.REFERENCE_WORLD_SIZE names another number, IMS_PER_BATCH changes in proportion, the learning rate with
    it as LR_SCALING says, and the steps of the schedule in inverse proportion.

    Raises:
        WorkbenchError: IMS_PER_BATCH does not divide among the reference's processes.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, processes):
        return cfg
    images, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, reference)
    if rest:
        raise WorkbenchError(
            f"config keys SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} and SOLVER.REFERENCE_WORLD_SIZE {reference}: "
            "the images of a step do not divide among that many processes"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE = images * processes, processes
    if cfg.SOLVER.LR_SCALING != "none":
        follow(cfg, reference / processes)
    cfg.freeze()
    return cfg


def lr_factor(cfg: CfgNode, step: int) -> float:
    """Return what the peak learning rate is multiplied by in step ``step`` (0-based): warm-up times decay.

    The warm-up goes from WARMUP_FACTOR to 1 in a line over WARMUP_ITERS steps; "constant" stays at WARMUP_FACTOR
    and then jumps.

    Raises:
        WorkbenchError: SOLVER.LR_SCHEDULER_NAME is not known.
    """
    solver = cfg.SOLVER
    factor = _decay(cfg)(min(step / max(solver.MAX_ITER, 1), 1.0))
    if solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        factor = max(factor, solver.POLY_LR_CONSTANT_ENDING)
    if step >= solver.WARMUP_ITERS:
        return factor
    constant = solver.WARMUP_METHOD == "constant"
    warmup = ConstantParamScheduler if constant else partial(LinearParamScheduler, end_value=1.0)
    return warmup(solver.WARMUP_FACTOR)(step / solver.WARMUP_ITERS) * factor


def _decay(cfg: CfgNode) -> ParamScheduler:
    """Return the decay that SOLVER.LR_SCHEDULER_NAME names, a function of the done share of training; 1 at 0."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = sorted(step for step in solver.STEPS if step < solver.MAX_ITER)  # fvcore refuses later ones
        values = [solver.GAMMA**number for number in range(len(steps) + 1)]
        return MultiStepParamScheduler(values, milestones=steps, num_updates=max(solver.MAX_ITER, 1))
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":  # Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5, one period
        return CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR if solver.BASE_LR else 0.0)
    if solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        return PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER)
    raise WorkbenchError(f"config key SOLVER.LR_SCHEDULER_NAME: there is no schedule {solver.LR_SCHEDULER_NAME!r}")
