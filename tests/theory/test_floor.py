import math
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from geofloor import AffineCalibrator, FeatureStatistics, FloorPredictor
from geofloor.theory import (
    NonMonotoneCapacityWarning,
    capacity,
    cutoff_curve,
    empty_distortion,
)

importance_arrays = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e3))
sparsities = st.one_of(st.just(0.0), st.floats(0.64, 0.9999))


def brute_force(importances, alpha, width, second_moments=None):
    """Eq. 2, term by term."""
    moments = np.ones(len(importances)) if second_moments is None else second_moments
    ranked = sorted(zip(importances, moments, strict=True), reverse=True)
    kept = math.floor(width * capacity(alpha))
    return math.fsum(importance * moment for importance, moment in ranked[kept:])


@given(importance_arrays, sparsities, st.lists(st.integers(0, 80), min_size=1, max_size=5))
def test_predict_is_equation_2(importances, alpha, widths):
    predicted = FloorPredictor(alpha=alpha).fit(importances).predict(widths)
    expected = [brute_force(importances, alpha, width) for width in widths]
    np.testing.assert_allclose(predicted, expected, rtol=1e-12, atol=1e-300)


@given(st.data(), sparsities)
def test_second_moments_are_charged_and_importances_rank(data, alpha):
    importances = data.draw(importance_arrays)
    moments = data.draw(arrays(np.float64, len(importances), elements=st.floats(0, 10)))
    predictor = FloorPredictor(alpha=alpha).fit(importances, second_moments=moments)
    widths = np.arange(10)
    expected = [brute_force(importances, alpha, width, moments) for width in widths]
    np.testing.assert_allclose(predictor.predict(widths), expected, rtol=1e-12, atol=1e-300)


@given(importance_arrays, sparsities, st.randoms(use_true_random=False))
def test_order_does_not_matter(importances, alpha, random):
    shuffled = np.array(random.sample(list(importances), len(importances)))
    widths = np.arange(20)
    a, b = (FloorPredictor(alpha=alpha).fit(values) for values in (importances, shuffled))
    np.testing.assert_array_equal(a.predict(widths), b.predict(widths))
    np.testing.assert_array_equal(a.importances_, np.sort(importances)[::-1])


@given(importance_arrays, sparsities, st.floats(0, 1e3))
def test_min_width_is_the_smallest_that_meets_the_target(importances, alpha, target):
    predictor = FloorPredictor(alpha=alpha).fit(importances)
    width = predictor.min_width(target)
    assert predictor.predict([width])[0] <= target
    assert width == 0 or predictor.predict([width - 1])[0] > target


@pytest.mark.parametrize("method", ["asymptotic", "minimax", "minimax_nonnegative", lambda alpha: 3.0])
def test_floor_vanishes_from_the_critical_width_on(rng, method):
    predictor = FloorPredictor(alpha=0.9, capacity=method).fit(rng.random(100))
    width = math.ceil(predictor.critical_width_)
    assert predictor.critical_width_ == pytest.approx(100 / capacity(0.9, method))
    assert predictor.predict([width, 10 * width]).tolist() == [0, 0]
    assert predictor.predict([predictor.critical_width_ - 1])[0] > 0
    assert predictor.min_width(0) == width


def test_given_sparsity_wins_over_the_tables():
    table = np.array([[1.0, 0.5, 0.7]])
    assert FloorPredictor(alpha=0.9).fit(table).alpha_ == 0.9


def test_widths_in_a_column_and_floors_in_a_column(rng):
    predictor = FloorPredictor(alpha=0.9).fit(rng.random(30))
    widths = np.array([1, 2, 3])
    np.testing.assert_array_equal(predictor.predict(widths[:, np.newaxis]), predictor.predict(widths))
    np.testing.assert_array_equal(predictor.transform(widths), predictor.predict(widths)[:, np.newaxis])
    framed = clone(predictor).set_output(transform="pandas").fit(rng.random(30)).transform(widths)
    assert list(framed.columns) == ["floor"]


