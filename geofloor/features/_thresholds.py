"""Choose codes by thresholds: the cutoff of a batch for BatchTopK, and its running mean for single rows."""

from __future__ import annotations

import torch

from geofloor.features._sparse_step import Parameters, encode, rows_at_a_time

_MEMORY = 100  # steps that the running mean of cutoffs covers


def find_cutoff(parameters: Parameters, inputs: torch.Tensor, l0: int) -> torch.Tensor:
    """Find the number below the n_rows · `l0` largest codes of a batch; it is 0 if no more codes are above zero."""
    n_kept = l0 * len(inputs)
    largest = inputs.new_zeros(n_kept + 1)
    piece = rows_at_a_time(parameters)
    for start in range(0, len(inputs), piece):
        codes = encode(parameters, inputs[start : start + piece])
        # Few codes of later pieces are above the bound, so that selecting them first makes topk fast.
        candidates = torch.cat([largest, codes[codes > largest.min()]])
        largest = candidates.topk(n_kept + 1, sorted=False).values
    return largest.min()


def average_cutoff(threshold: torch.Tensor, cutoff: torch.Tensor, step: int) -> None:
    """Move a threshold, in place, toward the cutoff of a step counted from 1: a mean of about the last 100 steps."""
    threshold.lerp_(cutoff.expand_as(threshold), max(1.0 / step, 1.0 / _MEMORY))
