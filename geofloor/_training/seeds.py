"""Random state as scikit-learn means it, handed to torch without touching global seeds."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils import check_random_state


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """One integer seed out of a scikit-learn ``random_state``."""
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def torch_generator(seed: int) -> torch.Generator:
    """A CPU generator of its own; draws made on the CPU are the same on every device."""
    return torch.Generator(device="cpu").manual_seed(seed)


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The random stream of one step: a resumed loop needs to know the step, and no history."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(step,)))
