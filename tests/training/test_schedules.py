import numpy as np
import pytest

from geofloor._training.schedules import warmup_cosine, warmup_stable_decay


def test_learning_rate_rises_stays_and_falls_linearly():
    factors = [warmup_stable_decay(step, n_steps=100, warmup_steps=4, decay_fraction=0.2) for step in range(100)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(factors[4:81]) == {1.0}
    np.testing.assert_allclose(factors[80:], np.arange(20, 0, -1) / 20)


@pytest.mark.parametrize("decay_fraction", [0.0, 0.3])
def test_without_a_number_of_steps_the_learning_rate_stays(decay_fraction):
    assert warmup_stable_decay(0, n_steps=None, decay_fraction=decay_fraction) == 1.0
    assert warmup_stable_decay(10**6, n_steps=None, warmup_steps=5, decay_fraction=decay_fraction) == 1.0


def test_warmup_then_cosine():
    factors = [warmup_cosine(step, n_steps=110, warmup_steps=10, final=0.1) for step in range(111)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(factors[10:], 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(101) / 100)))
