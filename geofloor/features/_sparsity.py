"""Reach a mean number of codes per row: cutoffs for BatchTopK, thresholds for JumpReLU, the penalty for ReLU."""

from __future__ import annotations

import math

import torch

from geofloor.features._sparse_step import Parameters, StepResult, encode, rows_at_a_time

_MEMORY = 100  # steps that the running mean of cutoffs covers
_BANDWIDTH = 0.3  # of the size of a code, if a row is the sum of l0 orthogonal codes of equal size
_LARGEST_EXCESS = 0.1  # of L0, so that the penalty grows slowly and few latents die
_PENALTY = 50.0  # of the squared error; it holds L0 within about 2% of the target (measured)


def find_cutoff(parameters: Parameters, inputs: torch.Tensor, l0: int, precision: str = "float32") -> torch.Tensor:
    """Find the largest code of a batch below the n_rows · `l0` largest; 0 if no further codes are above zero."""
    return find_largest(parameters, inputs, l0 * len(inputs) + 1, precision).min()


def find_largest(parameters: Parameters, inputs: torch.Tensor, n: int, precision: str = "float32") -> torch.Tensor:
    """Find the `n` largest codes of all rows, unsorted; zeros stand for those missing."""
    largest = inputs.new_zeros(n)
    piece = rows_at_a_time(parameters)
    for start in range(0, len(inputs), piece):
        codes = encode(parameters, inputs[start : start + piece], precision=precision)
        # Few codes of later pieces are above the bound, so that selecting them first makes topk fast.
        candidates = torch.cat([largest, codes[codes > largest.min()]])
        largest = candidates.topk(n, sorted=False).values
    return largest


def average_cutoff(threshold: torch.Tensor, cutoff: torch.Tensor, step: int) -> None:
    """Update a threshold, in place: the mean of the cutoffs of about the last 100 steps, with steps counted from 1."""
    threshold.lerp_(cutoff.expand_as(threshold), max(1.0 / step, 1.0 / _MEMORY))


def find_spread(parameters: Parameters, inputs: torch.Tensor) -> torch.Tensor:
    """Find the median distance of a row from the decoder bias over √n_inputs, which resists outlying rows."""
    distances = torch.linalg.vector_norm(inputs - parameters.decoder_bias, dim=1)
    return distances.median() / math.sqrt(inputs.shape[1])


def find_bandwidth(spread: torch.Tensor, n_inputs: int, l0: int) -> torch.Tensor:
    """Find the width of the rectangle that stands for the derivative of a jump, in proportion to typical codes."""
    # Equal rows have no spread, and a width of 0 would divide by 0.
    return (_BANDWIDTH * math.sqrt(n_inputs / l0) * spread).clamp_min(torch.finfo(spread.dtype).tiny ** 0.5)


def penalize_l0(result: StepResult, n_rows: int, l0: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the penalty c ‖x − x̂‖² (L0 / `l0` − 1)² and the gradient of loss and penalty on the thresholds.

    The squared error is a constant in it, so that the penalty has the same effect on data of any scale.
    """
    if result.on_threshold is None or result.l0_on_threshold is None:
        raise TypeError("the gradients were computed without a bandwidth")
    excess = result.firings.sum() / (n_rows * l0) - 1.0
    weight = _PENALTY * result.reconstruction
    return weight * excess.square(), result.on_threshold + (2.0 / l0) * weight * excess * result.l0_on_threshold


def steer_penalty(l1_coefficient: torch.Tensor, result: StepResult, n_rows: int, l0: int, gain: float) -> None:
    """Raise the penalty λ, in place, if a batch has more codes per row than `l0`, and lower it otherwise."""
    excess = result.firings.sum() / (n_rows * l0) - 1.0
    l1_coefficient.mul_((gain * excess.clamp(-_LARGEST_EXCESS, _LARGEST_EXCESS)).exp())
