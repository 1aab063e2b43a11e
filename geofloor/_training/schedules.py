"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, n_steps: int, warmup_steps: int = 0, final: float = 0.0) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine from 1 down to `final`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    span = max(n_steps - warmup_steps, 1)
    progress = min((step - warmup_steps) / span, 1.0)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
