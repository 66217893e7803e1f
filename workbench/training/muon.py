"""Muon for a network's weight matrices, AdamW for the rest of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.AdamW):
    """Orthogonalised momentum (Jordan et al., 2024) with updates of AdamW's size (Liu et al., 2025, section 2.2).

    A parameter of a group with ``"matrices": True`` is seen as a matrix of outputs by inputs: a convolution's weight
    (out, in, h, w) as (out, in h w). Its Nesterov momentum is replaced by a matrix of the same singular vectors whose
    singular values are near 1, times 0.2 sqrt(max(rows, columns)). The entries then have the root mean square of
    AdamW's updates, so one learning rate and one weight decay serve all groups; the other groups take AdamW's steps.
    (``torch.optim.Muon`` takes no convolutions and nothing beside matrices.)

    Args:
        groups: parameter groups with ``lr``, ``weight_decay`` and ``matrices``.
        momentum: of the gradients of matrices.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float = 0.95):
        # AdamW's fused kernel would take over the scaler's search for non-finite gradients, which matrices need too.
        super().__init__(groups, fused=False)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; ``closure`` as for every torch optimiser."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Matrices of one shape are orthogonalised together."""
        by_shape: dict[tuple, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if not self.state[parameter]:  # AdamW wants a step in every state that it loads
                self.state[parameter].update(step=torch.tensor(0.0), momentum=torch.zeros_like(parameter))
            by_shape[len(parameter), parameter[0].numel(), parameter.device].append(parameter)
        for (rows, columns, _), parameters in by_shape.items():
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
            nesterov = torch._foreach_lerp(gradients, momenta, self.momentum)
            matrices = orthogonalise(torch.stack([each.reshape(rows, columns) for each in nesterov]))
            scale = 0.2 * max(rows, columns) ** 0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, matrix in zip(parameters, matrices, strict=True):
                parameter.add_(matrix.view_as(parameter), alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of (N, R, C) matrices near 1 (0.7 to 1.2), keeping their singular vectors.

    A step of Newton and Schulz's iteration is X -> a X + b (X Xt) X + c (X Xt)^2 X, with the coefficients of
    Jordan et al. (2024), which rise fastest from 0. A matrix of zeros stays zero.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    transposed = x.shape[-2] > x.shape[-1]
    if transposed:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if transposed else x