def test_a_callers_array_is_left_alone(rng):
    importances = rng.random(10)
    before = importances.copy()
    FloorPredictor(alpha=0.9).fit(importances)
    np.testing.assert_array_equal(importances, before)


def test_a_frozen_predictor_feeds_a_calibrator(rng):
    predictor = FloorPredictor(alpha=0.9).fit(rng.random(100))
    widths = np.array([2, 4, 8, 12])
    losses = 3.0 * predictor.predict(widths) + 0.5
    forecast = make_pipeline(FrozenEstimator(predictor), AffineCalibrator()).fit(widths, losses)
    np.testing.assert_allclose(forecast.predict([3, 6]), 3.0 * predictor.predict([3, 6]) + 0.5)


def test_an_unfrozen_predictor_in_the_middle_of_a_pipeline_is_refused(rng):
    with pytest.raises(ValueError, match="FrozenEstimator"):
        make_pipeline(FloorPredictor(alpha=0.9), AffineCalibrator()).fit(rng.random(10), rng.random(10))


def test_other_bad_arguments_are_named(rng):
    with pytest.raises(ValueError, match="alpha=None needs a feature table"):
        FloorPredictor().fit([1.0])
    with pytest.raises(ValueError, match="alpha=1.5 must be a finite number of at least 0 and below 1"):
        FloorPredictor(alpha=1.5).fit([1.0])
    with pytest.raises(ValueError, match="second_moments has 2 values for 1"):
        FloorPredictor(alpha=0.9).fit([1.0], second_moments=[1.0, 2.0])
    predictor = FloorPredictor(alpha=0.9).fit([1.0])
    with pytest.raises(ValueError, match="Negative values in data passed to.*widths"):
        predictor.predict([-1])
    with pytest.raises(ValueError, match="passed to target: -1"):
        predictor.min_width(-1)
    with pytest.raises(NotFittedError):
        FloorPredictor(alpha=0.9).predict([1])


def test_the_theory_loads_neither_torch_nor_transformers():
    script = (
        "import sys, geofloor;"
        "geofloor.FloorPredictor(alpha=0.992).fit([3.0, 2.0, 1.0]).predict([1]);"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'statsmodels') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


SHARED = ["waterfilling", "blocks", "auto"]


@pytest.mark.parametrize("allocation", ["cutoff", "waterfilling", "blocks", cutoff_curve(4.0)])
@given(seed=st.integers(0, 100), width=st.floats(0, 30))
def test_an_allocation_adds_up(allocation, seed, width):
    rng = np.random.default_rng(seed)
    importances, moments = rng.pareto(1.0, 40) + 0.01, rng.uniform(0.5, 1.0, 40)
    starts = "best" if allocation == "blocks" else None
    predictor = FloorPredictor(0.9, allocation=allocation, starts=starts).fit(importances, second_moments=moments)
    found = predictor.allocate(width)
    assert found.dropped + found.interference == pytest.approx(predictor.predict([width])[0], rel=1e-9, abs=1e-12)
    assert found.n_full + found.n_partial + found.n_dropped == 40
    assert found.capacities.sum() <= width + 1e-9
    charges = importances if allocation == "cutoff" else importances * moments  # Eq. 2 ranks by importance
    assert found.capacities[charges.argmax()] >= found.capacities[charges.argmin()]


@pytest.mark.parametrize("allocation", ["cutoff", *SHARED])
def test_a_fitted_predictor_does_not_follow_the_callers_array(allocation):
    importances = 1 / np.arange(1.0, 31)
    predictor = FloorPredictor(0.9, allocation=allocation).fit(importances)
    expected = FloorPredictor(0.9, allocation=allocation).fit(importances.copy()).predict([2, 5])
    importances[:] = importances[::-1].copy()
    np.testing.assert_array_equal(predictor.predict([2, 5]), expected)
    assert predictor.allocate(5).capacities[0] > predictor.allocate(5).capacities[-1]


