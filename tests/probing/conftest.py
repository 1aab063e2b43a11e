import numpy as np
import pytest


@pytest.fixture
def examples(rng):
    y = rng.permutation(np.repeat(["no", "yes"], [120, 60]))
    return rng.normal(size=(180, 6)) + 0.8 * (y == "yes")[:, None], y


@pytest.fixture
def superposition(rng):
    codes = (rng.random((3000, 12)) * (rng.random((3000, 12)) < 0.15)).astype(np.float32)
    codes[:, 7] = 0.0  # dead
    states = codes @ rng.normal(size=(12, 5)) + 0.05 * rng.normal(size=(3000, 5)) + 3.0
    return states.astype(np.float32), codes
