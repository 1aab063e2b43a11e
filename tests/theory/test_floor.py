import math
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
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
    BlockPacking,
    NonMonotoneCapacityWarning,
    blocks,
    capacity,
    cutoff_curve,
    distortion_curve,
    empty_distortion,
)
from geofloor.theory._widths import WidthPredictorMixin

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
    table = np.column_stack([importances, rates, rng.random(50) * np.sqrt(importances * rates)])
    frame = pd.DataFrame({"mean": table[:, 2], "firing_rate": rates, "importance": importances})
    widths = [1, 5, 9]
    expected = FloorPredictor(alpha=1 - rates.mean()).fit(importances).predict(widths)
    for form in (table, frame):
        np.testing.assert_array_equal(FloorPredictor().fit(form).predict(widths), expected)
    alpha = 1 - rates.mean()
    for form in (importances.tolist(), importances[:, np.newaxis], pd.Series(importances), frame[["importance"]]):
        np.testing.assert_array_equal(FloorPredictor(alpha).fit(form).predict(widths), expected)


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


@pytest.mark.parametrize(
    ("importances", "message"),
    [
        ([1.0, np.nan], "importances contains NaN"),
        ([1.0, np.inf], "importances contains infinity"),
        ([1.0, -1.0], "Negative values in data"),
        ([], "importances is empty"),
        (np.ones((4, 2)), r"importances has shape \(4, 2\)"),
        (pd.DataFrame({"a": [1.0], "b": [2.0]}), "without 'importance'"),
        (np.array([[1.0, -0.1, 1.0]]), "Negative values in data passed to firing_rate"),
        (np.array([[1.0, 1.1, 1.0]]), "firing_rate: 1.1 is above 1"),
        (np.array([[0.1, 0.05, 1.0]]), "row 0 no codes have.*in this order"),  # columns in another order
        (pd.DataFrame({"mean": [0.5, 3.0], "firing_rate": 0.2, "importance": 2.0}), "row 1 no codes have"),
        (sp.csr_array(np.eye(4)), "importances is a sparse matrix.*FeatureStatistics"),
        (np.ones((4, 64)), "codes go through FeatureStatistics|Codes go through FeatureStatistics"),
        ([1.7e308, 1.7e308], r"importances add up to inf, .*divide them"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "importances is a masked array"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "importances has dtype datetime64"),
        ([1.0, 10**400], "importances.*what float64 can't"),
        (["a", "b"], "importances.*holds text"),
        ({"a": 1.0}, "importances is a dict"),
    ],
)
def test_bad_importances_are_named(importances, message):
    with pytest.raises(ValueError, match=message):
        FloorPredictor(alpha=0.9).fit(importances)


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
    with pytest.raises(ValueError, match="passed to floor: -1"):
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
        FloorPredictor(0.9, allocation=allocation, starts=starts).fit(importances).predict(widths)
        for allocation, starts in (("auto", "best"), ("blocks", "best"), ("waterfilling", None))
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
    starts = "best" if allocation == "blocks" else None
    predictor = FloorPredictor(0.9, allocation=allocation, starts=starts).fit(importances, second_moments=moments)
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


@pytest.mark.parametrize(
    ("allocation", "unused"),
    [
        ("cutoff", {"curve": "relu"}),
        ("cutoff", {"curve": "nonsense"}),
        ("cutoff", {"amplitude": 3}),
        ("cutoff", {"starts": "mean"}),
        ("waterfilling", {"capacity": "asymptotic"}),
        ("waterfilling", {"starts": "best"}),
        ("waterfilling", {"teacher_width": 576}),
        ("blocks", {"capacity": "minimax"}),
        ("auto", {"capacity": lambda _: 2.0}),
        (cutoff_curve(4.0), {"curve": "deep"}),
        (cutoff_curve(4.0), {"capacity": "minimax"}),
    ],
)
def test_an_option_that_the_allocation_does_not_use_is_an_error(allocation, unused):
    with pytest.raises(ValueError, match=f"{next(iter(unused))}=.* is not used with allocation=.*leave it None"):
        FloorPredictor(0.9, allocation=allocation, **unused).fit([1.0, 0.5])


def test_a_law_of_amplitudes_beside_measured_means_is_an_error():
    with pytest.raises(ValueError, match="amplitude='constant' is not used with a feature table that has means"):
        FloorPredictor(allocation="auto", amplitude="constant").fit([[1.0, 0.1, 0.3]])


def test_options_are_cloned_as_given():
    given = {"allocation": "auto", "curve": "deep", "amplitude": "constant", "starts": "best"}
    assert {name: clone(FloorPredictor(0.9, **given)).get_params()[name] for name in given} == given


# --- many targets, odd numbers


