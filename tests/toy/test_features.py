import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from geofloor.toy import SparseFeatures


def pattern_probabilities(rates, groups):
    """Probability of every activity pattern, by enumeration of what each unit can do."""
    units = [np.flatnonzero(np.asarray(groups) == label) for label in np.unique(groups)]
    probabilities = {}
    for choice in itertools.product(*[[None, *unit] for unit in units]):
        probability, pattern = 1.0, [0] * len(rates)
        for unit, member in zip(units, choice, strict=True):
            probability *= 1.0 - sum(rates[i] for i in unit) if member is None else rates[member]
            if member is not None:
                pattern[member] = 1
        probabilities[tuple(pattern)] = probability
    return probabilities


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0]], ids=["independent", "exclusive"])
@pytest.mark.parametrize("active_only", [False, True], ids=["all samples", "active samples"])
def test_patterns_occur_as_often_as_enumeration_says(groups, active_only):
    alpha = np.array([0.7, 0.9, 0.8, 0.6, 0.95])
    features = SparseFeatures(5, alpha, groups=groups)
    n_samples = 200_000
    if active_only:
        X = features.sample_active(n_samples, np.random.default_rng(0))
    else:
        X = features.sample(n_samples, random_state=0)
    expected = pattern_probabilities(1 - alpha, groups)
    assert features.empty_probability == pytest.approx(expected[0, 0, 0, 0, 0])
    if active_only:
        empty = expected.pop((0, 0, 0, 0, 0))
        expected = {pattern: p / (1 - empty) for pattern, p in expected.items()}
    observed = pd.Series(map(tuple, (X > 0).astype(int))).value_counts()
    assert set(observed.index) <= set(expected)
    counts = [observed.get(pattern, 0) for pattern in expected]
    assert stats.chisquare(counts, np.array(list(expected.values())) * n_samples).pvalue > 1e-3


@pytest.mark.parametrize("amplitude", ["uniform", "exponential", "half-normal", "constant"])
def test_moments_are_those_of_the_samples(amplitude):
    features = SparseFeatures(4, [0.5, 0.8, 0.9, 0.0], amplitude)
    X = features.sample(400_000, random_state=0).astype(np.float64)
    np.testing.assert_allclose(X.mean(axis=0), features.means, rtol=0.02)
    np.testing.assert_allclose((X**2).mean(axis=0), features.second_moments, rtol=0.02)
    np.testing.assert_allclose(X.var(axis=0), features.variances, rtol=0.03, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.9), "n_features=0"),
        ((3, [0.9, 0.8]), "alpha has shape"),
        ((3, [0.9, 0.8, np.nan]), "alpha contains NaN"),
        ((3, "0.9"), "alpha='0.9' is text"),
        ((3, 1.0), "alpha=1: a sparsity"),
        ((3.0, 0.9), "n_features=3.0 must be a whole number"),
        ((3, 0.5, 7), "amplitude=7 is unknown"),
        ((3, 0.5, "uniform", {0, 1, 2}), "groups is a set"),
        ((3, 0.5, "uniform", [0, 0, 0]), "add up to 1.5"),
        ((3, 0.5, "uniform", [0, 0]), "groups has shape"),
    ],
)
def test_distribution_names_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseFeatures(*arguments)


def test_a_distribution_keeps_nothing_of_the_callers():
    alpha, groups = np.full(4, 0.9), np.array([0, 0, 1, 1])
    features = SparseFeatures(4, alpha, groups=groups)
    alpha[:], groups[:] = 0.0, 0
    assert features.means.tolist() == SparseFeatures(4, 0.9, groups=[0, 0, 1, 1]).means.tolist()
    assert features.empty_probability == pytest.approx(0.8**2)
