import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geofloor import FloorPredictor
from geofloor.theory import BlockPacking, blocks, distortion_curve, empty_distortion

SHARED = ["waterfilling", "blocks", "auto"]
# Scaled by a factor, charges near the smallest float would lose their digits.
charged = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e3)).filter(
    lambda values: values.max() > 1e-100
)


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


def test_features_that_fire_always_at_one_value_cost_a_bias_nothing():
    predictor = FloorPredictor(0.5, allocation="auto").fit([[4.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    assert predictor.predict([0, 1, 2]).tolist() == [0, 0, 0]


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


@given(importances=charged, alpha=st.floats(0.75, 0.995), width=st.integers(0, 90))
def test_bounds_enclose_the_best_student(importances, alpha, width):
    predictor = FloorPredictor(alpha, allocation="auto", starts="best").fit(importances)
    floors, bounds = predictor.predict([width], return_bounds=True)
    tolerance = 1e-9 * importances.sum()
    assert bounds[0, 0] <= floors[0] + tolerance
    assert floors[0] <= bounds[0, 1] + tolerance
    assert bounds[0, 1] <= importances.sum() + tolerance


def test_bounds_of_wide_students_enclose_them_too():
    # Beyond 64 dimensions the upper bound packs blocks of one size only, which must stay an upper bound and a near one.
    predictor = FloorPredictor(0.95, allocation="auto").fit(1 / np.arange(1, 1001))
    floors, bounds = predictor.predict([64, 65, 100, 150], return_bounds=True)
    assert (bounds[:, 0] <= floors).all()
    assert (floors <= bounds[:, 1]).all()
    np.testing.assert_allclose(bounds[2:, 1] / bounds[2:, 0], 1.0, atol=0.25)


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


@pytest.mark.parametrize("allocation", ["waterfilling", "blocks", pytest.param("auto", marks=pytest.mark.slow)])
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
