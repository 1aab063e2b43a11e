import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from geofloor import AffineCalibrator, FloorPredictor
from geofloor.allocation import cutoff_curve
from geofloor.capacity import capacity
from geofloor.distortion import distortion_curve, empty_distortion

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


def test_every_form_of_the_same_features_gives_the_same_floor(rng):
    importances, rates = rng.random(50), rng.random(50) * 0.1
    table = np.column_stack([importances, rates, rng.random(50)])
    frame = pd.DataFrame({"mean": table[:, 2], "firing_rate": rates, "importance": importances})
    widths = [1, 5, 9]
    expected = FloorPredictor(alpha=1 - rates.mean()).fit(importances).predict(widths)
    for form in (table, frame):
        np.testing.assert_array_equal(FloorPredictor().fit(form).predict(widths), expected)
    alpha = 1 - rates.mean()
    for form in (importances.tolist(), importances[:, np.newaxis], pd.Series(importances), frame[["importance"]]):
        np.testing.assert_array_equal(FloorPredictor(alpha).fit(form).predict(widths), expected)


def test_given_sparsity_wins_over_the_tables():
    table = np.array([[1.0, 0.5, 1.0]])
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


@pytest.mark.parametrize(
    ("importances", "message"),
    [
        ([1.0, np.nan], "importances contains NaN"),
        ([1.0, np.inf], "importances contains infinity"),
        ([1.0, -1.0], "Negative values in data"),
        ([], "importances is empty"),
        (np.ones((4, 2)), r"importances has shape \(4, 2\)"),
        (pd.DataFrame({"a": [1.0], "b": [2.0]}), "without 'importance'"),
        (np.array([[1.0, -0.1, 1.0]]), "Negative values in data"),
    ],
)
def test_bad_importances_are_named(importances, message):
    with pytest.raises(ValueError, match=message):
        FloorPredictor(alpha=0.9).fit(importances)


def test_other_bad_arguments_are_named(rng):
    with pytest.raises(ValueError, match="alpha=None needs a feature table"):
        FloorPredictor().fit([1.0])
    with pytest.raises(ValueError, match="alpha=1.5 is no sparsity"):
        FloorPredictor(alpha=1.5).fit([1.0])
    with pytest.raises(ValueError, match="second_moments has 2 values for 1"):
        FloorPredictor(alpha=0.9).fit([1.0], second_moments=[1.0, 2.0])
    predictor = FloorPredictor(alpha=0.9).fit([1.0])
    with pytest.raises(ValueError, match="Negative values in data passed to.*widths"):
        predictor.predict([-1])
    with pytest.raises(ValueError, match="floor=-1"):
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
# Scaled by a factor, charges near the smallest float would lose their digits.
charged = importance_arrays.filter(lambda values: values.max() > 1e-100)


@given(
    importances=charged,
    alpha=st.floats(0.0, 0.9999),
    allocation=st.sampled_from(SHARED),
    factor=st.floats(1e-3, 1e3),
)
def test_shared_dimensions_lose_less_with_width_at_most_the_variance_and_scale(importances, alpha, allocation, factor):
    predictor = FloorPredictor(alpha, allocation=allocation).fit(importances)
    widths = np.arange(len(importances) + 3)
    floors = predictor.predict(widths)
    tolerance = 1e-9 * importances.sum()
    assert (np.diff(floors) <= tolerance).all()
    assert floors[0] == pytest.approx(empty_distortion(alpha) * importances.sum())
    assert floors[-1] <= tolerance
    scaled = FloorPredictor(alpha, allocation=allocation).fit(importances * factor).predict(widths)
    np.testing.assert_allclose(scaled, floors * factor, rtol=1e-6, atol=tolerance * factor)
    backwards = FloorPredictor(alpha, allocation=allocation).fit(importances[::-1]).predict(widths)
    np.testing.assert_allclose(backwards, floors, rtol=1e-12, atol=tolerance)


