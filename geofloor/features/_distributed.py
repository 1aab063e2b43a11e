"""Gradients and cutoffs of a batch divided between processes.

Each process computes its share of the rows. The results are those of the whole batch, to the same bits in each process,
and equal those of one process up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from geofloor._training.processes import Processes
from geofloor.features._sparse_step import Parameters, StepResult, compute_gradients
from geofloor.features._sparsity import find_cutoff, find_largest


def divide(processes: Processes) -> tuple[Callable[..., StepResult], Callable[..., torch.Tensor]]:
    """Return `compute_gradients` and `find_cutoff`, with the rows of a batch divided between processes.

    Parameters
    ----------
    processes : Processes
        The processes. Each calls the functions with the same weights and the same whole batch.

    Returns
    -------
    compute_gradients, find_cutoff : callable
        Functions with the arguments and the results of those of one process.
    """
    if processes.n == 1:
        return compute_gradients, find_cutoff
    return partial(_divide_gradients, processes), partial(_divide_cutoff, processes)


def _divide_gradients(
    processes: Processes, parameters: Parameters, inputs: torch.Tensor, *arguments: Any, **options: Any
) -> StepResult:
    rows = inputs[processes.share(len(inputs))]
    # A process without rows computes one row with the weight 0, to have tensors for the sums.
    result = compute_gradients(parameters, rows if len(rows) else inputs[:1], *arguments, **options)
    tensors = list(_tensors(result))
    for tensor in tensors:
        # Floating-point numbers are means over rows, integers are counts.
        tensor.mul_(len(rows) / len(inputs) if tensor.is_floating_point() else int(len(rows) > 0))
    processes.sum(tensors)
    return result


def _divide_cutoff(
    processes: Processes, parameters: Parameters, inputs: torch.Tensor, l0: int, *arguments: Any
) -> torch.Tensor:
    n = l0 * len(inputs) + 1
    own = find_largest(parameters, inputs[processes.share(len(inputs))], n, *arguments)
    return processes.join(own).topk(n, sorted=False).values.min()


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of nested tuples."""
    for each in result:
        if isinstance(each, torch.Tensor):
            yield each
        elif each is not None:
            yield from _tensors(each)
