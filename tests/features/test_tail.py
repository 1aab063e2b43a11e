"""power_law_tail against closed forms and scipy."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import gamma, kstest, pareto

from geofloor.features import power_law_tail


@given(st.integers(0, 10**6), st.floats(1.2, 5))
@settings(max_examples=30, deadline=None)
def test_exponent_is_scipys_maximum_likelihood_at_the_same_start(seed, exponent):
    values = pareto(exponent - 1).rvs(300, random_state=seed)
    tail = power_law_tail(values)
    above = values[values > tail.start]
    shape, *_ = pareto.fit(above, floc=0, fscale=tail.start)
    assert tail.exponent == pytest.approx(1 + shape, rel=1e-10)
    assert tail.interval == pytest.approx(1 + shape * np.array(gamma(len(above), scale=1 / len(above)).interval(0.9)))
    assert tail.n_tail == len(above)
    assert tail.start in values


def test_start_has_the_smallest_kolmogorov_smirnov_distance():
    rng = np.random.default_rng(0)
    values = np.sort(np.concatenate([rng.uniform(0, 1, 40), 1 + rng.pareto(2, 70)]))[::-1]
    distances = {}
    for size in range(50, len(values)):  # few enough that every rank is a candidate
        start, above = values[size], values[:size]
        shape = size / np.log(above / start).sum()
        distances[start] = kstest(above, pareto(shape, scale=start).cdf).statistic
    assert power_law_tail(values).start == min(distances, key=distances.get)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_covers_the_exponent_as_often_as_it_says(level):
    n_samples, exponent = 1_000, 3.05
    samples = pareto(exponent - 1).rvs((n_samples, 51), random_state=0)  # 51 values leave one start to choose
    intervals = np.array([power_law_tail(sample, level=level).interval for sample in samples])
    covered = np.mean((intervals[:, 0] < exponent) & (exponent < intervals[:, 1]))
    assert covered == pytest.approx(level, abs=3.5 * np.sqrt(level * (1 - level) / n_samples))


def test_finds_the_tail_above_a_body_that_is_no_power_law():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(0, 1, 20_000), pareto(2.05).rvs(10_000, random_state=1)])
    tail = power_law_tail(values)
    assert tail.exponent == pytest.approx(3.05, abs=0.1)
    assert 0.95 < tail.start < 1.5


@given(
    arrays(np.float64, st.integers(51, 120), elements=st.floats(1e-6, 1e6), unique=True),
    st.sampled_from([2.0**-20, 0.5, 2.0**30]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_tail_does_not_depend_on_order_or_unit_or_zeros(values, unit, random):
    tail = power_law_tail(values)
    shuffled = [*(unit * values), 0.0, 0.0]
    random.shuffle(shuffled)
    other = power_law_tail(shuffled)
    if tail.n_tail and other.n_tail == tail.n_tail:  # two starts may be equally close up to rounding
        assert other.exponent == pytest.approx(tail.exponent, rel=1e-6)
        assert other.start == unit * tail.start


@pytest.mark.parametrize("values", [np.arange(50.0), [3.0] * 500, [1.0, *[2.0] * 40], np.zeros(100)])
def test_too_few_distinct_values_have_no_tail(values):
    tail = power_law_tail(values)
    assert tail.n_tail == 0
    assert np.isnan([tail.exponent, *tail.interval, tail.start]).all()


def test_equal_values_are_not_split_by_the_start():
    values = np.repeat(np.arange(1.0, 40), 5)
    tail = power_law_tail(values)
    assert tail.n_tail == np.count_nonzero(values > tail.start) >= 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "minimum of 1"),
        ([1.0, np.nan], "NaN"),
        ([1.0, -1.0], "positive"),
        (np.ones((2, 2)), "one dimension"),
        (["a"], "values.*text"),
        ([10**400], "values"),
        (np.ma.array([1.0, 2.0], mask=[1, 0]), "values is a masked array"),
    ],
)
def test_values_that_are_no_sample_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        power_law_tail(values)


def test_loads_no_torch():
    code = "import sys, geofloor; geofloor.features.power_law_tail; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