def test_a_fitted_predictor_does_not_follow_its_parameters():
    predictor = FloorPredictor(0.9).fit([3.0, 2.0, 1.0])
    expected = predictor.predict([0, 1])
    predictor.set_params(allocation="auto", starts="best")
    np.testing.assert_array_equal(predictor.predict([0, 1]), expected)


# --- many targets, odd numbers


@pytest.mark.parametrize("allocation", ["cutoff", *SHARED])
def test_targets_that_width_zero_meets_have_width_zero_among_others(allocation):
    predictor = FloorPredictor(0.95, allocation=allocation).fit(1 / np.arange(1, 61))
    alone = predictor.min_width(0.05)
    np.testing.assert_array_equal(predictor.min_width([0.05, 1e9]), [alone, 0])
    np.testing.assert_array_equal(predictor.min_width([[1e9], [0.05]]), [[0], [alone]])


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor, pd.Series, lambda v: pd.Series(v, dtype="Float64")])
def test_numbers_of_any_library_give_the_same_floors(kind):
    expected = FloorPredictor(0.9).fit([3.0, 2.0, 1.0, 0.5, 0.25, 0.125]).predict([0, 1, 2])
    predictor = FloorPredictor(np.float32(0.9).item()).fit(kind([3.0, 2.0, 1.0, 0.5, 0.25, 0.125]))
    np.testing.assert_allclose(predictor.predict(kind([0.0, 1.0, 2.0])), expected)
    assert predictor.min_width(kind([0.0])).tolist() == [2]


def test_bfloat16_tensors_and_tensors_with_a_gradient_are_read():
    values = torch.tensor([3.0, 2.0, 1.0])
    for given_ in (values.bfloat16(), values.clone().requires_grad_(), values.half()):
        assert FloorPredictor(0.9).fit(given_).importances_.tolist() == [3.0, 2.0, 1.0]
        assert AffineCalibrator().fit(given_, [6.0, 4.0, 2.0]).slope_ == pytest.approx(2.0)