@pytest.mark.parametrize("allocation", ["cutoff", *SHARED])
def test_targets_that_width_zero_meets_have_width_zero_among_others(allocation):
    predictor = FloorPredictor(0.95, allocation=allocation).fit(1 / np.arange(1, 61))
    alone = predictor.min_width(0.05)
    np.testing.assert_array_equal(predictor.min_width([0.05, 1e9]), [alone, 0])
    np.testing.assert_array_equal(predictor.min_width([[1e9], [0.05]]), [[0], [alone]])


def test_every_predictor_over_widths_searches_each_target_alone():
    class Halving(WidthPredictorMixin):
        def predict(self, widths):
            return 100.0 * 0.5 ** np.asarray(widths)

    found = Halving()._search_width([0.0, 1.0, 100.0, 1e9], 128)
    np.testing.assert_array_equal(found, [128, 7, 0, 0])


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


def test_features_that_fire_always_at_one_value_cost_a_bias_nothing():
    predictor = FloorPredictor(0.5, allocation="auto").fit([[4.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    assert predictor.predict([0, 1, 2]).tolist() == [0, 0, 0]


def test_codes_of_either_sign_may_have_a_negative_mean(rng):
    codes = rng.standard_normal((500, 8)) * (rng.random((500, 8)) < 0.1)
    statistics = FeatureStatistics().fit(codes)
    assert (statistics.table_[:, 2] < 0).any()
    assert FloorPredictor().fit(statistics.table_).predict([0])[0] == pytest.approx((codes**2).mean(axis=0).sum())


def test_statistics_in_place_of_their_table_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"give its feature table, \.table_"):
        FloorPredictor().fit(FeatureStatistics().fit(np.eye(4)))


# --- bounds


@pytest.mark.parametrize("starts", ["mean", "best"])
@pytest.mark.parametrize("allocation", SHARED)
@given(importances=charged, alpha=st.floats(0.0, 0.9999))
def test_no_floor_lies_outside_its_bounds_at_any_sparsity(allocation, starts, importances, alpha):
    starts = None if allocation == "waterfilling" else starts
    predictor = FloorPredictor(alpha, allocation=allocation, starts=starts).fit(importances)
    floors, bounds = predictor.predict(np.arange(len(importances) + 2), return_bounds=True)
    assert (bounds[:, 0] <= floors).all()
    assert (floors <= bounds[:, 1]).all()


def test_the_upper_bound_of_dense_features_is_the_mean_packing_and_not_below_the_best():
    importances = 1 / np.arange(1, 21)
    predictor = FloorPredictor(0.1, allocation="blocks").fit(importances)
    floors, bounds = predictor.predict([19], return_bounds=True)
    found = blocks(0.1, starts="mean")
    packed = BlockPacking(importances, found.widths, found.features, found.distortions, empty_distortion(0.1)).floors(
        [19]
    )
    effective = importances.sum() ** 2 / np.square(importances).sum()
    assert bounds[0, 1] == pytest.approx(packed[0] * (1 + 0.10 / np.sqrt(effective)), rel=1e-12)
    assert floors[0] <= bounds[0, 1]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 0.4, 0.6])
def test_the_mean_of_several_starts_is_never_below_the_best_of_them(alpha):
    assert (blocks(alpha, starts="mean").distortions >= blocks(alpha, starts="best").distortions).all()


@pytest.mark.parametrize("allocation", SHARED)
@given(seed=st.integers(0, 1000))
def test_bounds_enclose_the_floors_of_a_table_whose_features_fire_at_different_rates(allocation, seed):
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.uniform(np.log(0.001), np.log(0.3), 40))
    heights = rng.pareto(1.5, 40) + 0.1
    predictor = FloorPredictor(allocation=allocation).fit(
        np.column_stack([rates * heights**2 / 3, rates, rates * heights / 2])
    )
    floors, bounds = predictor.predict(np.arange(42), return_bounds=True)
    assert (bounds[:, 0] <= floors).all()
    assert (floors <= bounds[:, 1]).all()


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


def test_floors_of_a_table_fall_with_the_width_where_packing_ends():
    rng = np.random.default_rng(0)
    rates = 10 ** rng.uniform(-4, -0.3, size=2000)
    sizes = 1 / np.arange(1, 2001)
    table = np.column_stack([sizes * rates, rates, np.sqrt(sizes) * rates])
    predictor = FloorPredictor(allocation="auto").fit(table)
    floors = predictor.predict(np.arange(0, 80))
    assert (np.diff(floors) <= 0).all()
    waterfilled = FloorPredictor(allocation="waterfilling").fit(table).predict([33])[0]
    assert waterfilled > floors[32]  # where water-filling alone would make wider students worse
