"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, n_steps: int, warmup_steps: int = 0, final: float = 0.0) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine from 1 down to `final`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    span = max(n_steps - warmup_steps, 1)
    progress = min((step - warmup_steps) / span, 1.0)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_stable_decay(step: int, *, n_steps: int | None, warmup_steps: int = 0, decay_fraction: float = 0.0) -> float:
    """Compute the factor on the learning rate: linear warm-up, then 1, then a linear decay to zero.

    Parameters
    ----------
    step : int
        Step, from 0.
    n_steps : int or None
        Steps in all; None if their number is unknown, which leaves out the decay.
    warmup_steps : int, default=0
        Steps of the warm-up.
    decay_fraction : float, default=0.0
        Final share of the steps that the decay takes.

    Returns
    -------
    factor : float
        From 0 to 1.
    """
    factor = min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0
    if decay_fraction and n_steps is not None:
        factor *= min((n_steps - step) / (decay_fraction * n_steps), 1.0)
    return factor