@pytest.mark.parametrize(
    "widths",
    [np.ma.array([1.0, 2.0], mask=[1, 0]), ["a"], [1j], [10**400], [None], [[1, 2]], {1.0}, "3", np.datetime64("2020")],
)
@pytest.mark.parametrize("method", ["predict", "transform", "kept_features"])
def test_widths_that_are_no_numbers_are_refused_by_name(widths, method):
    predictor = FloorPredictor(0.9).fit([3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="widths"):
        getattr(predictor, method)(widths)


@pytest.mark.parametrize("allocation", ["cutoff", *SHARED])
def test_widths_beyond_all_features_lose_nothing_in_no_time(allocation):
    importances = 1 / np.arange(1, 1001) if allocation != "blocks" else 1 / np.arange(1, 101)
    predictor = FloorPredictor(0.9, allocation=allocation).fit(importances)
    floors = predictor.predict([len(importances), 10_000, 2.0**31, 1e30, 1.7e308])
    np.testing.assert_allclose(floors, 0.0, atol=1e-12)
    assert (predictor.kept_features([1e30, 1.7e308]) == len(importances)).all()
    assert predictor.allocate(1e30).dropped == 0.0


def test_sparsity_next_to_zero_keeps_every_feature_from_the_first_dimension_on():
    with pytest.warns(NonMonotoneCapacityWarning):
        predictor = FloorPredictor(1e-320).fit([3.0, 2.0, 1.0])
    assert predictor.predict([0, 1, 1e300]).tolist() == [6.0, 0.0, 0.0]
    assert predictor.min_width([0.0, 6.0]).tolist() == [1, 0]


def test_a_capacity_that_no_width_can_hold_is_refused():
    with pytest.raises(ValueError, match="capacity=.*no width holds 3 features"):
        FloorPredictor(0.9, capacity=lambda _: 1e-308).fit([3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=r"capacity\(0.9\)=\(?1\+1j\)? must be a finite number above 0"):
        FloorPredictor(0.9, capacity=lambda _: 1 + 1j).fit([3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="capacity='exact' is unknown"):
        FloorPredictor(0.9, capacity="exact").fit([3.0, 2.0, 1.0])


@pytest.mark.parametrize("allocation", ["cutoff", *SHARED])
@pytest.mark.parametrize("importances", [[5e-324], [3e-310, 1e-310, 2e-312], [2e299, 1e299], [0.0, 0.0]])
def test_importances_at_the_ends_of_float64_have_finite_floors(importances, allocation):
    with np.errstate(all="raise", under="ignore"):
        floors = FloorPredictor(0.9, allocation=allocation).fit(importances).predict([0, 1, 2, 3])
    share = 1.0 if allocation == "cutoff" else empty_distortion(0.9)
    assert floors[0] == pytest.approx(share * sum(importances), rel=1e-9, abs=5e-324)
    assert (np.diff(floors) <= 0.0).all()
    assert floors[3] == 0.0


def test_codes_of_either_sign_may_have_a_negative_mean(rng):
    codes = rng.standard_normal((500, 8)) * (rng.random((500, 8)) < 0.1)
    statistics = FeatureStatistics().fit(codes)
    assert (statistics.table_[:, 2] < 0).any()
    assert FloorPredictor().fit(statistics.table_).predict([0])[0] == pytest.approx((codes**2).mean(axis=0).sum())


# --- warnings


def warnings_of(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return seen


DENSE = np.column_stack([np.linspace(1, 2, 100), np.full(100, 0.5), np.full(100, 0.6)])


@pytest.mark.parametrize(
    ("parameters", "consequence"),
    [({}, "below the range of Eq. 1"), ({"capacity": "minimax"}, "so dense"), ({"allocation": "auto"}, "so dense")],
)
def test_a_table_of_dense_features_gets_one_warning_at_the_callers_line(parameters, consequence):
    (seen,) = warnings_of(lambda: FloorPredictor(**parameters).fit(DENSE))
    assert seen.category is ConvergenceWarning
    assert seen.filename == __file__
    for text in (r"50% of tokens", "alpha_=0.500 is below 0.632", consequence, "train it for longer"):
        assert text in str(seen.message)


def test_a_sparsity_given_on_purpose_gets_the_warning_of_eq_1_alone():
    for importances in (DENSE, [2.0, 1.0]):
        (seen,) = warnings_of(lambda: FloorPredictor(0.5).fit(importances))  # noqa: B023 - called at once
        assert seen.category is NonMonotoneCapacityWarning
        assert "use capacity='minimax_nonnegative'" in str(seen.message)
        assert seen.filename == __file__
    assert not warnings_of(lambda: FloorPredictor(0.5, capacity="minimax").fit([2.0, 1.0]))
    assert not warnings_of(lambda: FloorPredictor(0.5, allocation="auto").fit([2.0, 1.0]))


def test_a_critical_width_over_twice_the_teachers_gets_one_warning():
    importances = np.linspace(1, 2, 1000)  # d* = 1000 / 4.34 = 230
    (seen,) = warnings_of(lambda: FloorPredictor(0.9, teacher_width=100).fit(importances))
    assert seen.category is ConvergenceWarning
    assert seen.filename == __file__
    assert "critical_width_=230 is over twice teacher_width=100" in str(seen.message)
    assert not warnings_of(lambda: FloorPredictor(0.9, teacher_width=116).fit(importances))
    for wrong in (0, 2.5, "576"):
        with pytest.raises(ValueError, match="teacher_width="):
            FloorPredictor(0.9, teacher_width=wrong).fit(importances)


def test_warning_filters_are_left_as_they_are():
    before = list(warnings.filters)
    FloorPredictor(0.9, allocation="auto").fit([2.0, 1.0]).predict([1])
    assert warnings.filters == before
