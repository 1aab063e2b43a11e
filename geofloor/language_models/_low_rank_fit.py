"""Fit logits of low rank to a teacher's distributions: rows by conjugate gradients, the unembedding in minibatches."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from geofloor._training.schedules import warmup_cosine
from geofloor.language_models._divergence import LazyLogits, Targets

MINIBATCH = 256  # positions per step of the unembedding, rounded up to whole chunks
_MAX_ROW_STEPS = 20
_ROW_GAIN = 1e-2  # steps of a chunk end when the last one lowered its loss by less than this share
_REACH = 1.0  # largest rise of a logit in one step, in units of the temperature
_SCALE = 0.045  # step of Adam, per root of the loss at the start
_WARMUP_STEPS = 10
_BETAS = (0.9, 0.99)
_STEPS = 20, 200  # fewest and most steps, if their number is not given
_OPERATIONS = 1.6e12  # of all steps; beyond, fewer than the most
_SOFTMAX = 150  # width at which the products of a step take as long as the rest of it, measured on a CPU


def default_steps(n_vocabulary: int, width: int) -> int:
    """Choose a number of steps: fewer where a step is long, since wide logits start near their minimum."""
    fewest, most = _STEPS
    return min(max(round(_OPERATIONS / (8 * n_vocabulary * (width + _SOFTMAX) * MINIBATCH)), fewest), most)


class _Found(NamedTuple):
    """Rows of one chunk and their losses."""

    rows: torch.Tensor  # (n, width), the best of the start and of all steps
    start: torch.Tensor  # (n,) losses before the first step
    losses: torch.Tensor  # (n,) losses of `rows`
    last: torch.Tensor  # (n, width), rows after the last step
    is_best: torch.Tensor  # (n,) whether the last step ended at the best rows


class LowRankFit:
    """Minimize the KL of logits of low rank from a teacher's distributions.

    Chunks of positions share three buffers, so that memory holds a few chunks of logits at a time.

    Parameters
    ----------
    targets : Targets
        The teacher's distributions.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        size = max(chunk.stop - chunk.start for chunk in targets.chunks)
        like = targets.source.rows
        self._buffers = torch.empty(3, size, targets.source.n_vocabulary, dtype=targets.dtype, device=like.device)

    @torch.no_grad()
    def refine_rows(self, student: LazyLogits, n_chunks: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Minimize over the rows alone, a convex problem for each position.

        Parameters
        ----------
        student : LazyLogits
            Rows to start from, unembedding matrix and bias. It is not changed.
        n_chunks : int, default=None
            Number of chunks to refine, the first ones; by default all.

        Returns
        -------
        rows : Tensor of shape (n_rows, width)
            The best rows found, never worse than those given.
        losses : Tensor of shape (n_rows,)
            KL of each row.
        """
        found = [
            self._descend(student, index, _MAX_ROW_STEPS, gain=_ROW_GAIN)
            for index in range(len(self.targets.chunks[:n_chunks]))
        ]
        return torch.cat([each.rows for each in found]), torch.cat([each.losses for each in found])

    @torch.no_grad()
    def losses(self, student: LazyLogits, n_chunks: int | None = None) -> torch.Tensor:
        """Compute the KL of each row of the first chunks, (n_rows,)."""
        return torch.cat(
            [self._descend(student, index, 0).losses for index in range(len(self.targets.chunks[:n_chunks]))]
        )

    @torch.no_grad()
    def fit(self, student: LazyLogits, n_steps: int, generator: np.random.Generator) -> None:
        """Minimize over rows, unembedding matrix and bias, in place.

        Each step moves the rows of a minibatch by conjugate gradients, then the unembedding by Adam. Adam's first step
        is a share of the root of the loss at the start, since the error of logits is of that size.

        Parameters
        ----------
        student : LazyLogits
            Start, with an unembedding matrix whose columns have a weighted mean square of 1.
        n_steps : int
            Number of minibatches. Every position is drawn once before any is drawn again.
        generator : numpy.random.Generator
            Order of the minibatches.
        """
        rows, weight, bias = student
        assert weight is not None and bias is not None  # noqa: PT018 - for mypy
        temperature = self.targets.temperature
        parameters = [weight, bias]
        gradients, means, squares = ([torch.zeros_like(each) for each in parameters] for _ in range(3))
        per_step = -(-MINIBATCH // self.targets.chunk_rows)
        order: list[int] = []
        step_size = 0.0
        for step in range(n_steps):
            if not order:
                order = generator.permutation(len(self.targets.chunks)).tolist()
            drawn, order = order[:per_step], order[per_step:]
            for each in gradients:
                each.zero_()
            n_rows, total = 0, 0.0
            for index in drawn:
                chunk = self.targets.chunks[index]
                found = self._descend(student, index, 1)
                rows[chunk] = found.rows
                self._add_gradients(found, gradients)
                n_rows += len(found.rows)
                total += float(found.losses.sum())
            if not step:
                step_size = _SCALE * temperature * math.sqrt(max(total / n_rows, 0.0))
            factor = warmup_cosine(step, n_steps=n_steps, warmup_steps=min(_WARMUP_STEPS, n_steps // 2))
            corrections = [1.0 - beta ** (step + 1) for beta in _BETAS]
            for parameter, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
                gradient.div_(n_rows)
                mean.lerp_(gradient, 1.0 - _BETAS[0])
                square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1.0 - _BETAS[1])
                root = torch.div(square, corrections[1], out=gradient).sqrt_().add_(1e-30)
                parameter.addcdiv_(mean, root, value=-factor * step_size / corrections[0])

    def _add_gradients(self, found: _Found, gradients: list[torch.Tensor]) -> None:
        """Add the gradients on the unembedding, from the softmax that the last step left in a buffer.

        Positions whose last step failed are left out.
        """
        n = len(found.last)
        difference = self._buffers[1, :n].sub_(self._probabilities)
        kept = found.is_best.to(difference.dtype)
        gradients[0].addmm_(difference.T, found.last * kept[:, None] / self.targets.temperature)
        gradients[1].add_(kept @ difference, alpha=1.0 / self.targets.temperature)

    def _descend(self, student: LazyLogits, index: int, n_steps: int, *, gain: float = 0.0) -> _Found:
        """Minimize over the rows of a chunk by conjugate gradients (Polak and Ribière), each row for itself.

        A step goes to the minimum of the quadratic model along its direction, but raises no logit by more than
        `_REACH` over their mean: beyond, the model underestimates the loss.
        """
        probabilities, negative_entropy = self.targets.chunk(index)
        self._probabilities = probabilities  # for the gradients on the unembedding
        weight, bias = student.weight, student.bias
        assert weight is not None and bias is not None  # noqa: PT018 - for mypy
        temperature = self.targets.temperature
        rows = student.rows[self.targets.chunks[index]] / temperature
        logits, softmax, spare = self._buffers[:, : len(rows)]
        torch.mm(rows, weight.T, out=logits).add_(bias / temperature)
        tiny = torch.finfo(rows.dtype).tiny
        previous: tuple[torch.Tensor, torch.Tensor] | None = None
        for step in range(n_steps + 1):
            largest = logits.amax(dim=1)
            torch.sub(logits, largest[:, None], out=softmax).exp_()
            total = softmax.sum(dim=1)
            softmax.div_(total[:, None])
            losses = negative_entropy - torch.linalg.vecdot(probabilities, logits) + largest + total.log()
            if not step:
                start, best, best_rows = losses, losses, rows
                is_best = torch.ones_like(losses, dtype=torch.bool)
            else:
                is_best = losses <= best
                before = best.sum()
                best_rows = torch.where(is_best[:, None], rows, best_rows)
                best = torch.minimum(best, losses)
                if gain and before - best.sum() < gain * before:
                    break
            if step == n_steps:
                break
            gradient = torch.sub(softmax, probabilities, out=spare) @ weight
            direction = -gradient
            if previous is not None:
                numerator = ((gradient - previous[0]) * gradient).sum(dim=1)
                share = (numerator / previous[0].square().sum(dim=1).clamp_min(tiny)).clamp_min(0.0)
                conjugate = direction + share[:, None] * previous[1]
                falls = (conjugate * gradient).sum(dim=1) < 0
                direction = torch.where(falls[:, None], conjugate, direction)
            change = torch.mm(direction, weight.T, out=spare)
            mean = torch.linalg.vecdot(softmax, change)
            reach = change.amax(dim=1) - mean
            curvature = torch.linalg.vecdot(softmax.mul_(change), change) - mean.square()
            size = -(gradient * direction).sum(dim=1) / curvature.clamp_min(tiny)
            size = torch.minimum(size, _REACH / reach.clamp_min(tiny))
            rows = rows + size[:, None] * direction
            logits.add_(change.mul_(size[:, None]))
            previous = gradient, direction
        return _Found(best_rows * temperature, start, best, rows * temperature, is_best)
