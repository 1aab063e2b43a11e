"""Muon: momentum steps with orthogonalized matrices, batched by shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: brings singular values in (0, 1] close to 1 in few iterations
_N_ITERATIONS = 5
_RMS = 0.2  # of the entries of an AdamW step, per learning rate


class Muon(torch.optim.Optimizer):
    """Muon for matrices (Jordan et al., 2024), with steps as large as AdamW's (Liu et al., 2025, arXiv:2502.16982).

    It computes the steps of `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``, but in float32, and with one
    product for all matrices of a shape. torch's works on one matrix at a time: on the many small matrices of a narrow
    student it takes eleven times as long on a CPU (measured: ``benchmarks/results/optimizers.txt``), and on a GPU
    each product is a kernel of its own.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step from the gradients.

        Parameters
        ----------
        closure : None
            Not supported.

        Raises
        ------
        ValueError
            If a closure is given.
        """
        if closure is not None:
            raise ValueError("Muon.step takes no closure; compute the gradients first.")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                directions = [self._direction(each, each.grad, group["momentum"]) for each in parameters]
                size = group["lr"] * _RMS * max(shape) ** 0.5
                for parameter, step in zip(parameters, orthogonal(torch.stack(directions)), strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(step, alpha=size)

    def _direction(self, parameter: torch.nn.Parameter, gradient: Any, momentum: float) -> torch.Tensor:
        """Apply Nesterov's momentum."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(gradient, 1.0 - momentum)
        return gradient.lerp(average, momentum)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Approximate U Vᵀ of each matrix U S Vᵀ, of shape (n, rows, columns), with singular values from 0.7 to 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    X = matrices.mT if tall else matrices
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(_N_ITERATIONS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X