@given(importances=charged, alpha=st.floats(0.3, 0.9999))
def test_water_filling_is_below_every_packing(importances, alpha):
    widths = np.arange(len(importances) + 1)
    lower = FloorPredictor(alpha, allocation="waterfilling").fit(importances).predict(widths)
    upper = FloorPredictor(alpha, allocation="blocks").fit(importances).predict(widths)
    assert (lower <= upper + 1e-9 * importances.sum()).all()


def test_equal_features_lose_what_the_curve_says():
    curve = distortion_curve(0.9)
    predictor = FloorPredictor(0.9, allocation="waterfilling").fit(np.ones(100), second_moments=np.full(100, 0.1 / 3))
    widths = np.array([0, 5, 10, 25, 50, 100])
    np.testing.assert_allclose(predictor.predict(widths), 100 * 0.1 / 3 * curve(widths / 100), rtol=1e-9, atol=1e-12)


def test_second_moments_are_charges_whatever_the_allocation():
    importances, moments = 1 / np.arange(1, 31), np.linspace(0.5, 1.5, 30)
    for allocation in SHARED:
        split = FloorPredictor(0.95, allocation=allocation).fit(importances, second_moments=moments)
        whole = FloorPredictor(0.95, allocation=allocation).fit(importances * moments)
        np.testing.assert_allclose(split.predict([1, 4, 20]), whole.predict([1, 4, 20]))


def test_a_feature_table_brings_each_features_own_curve_and_mean():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.02, 0.3, 400)
    table = pd.DataFrame({"importance": rates / 3, "firing_rate": rates, "mean": rates / 2})  # U[0, 1] when active
    predictor = FloorPredictor(allocation="waterfilling").fit(table)
    assert predictor.predict([0])[0] == pytest.approx(np.sum(rates / 3 - rates**2 / 4))
    assert predictor.predict([400])[0] == pytest.approx(0.0, abs=1e-9)
    alike = pd.DataFrame({"importance": np.full(400, 0.1 / 3), "firing_rate": np.full(400, 0.1), "mean": 0.05})
    shared = FloorPredictor(0.9, allocation="waterfilling").fit(np.full(400, 0.1 / 3)).predict([20, 100])
    own = FloorPredictor(allocation="waterfilling").fit(alike).predict([20, 100])
    np.testing.assert_allclose(own, shared, rtol=0.02)  # firing rates are rounded to within 2.5%
    np.testing.assert_allclose(
        predictor.predict([20]), FloorPredictor(allocation="waterfilling").fit(table.to_numpy()).predict([20])
    )


@pytest.mark.parametrize("allocation", SHARED)
def test_min_width_of_shared_dimensions_is_the_smallest_that_meets_the_target(allocation):
    predictor = FloorPredictor(0.9, allocation=allocation).fit(1 / np.arange(1, 61))
    for target in (0.0, 0.5, 2.0, 100.0):
        width = predictor.min_width(target)
        assert width == 60 or predictor.predict([width])[0] <= target
        assert width == 0 or predictor.predict([width - 1])[0] > target
    np.testing.assert_array_equal(predictor.min_width([0.5, 2.0]), [predictor.min_width(0.5), predictor.min_width(2.0)])


def test_auto_packs_small_widths_and_fills_large_ones():
    importances, widths = 1 / np.arange(1, 201), np.array([1, 32, 33, 100])
    found, packed, filled = (
        FloorPredictor(0.9, allocation=allocation, starts="best").fit(importances).predict(widths)
        for allocation in ("auto", "blocks", "waterfilling")
    )
    np.testing.assert_allclose(found, [*packed[:2], *filled[2:]], rtol=1e-12)


def test_an_average_training_ends_above_the_best_by_less_the_more_features_count():
    for n_features in (8, 200):
        importances = np.full(n_features, 0.1 / 3)
        mean, best = (
            FloorPredictor(0.9, allocation="auto", starts=starts).fit(importances).predict([0, 2, n_features])
            for starts in ("mean", "best")
        )
        assert mean[0] == pytest.approx(best[0], rel=1e-12)  # what nobody learns, nobody learns badly
        assert mean[1] == pytest.approx(best[1] * (1 + 0.10 / np.sqrt(n_features)))
        assert mean[2] == best[2] == 0.0


