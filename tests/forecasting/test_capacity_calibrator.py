import numpy as np
import pytest
from scipy.optimize import least_squares
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from geofloor import FloorPredictor
from geofloor.forecasting import CapacityCalibrator

# Tables 2 and 3 of the paper.
WIDTHS = np.array([128, 256, 512, 768, 1024])
OBSERVED = np.array([1.320, 1.008, 0.733, 0.652, 0.586])
# Of two scales, so that a multiplier is neither a slope nor a baseline.
IMPORTANCES = np.exp(-np.arange(30_000) / 2_000) + 0.1 * np.exp(-np.arange(30_000) / 10_000)


@pytest.fixture
def floor():
    return FloorPredictor(alpha=0.99).fit(IMPORTANCES)


@pytest.mark.parametrize("multiplier", [0.6, 2.5])
def test_a_multiplier_is_found_again_and_is_one_of_the_capacity(floor, multiplier):
    scaled = FloorPredictor(alpha=0.99, capacity=lambda _: multiplier * floor.capacity_)
    scaled.fit(IMPORTANCES)
    losses = 3.0 * scaled.predict(WIDTHS) + 0.5
    fitted = CapacityCalibrator(floor).fit(WIDTHS, losses)
    assert fitted.multiplier_ == pytest.approx(multiplier, rel=0.01)
    assert (fitted.slope_, fitted.baseline_) == pytest.approx((3.0, 0.5), rel=0.01)
    assert fitted.r2_ > 0.9999
    np.testing.assert_allclose(fitted.predict([200, 400]), 3.0 * scaled.predict([200, 400]) + 0.5, rtol=1e-3)


def test_multiplier_is_the_least_squares_optimum(floor):
    fitted = CapacityCalibrator(floor).fit(WIDTHS, OBSERVED)

    def residuals(parameters):
        log_multiplier, slope, baseline = parameters
        return slope * floor.predict(np.exp(log_multiplier) * WIDTHS) + baseline - OBSERVED

    starts = [(np.log(k), 0.1, 0.3) for k in (0.3, 1.0, 3.0)]
    bounds = ([np.log(0.25), 0, 0], [np.log(8.0), np.inf, np.inf])
    # Steps of the differences are wide, since the floor itself is a staircase.
    independent = min(
        np.square(least_squares(residuals, start, bounds=bounds, x_scale="jac", diff_step=1e-2).fun).sum()
        for start in starts
    )
    ours = np.square(residuals([np.log(fitted.multiplier_), fitted.slope_, fitted.baseline_])).sum()
    assert ours <= independent * (1 + 1e-3)
    assert min(fitted.slope_, fitted.baseline_) >= 0


def test_clones_share_the_predictor(floor):
    copy = clone(CapacityCalibrator(floor, largest=4.0))
    assert copy.largest == 4.0
    assert copy.predictor is floor
    frozen = CapacityCalibrator(FrozenEstimator(floor), largest=4.0).fit(WIDTHS, OBSERVED)
    assert frozen.multiplier_ == clone(copy).fit(WIDTHS, OBSERVED).multiplier_
    assert copy.fit(WIDTHS, OBSERVED).score(WIDTHS, OBSERVED) == pytest.approx(copy.r2_)
    np.testing.assert_array_equal(copy.predict(WIDTHS), copy.predict(WIDTHS[:, np.newaxis]))


def test_width_0_has_the_whole_floor(floor):
    fitted = CapacityCalibrator(floor).fit(WIDTHS, OBSERVED)
    assert fitted.predict([0]) == pytest.approx(fitted.slope_ * IMPORTANCES.sum() + fitted.baseline_)
    with pytest.raises(ValueError, match="widths: -1 is below 0"):
        fitted.predict([-1])


def test_bad_input(floor):
    with pytest.raises(ValueError, match="at least 4"):
        CapacityCalibrator(floor).fit([1, 2, 3], [3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="smallest=2.0 must be below largest=1.0"):
        CapacityCalibrator(floor, smallest=2, largest=1).fit(WIDTHS, OBSERVED)
    with pytest.raises(ValueError, match="NaN"):
        CapacityCalibrator(floor).fit(WIDTHS, [np.nan, 2, 3, 4, 5])
    with pytest.raises(TypeError, match="predictor=3 has no predict"):
        CapacityCalibrator(3).fit(WIDTHS, OBSERVED)
    with pytest.warns(UserWarning, match="rises with width: 0.586 at width 128, 1.32 at width 1024"):
        CapacityCalibrator(floor).fit(WIDTHS, OBSERVED[::-1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "2", "3"], "text"),
        ([1, 2, 10**400], "float64"),
        (np.ma.masked_greater(np.arange(3.0), 1), "masked"),
        (np.arange(3).astype("datetime64[D]"), "dates"),
        (np.array([None, 2.0, 1.0], dtype=object), "NaN"),
        ({1.0, 2.0}, "is a set"),
    ],
)
def test_what_is_no_number_is_named(values, message, floor):
    with pytest.raises(ValueError, match=f"^X.*{message}"):
        CapacityCalibrator(floor).fit(values, [3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=f"^y.*{message}"):
        CapacityCalibrator(floor).fit([1, 2, 3], values)
