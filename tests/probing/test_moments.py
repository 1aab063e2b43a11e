"""Ridge regression from sums over rows, as feature_probes uses it."""

import numpy as np

from geofloor.probing import feature_probes


def test_more_dimensions_than_tokens_and_constant_ones_do_no_harm(rng):
    codes = rng.random((60, 2)) * (rng.random((60, 2)) < 0.5)
    states = np.c_[codes @ rng.normal(size=(2, 80)), np.full((60, 3), 1e4), np.zeros((60, 2))]
    r2 = feature_probes(states, codes, random_state=0).r2
    assert (r2 > 0.999).all()


def test_far_from_zero_the_sums_lose_no_digits(superposition):
    states, codes = superposition
    near, far = (feature_probes(states.astype(np.float64) + shift, codes, random_state=0).r2 for shift in (0.0, 1e5))
    np.testing.assert_allclose(far, near, atol=1e-6)