@given(importances=charged, alpha=st.floats(0.75, 0.995), width=st.integers(0, 90))
def test_bounds_enclose_the_best_student(importances, alpha, width):
    predictor = FloorPredictor(alpha, allocation="auto", starts="best").fit(importances)
    floors, bounds = predictor.predict([width], return_bounds=True)
    tolerance = 1e-9 * importances.sum()
    assert bounds[0, 0] <= floors[0] + tolerance
    assert floors[0] <= bounds[0, 1] + tolerance
    assert bounds[0, 1] <= importances.sum() + tolerance


@pytest.mark.parametrize("allocation", ["cutoff", "waterfilling", "blocks", cutoff_curve(4.0)])
@given(seed=st.integers(0, 100), width=st.floats(0, 30))
def test_an_allocation_adds_up(allocation, seed, width):
    rng = np.random.default_rng(seed)
    importances, moments = rng.pareto(1.0, 40) + 0.01, rng.uniform(0.5, 1.0, 40)
    predictor = FloorPredictor(0.9, allocation=allocation, starts="best").fit(importances, second_moments=moments)
    found = predictor.allocate(width)
    assert found.dropped + found.interference == pytest.approx(predictor.predict([width])[0], rel=1e-9, abs=1e-12)
    assert found.n_full + found.n_partial + found.n_dropped == 40
    assert found.capacities.sum() <= width + 1e-9
    charges = importances if allocation == "cutoff" else importances * moments  # Eq. 2 ranks by importance
    assert found.capacities[charges.argmax()] >= found.capacities[charges.argmin()]


def test_bounds_of_wide_students_enclose_them_too():
    # Beyond 64 dimensions the upper bound packs blocks of one size only, which must stay an upper bound and a near one.
    predictor = FloorPredictor(0.95, allocation="auto").fit(1 / np.arange(1, 1001))
    floors, bounds = predictor.predict([64, 65, 100, 150], return_bounds=True)
    assert (bounds[:, 0] <= floors).all()
    assert (floors <= bounds[:, 1]).all()
    np.testing.assert_allclose(bounds[2:, 1] / bounds[2:, 0], 1.0, atol=0.25)


def test_a_curve_of_ones_own_is_water_filled_and_that_of_the_cut_off_is_eq_2():
    importances = 1 / np.arange(1, 101)
    g = FloorPredictor(0.9).fit(importances).capacity_
    whole = (np.array([0, 13, 50]) + 1e-9) / g
    own = FloorPredictor(0.9, allocation=cutoff_curve(g)).fit(importances)
    np.testing.assert_allclose(own.predict(whole), FloorPredictor(0.9).fit(importances).predict(whole), rtol=1e-6)


@pytest.mark.parametrize("allocation", SHARED)
def test_a_fitted_predictor_does_not_follow_the_callers_array(allocation):
    importances = 1 / np.arange(1.0, 31)
    predictor = FloorPredictor(0.9, allocation=allocation).fit(importances)
    expected = FloorPredictor(0.9, allocation=allocation).fit(importances.copy()).predict([2, 5])
    importances[:] = 1.0
    np.testing.assert_array_equal(predictor.predict([2, 5]), expected)
    assert predictor.allocate(5).capacities[0] > predictor.allocate(5).capacities[-1]


def test_bounds_need_measured_students():
    for allocation in ("cutoff", cutoff_curve(4.0)):
        with pytest.raises(ValueError, match="return_bounds=True"):
            FloorPredictor(0.9, allocation=allocation).fit([1.0, 0.5]).predict([1], return_bounds=True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"allocation": "greedy"}, "allocation='greedy'"),
        ({"allocation": "auto", "curve": "shallow"}, "curve='shallow'"),
        ({"allocation": "auto", "starts": "worst"}, "starts='worst'"),
        ({"allocation": "auto", "amplitude": "gamma"}, "amplitude='gamma'"),
    ],
)
def test_unknown_allocations_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        FloorPredictor(0.9, **parameters).fit([1.0, 0.5])
