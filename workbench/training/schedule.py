"""Learning rates as a function of the step alone, so that resuming needs no schedule state.

The shapes are detectron2's: a warm-up, then multistep, cosine or polynomial decay over SOLVER.MAX_ITER steps.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode


def scaled_lr(cfg: CfgNode) -> float:
    """Peak learning rate: BASE_LR scaled from REFERENCE_BATCH_SIZE to IMS_PER_BATCH images a step.

    "linear" follows Goyal et al. 2017 (arXiv 1706.02677, section 2.1), "sqrt" is its gentler form for
    adaptive optimisers, "none" keeps BASE_LR.
    """
    ratio = cfg.SOLVER.IMS_PER_BATCH / cfg.SOLVER.REFERENCE_BATCH_SIZE
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[cfg.SOLVER.LR_SCALING]
    return cfg.SOLVER.BASE_LR * factor


def lr_arithmetic(cfg: CfgNode) -> str:
    """One line that shows where the learning rate comes from."""
    solver = cfg.SOLVER
    rate = f"{scaled_lr(cfg):.6g}"
    if solver.LR_SCALING == "none":
        images = solver.IMS_PER_BATCH
        return f"learning rate {rate} = BASE_LR {solver.BASE_LR:g} (LR_SCALING none; {images} images a step)"
    ratio = f"{solver.IMS_PER_BATCH} images a step / {solver.REFERENCE_BATCH_SIZE} reference"
    ratio = f"sqrt({ratio})" if solver.LR_SCALING == "sqrt" else ratio
    return f"learning rate {rate} = BASE_LR {solver.BASE_LR:g} × {ratio} (LR_SCALING {solver.LR_SCALING})"


def lr_factor(cfg: CfgNode, step: int) -> float:
    """What the peak learning rate is multiplied by in step ``step`` (0-based): warm-up times decay."""
    return warmup_factor(cfg, step) * decay_factor(cfg, step)


def warmup_factor(cfg: CfgNode, step: int) -> float:
    """From WARMUP_FACTOR to 1 over WARMUP_ITERS steps; "constant" stays at WARMUP_FACTOR and then jumps."""
    solver = cfg.SOLVER
    if step >= solver.WARMUP_ITERS:
        return 1.0
    if solver.WARMUP_METHOD == "constant":
        return solver.WARMUP_FACTOR
    done = step / solver.WARMUP_ITERS
    return solver.WARMUP_FACTOR * (1 - done) + done


def decay_factor(cfg: CfgNode, step: int) -> float:
    """The decay alone, as SOLVER.LR_SCHEDULER_NAME says; 1 at step 0."""
    solver = cfg.SOLVER
    done = min(step / max(solver.MAX_ITER, 1), 1.0)
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        return solver.GAMMA ** bisect_right(sorted(solver.STEPS), step)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":  # Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5, one period
        end = solver.BASE_LR_END / solver.BASE_LR if solver.BASE_LR else 0.0
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
    if solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        ending = solver.POLY_LR_CONSTANT_ENDING
        factor = (1 - done) ** solver.POLY_LR_POWER
        return max(factor, ending) if ending > 0 else factor
    raise WorkbenchError(f"config key SOLVER.LR_SCHEDULER_NAME: there is no schedule {solver.LR_SCHEDULER_NAME!r}")
