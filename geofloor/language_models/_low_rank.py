"""Approximate a teacher's logits by logits of low rank."""

from __future__ import annotations

import torch

from geofloor.language_models._divergence import LazyLogits, Targets

_NO_SIGNAL = 1e-6  # singular values below this share of the norm of all logits are rounding


class LowRankLogits:
    """Best approximations of a teacher's logits by logits of low rank.

    Errors are squared and weighted by the mean probability of each token. Logits are divided by the temperature and
    centered over tokens and positions, since a bias gives their mean.

    Parameters
    ----------
    targets : Targets
        The teacher's distributions.
    """

    def __init__(self, targets: Targets) -> None:
        source, self._temperature = targets.source, targets.temperature
        self.mean_probabilities = mean_probabilities(targets)
        rows = source.rows.to(targets.dtype) / self._temperature
        scale = rows.norm()
        center = rows.mean(dim=0)
        rows = rows - center
        roots = self.mean_probabilities.sqrt()
        if source.weight is None:
            self._bias = center
            self._right = None
            rows = rows - (rows @ self.mean_probabilities)[:, None]
            left, sizes, _ = torch.linalg.svd(rows * roots, full_matrices=False)
        else:
            weight = source.weight.to(targets.dtype)
            scale = scale * (weight * roots[:, None]).norm()
            self._bias = weight @ center
            if source.bias is not None:
                self._bias = self._bias + source.bias / self._temperature
            self._right = weight - self.mean_probabilities @ weight
            basis, upper = torch.linalg.qr(rows)
            left, sizes, _ = torch.linalg.svd(upper @ torch.linalg.qr(self._right * roots[:, None]).R.T)
            left = basis @ left
        self._rows, self._left, self._sizes = rows, left, sizes
        self.rank = int((sizes > _NO_SIGNAL * scale).sum())

    def student(self, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rows, unembedding matrix and bias of a given rank.

        The matrix's columns are orthonormal, weighted by the mean probability of each token, so that the problem of
        the rows is well conditioned.
        """
        if not width:
            # The best single distribution for all positions.
            bias = self._temperature * self.mean_probabilities.clamp_min(1e-30).log()
            return self._rows.new_zeros(len(self._rows), 1), self._rows.new_zeros(len(bias), 1), bias
        left, sizes = self._left[:, :width], self._sizes[:width]
        weight = self._rows.T @ left / sizes
        if self._right is not None:
            weight = self._right @ weight
        return left * (sizes * self._temperature), weight, self._bias * self._temperature


def without_masked_tokens(parts: list[LazyLogits]) -> list[LazyLogits]:
    """Leave out tokens with logit −inf at all positions, and refuse other logits of infinite size or NaN.

    Students need no dimension for these tokens, since a bias of −inf gives their logits.
    """
    if parts[0].weight is None:
        masked = torch.stack([part.rows.isneginf().all(dim=0) for part in parts]).all(dim=0)
    else:
        masked = parts[0].rows.new_zeros(parts[0].n_vocabulary) if parts[0].bias is None else parts[0].bias
        masked = masked.isneginf()
    if bool(masked.any()):
        kept = torch.nonzero(~masked)[:, 0]
        parts = [
            LazyLogits(part.rows[:, kept])
            if part.weight is None
            else LazyLogits(part.rows, part.weight[kept], None if part.bias is None else part.bias[kept])
            for part in parts
        ]
    for part in parts:
        for tensor in part:
            if tensor is None or bool(torch.isfinite(tensor).all()):
                continue
            if part.weight is None and bool(tensor.amax(dim=1).isfinite().all()):
                raise ValueError(
                    "The teacher's logits are −inf for some tokens at some positions only, and logits of low rank "
                    "can't follow; give the logits before they are masked."
                )
            raise ValueError("The teacher's logits are not finite; check its weights.")
    return parts


@torch.no_grad()
def mean_probabilities(targets: Targets) -> torch.Tensor:
    """Average the teacher's distributions over positions."""
    total = torch.zeros(targets.source.n_vocabulary, dtype=targets.dtype, device=targets.source.rows.device)
    for index in range(len(targets.chunks)):
        total += targets.chunk(index)[0].sum(dim=0)
    return total / len(targets.source.rows)


@torch.no_grad()
def project_logits(
    targets: Targets, weight: torch.Tensor, bias: torch.Tensor, probabilities: torch.Tensor | None = None
) -> torch.Tensor:
    """Project a teacher's logits onto an unembedding: least squares, weighted by the mean probability of each token."""
    mean = mean_probabilities(targets) if probabilities is None else probabilities
    weighted = (weight - mean @ weight) * mean[:, None]
    weighted = weighted @ torch.linalg.pinv(weighted.T @ weight, hermitian=True)
    source = targets.source
    if source.weight is None:
        return torch.cat([(source.compute(chunk, 1.0) - bias) @ weighted for chunk in targets.chunks])
    offset = bias if source.bias is None else bias - source.bias
    return source.rows.to(targets.dtype) @ (source.weight.to(targets.dtype).T @ weighted) - offset @ weighted
