"""Optimiser with Mask2Former's parameter rules, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from workbench.training.muon import Muon
from workbench.training.schedule import scaled_lr

# _NormBase: every batch and instance norm
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# Learned positions, which are parameters and not ``nn.Embedding``, but decay as embeddings do.
_TABLES = ("level_embed", "relative_position_bias_table", "absolute_pos_embed")


def parameter_groups(model: nn.Module, cfg: CfgNode) -> list[dict]:
    """Return groups of parameters that share a learning rate and a weight decay, as few as possible.

    Parameters under ``backbone.`` learn at BACKBONE_MULTIPLIER times the rate; norm layers decay by
    WEIGHT_DECAY_NORM, ``nn.Embedding`` and position tables by WEIGHT_DECAY_EMBED, biases by WEIGHT_DECAY_BIAS
    where it is set. Frozen parameters are left out; a parameter shared by two modules is listed once. ``names`` are
    those of ``params``. For Muon, ``matrices`` tells weights of linear layers and convolutions from the rest.
    """
    solver = cfg.SOLVER
    base = scaled_lr(cfg)
    groups: dict[tuple, dict] = {}
    seen: set[Tensor] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr, decay = base, solver.WEIGHT_DECAY
            if name == "bias":
                lr *= solver.BIAS_LR_FACTOR
                decay = decay if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
            if isinstance(module, _NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            table = isinstance(module, nn.Embedding) or name in _TABLES
            if table:
                decay = solver.WEIGHT_DECAY_EMBED
            full_name = f"{module_name}.{name}" if module_name else name
            if full_name.startswith("backbone."):
                lr *= solver.BACKBONE_MULTIPLIER
            # Each filter of a grouped convolution sees inputs of its own: together they are no matrix.
            matrix = parameter.ndim > 1 and not table and getattr(module, "groups", 1) == 1
            options = {"lr": lr, "weight_decay": decay, **({"matrices": matrix} if solver.OPTIMIZER == "MUON" else {})}
            group = groups.setdefault(tuple(options.values()), {"params": [], "names": [], **options})
            group["params"].append(parameter)
            group["names"].append(full_name)
    return list(groups.values())


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """Return SOLVER.OPTIMIZER over :func:`parameter_groups`; each group keeps its peak rate as ``initial_lr``.

    AdamW takes torch's fused kernel, which needs each gradient in the memory format of its parameter. Gradients that
    autograd accumulates are.
    """
    groups = [{**group, "initial_lr": group["lr"]} for group in parameter_groups(model, cfg)]
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV)
    return Muon(groups) if cfg.SOLVER.OPTIMIZER == "MUON" else torch.optim.AdamW(groups, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def clip_gradients(parameters: Iterable[Tensor], cfg: CfgNode) -> Tensor:
    """Clip gradients in place as SOLVER.CLIP_GRADIENTS says; return their norm before that, 0-d float.

    CLIP_TYPE "full_model" scales all gradients together to CLIP_VALUE (Mask2Former's), "norm" those of each
    parameter, "value" clamps every number.
    """
    parameters = [p for p in parameters if p.grad is not None]
    clip = cfg.SOLVER.CLIP_GRADIENTS
    norm = nn.utils.get_total_norm([p.grad for p in parameters], clip.NORM_TYPE)
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        nn.utils.clip_grads_with_norm_(parameters, clip.CLIP_VALUE, norm)
    elif clip.ENABLED and clip.CLIP_TYPE == "norm":
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
    elif clip.ENABLED:
        nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
    return norm


def clip_before_steps(optimizer: torch.optim.Optimizer, cfg: CfgNode) -> None:
    """Let an optimiser whose steps another loop takes clip its gradients first, see :func:`clip_gradients`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip(*_: object) -> None:
        clip_gradients(parameters, cfg)

    optimizer.register_step_pre_hook(clip)
    # Otherwise a GradScaler leaves it to fused kernels to divide by the scale, which is after this clipping.
    optimizer._step_supports_amp_scaling = False
