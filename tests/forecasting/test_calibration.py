import warnings

import joblib
import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import curve_fit, nnls
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from geofloor import AffineCalibrator, PowerLawCalibrator

# Tables 2 and 3 of the paper.
WIDTHS = np.array([128, 256, 512, 768, 1024])
FLOORS = np.array([0.0795, 0.0400, 0.0111, 0.0016, 0.0001])
OBSERVED = np.array([1.320, 1.008, 0.733, 0.652, 0.586])


def test_free_baseline_is_ordinary_least_squares():
    fitted = AffineCalibrator().fit(FLOORS, OBSERVED)
    line = stats.linregress(FLOORS, OBSERVED)
    assert fitted.slope_ == pytest.approx(line.slope)
    assert fitted.baseline_ == pytest.approx(line.intercept)
    assert fitted.r2_ == pytest.approx(line.rvalue**2)
    assert (round(fitted.slope_, 3), round(fitted.baseline_, 4), round(fitted.r2_, 4)) == (8.964, 0.6226, 0.9927)


def test_fixed_baseline_leaves_the_slope_alone_to_be_fitted():
    fitted = AffineCalibrator(baseline=0.586).fit(FLOORS, OBSERVED)
    assert fitted.slope_ == pytest.approx(FLOORS @ (OBSERVED - 0.586) / (FLOORS @ FLOORS))
    assert (round(fitted.slope_, 3), round(fitted.r2_, 3)) == (9.566, 0.982)
    assert fitted.baseline_ == 0.586
    four = AffineCalibrator(baseline=0.586).fit(FLOORS[:4], OBSERVED[:4])
    assert round(four.r2_, 3) == 0.976


def test_a_line_through_the_origin_fails_as_the_paper_says():
    fitted = AffineCalibrator(baseline=0.0).fit(FLOORS, OBSERVED)
    assert (round(fitted.slope_, 2), round(fitted.r2_, 3)) == (19.20, -1.983)


@pytest.mark.parametrize("baseline", [None, 2.0])
def test_a_falling_line_has_slope_zero(baseline):
    with pytest.warns(UserWarning, match="losses do not rise with the floors, so the slope is held at 0"):
        fitted = AffineCalibrator(baseline=baseline).fit([1.0, 2.0, 3.0], [3.0, 2.0, 1.5])
    assert fitted.slope_ == 0
    assert fitted.baseline_ == pytest.approx(np.mean([3.0, 2.0, 1.5]) if baseline is None else baseline)
    _, interval = fitted.predict([1.0, 9.0], return_interval=True)
    assert np.isfinite(interval).all()


@pytest.mark.filterwarnings("ignore:The losses do not rise")
@given(st.integers(0, 10_000))
def test_several_terms_are_non_negative_least_squares(seed):
    rng = np.random.default_rng(seed)
    floors, observed = rng.normal(size=(12, 3)), rng.normal(size=12)
    fitted = AffineCalibrator(baseline=0.0).fit(floors, observed)
    np.testing.assert_allclose(fitted.slope_, nnls(floors, observed)[0], atol=1e-8)


def test_prediction_interval_is_the_students_t_one():
    fitted = AffineCalibrator().fit(FLOORS, OBSERVED)
    predicted, interval = fitted.predict([0.02], return_interval=True, level=0.9)
    n, x = len(FLOORS), FLOORS
    scale = np.sqrt(np.square(OBSERVED - fitted.predict(x)).sum() / (n - 2))
    spread = scale * np.sqrt(1 + 1 / n + (0.02 - x.mean()) ** 2 / np.square(x - x.mean()).sum())
    half = stats.t.ppf(0.95, n - 2) * spread
    np.testing.assert_allclose(interval, [[predicted[0] - half, predicted[0] + half]])


def test_without_residual_freedom_the_interval_is_unbounded():
    fitted = AffineCalibrator().fit([1.0, 2.0], [1.0, 3.0])
    predicted, interval = fitted.predict([3.0], return_interval=True)
    assert predicted == pytest.approx([5.0])
    assert interval.tolist() == [[-np.inf, np.inf]]


def test_intervals_cover_new_runs_as_often_as_they_say(rng):
    covered = []
    for _ in range(400):
        x, new = rng.random(6), rng.random(1)
        fitted = AffineCalibrator(baseline=0.5).fit(x, 2 * x + 0.5 + 0.1 * rng.normal(size=6))
        _, ((low, high),) = fitted.predict(new, return_interval=True, level=0.8)
        covered.append(low <= 2 * new[0] + 0.5 + 0.1 * rng.normal() <= high)
    assert stats.binomtest(sum(covered), len(covered), 0.8).pvalue > 1e-4


def test_decompose_is_table_5():
    table = AffineCalibrator(baseline=0.586).fit(FLOORS, OBSERVED).decompose(FLOORS, OBSERVED)
    np.testing.assert_allclose(table["geometric"] + table["baseline"] + table["residual"], OBSERVED)
    np.testing.assert_array_equal(table["percent_geometric"].round(1)[:4], [55.6, 41.9, 20.1, 10.1])


def test_a_vector_of_floors_equals_one_column():
    vector = AffineCalibrator().fit(FLOORS, OBSERVED)
    column = AffineCalibrator().fit(FLOORS[:, np.newaxis], OBSERVED)
    np.testing.assert_array_equal(vector.predict(FLOORS), column.predict(FLOORS[:, np.newaxis]))


def test_affine_bad_arguments_are_named():
    with pytest.raises(ValueError, match="give a second run or a baseline"):
        AffineCalibrator().fit([1.0], [1.0])
    with pytest.raises(ValueError, match="baseline=nan"):
        AffineCalibrator(baseline=np.nan).fit(FLOORS, OBSERVED)
    with pytest.raises(ValueError, match="level=1.5"):
        AffineCalibrator().fit(FLOORS, OBSERVED).predict(FLOORS, return_interval=True, level=1.5)
    with pytest.raises(ValueError, match="contains NaN"):
        AffineCalibrator().fit([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(NotFittedError):
        AffineCalibrator().predict(FLOORS)


def test_power_law_is_equation_4():
    law = PowerLawCalibrator().fit(WIDTHS, OBSERVED)
    assert (round(law.scale_, 3), round(law.exponent_, 4), round(law.offset_, 4)) == (11.593, 0.4688, 0.1319)
    assert round(law.r2_, 3) == 0.998
    reference, _ = curve_fit(lambda d, a, g, c: a * d**-g + c, WIDTHS, OBSERVED, p0=[10, 0.5, 0.1])
    np.testing.assert_allclose([law.scale_, law.exponent_, law.offset_], reference, rtol=1e-4)


@given(st.floats(0.5, 50), st.floats(0.05, 3), st.floats(-1, 1))
def test_power_law_finds_the_law_it_is_shown(scale, exponent, offset):
    losses = scale * WIDTHS**-exponent + offset
    law = PowerLawCalibrator().fit(WIDTHS[:, np.newaxis], losses)
    np.testing.assert_allclose(law.predict([64, 2048]), scale * np.array([64, 2048.0]) ** -exponent + offset, rtol=1e-4)


def test_power_law_of_rising_losses_is_flat():
    with pytest.warns(UserWarning, match=r"rises with width: 0.586 at width 128, 1.32 at width 1024"):
        law = PowerLawCalibrator().fit(WIDTHS, OBSERVED[::-1])
    np.testing.assert_allclose(law.predict(WIDTHS), OBSERVED.mean())


def test_power_law_bad_arguments_are_named():
    with pytest.raises(ValueError, match="2 different widths"):
        PowerLawCalibrator().fit([1, 2, 2], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="width 0"):
        PowerLawCalibrator().fit([0, 1, 2], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="2 columns"):
        PowerLawCalibrator().fit(np.ones((4, 2)), np.ones(4))


def fit_with_a_slope_of_zero():
    return AffineCalibrator(baseline=2.0).fit([1.0, 2.0, 3.0], [1.5, 1.0, 1.5])


@pytest.mark.filterwarnings("ignore:The losses do not rise")
def test_fitting_in_threads_leaves_the_warning_filters_alone():
    before = list(warnings.filters)
    joblib.Parallel(n_jobs=8, backend="threading")(joblib.delayed(fit_with_a_slope_of_zero)() for _ in range(200))
    assert warnings.filters == before


def test_a_rank_that_is_not_full_is_no_warning():
    with pytest.warns(UserWarning, match="The losses do not rise") as caught:
        fit_with_a_slope_of_zero()
    assert len(caught) == 1


@pytest.mark.parametrize("baseline", [None, 0.3])
def test_results_are_those_of_statsmodels(baseline, rng):
    floors, observed = rng.random((12, 3)), rng.random(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = AffineCalibrator(baseline=baseline).fit(floors, observed)
        expected = sm.OLS(observed - (baseline or 0.0), fitted.results_.model.exog).fit()
    np.testing.assert_array_equal(fitted.results_.params, expected.params)
    np.testing.assert_array_equal(fitted.results_.bse, expected.bse)
    assert (fitted.results_.df_resid, fitted.results_.rsquared) == (expected.df_resid, expected.rsquared)


@pytest.mark.parametrize(
    ("calibrator", "X"), [(AffineCalibrator(), [3.0, 2.0, 1.0, 0.5]), (PowerLawCalibrator(), [8, 16, 32, 64])]
)
def test_what_is_no_number_is_named(calibrator, X):
    y = [4.0, 3.0, 2.5, 2.2]
    for values, message in [
        (["1", "2", "3", "4"], "holds text"),
        ([10**400, 2, 3, 4], "float64"),
        (np.ma.masked_greater(np.arange(4.0), 2), "masked"),
        (np.arange(4).astype("datetime64[D]"), "dates"),
        (np.arange(4) + 1j, "Complex data not supported"),
        ({1.0, 2.0}, "is a set"),
        (iter([1.0]), "list_iterator"),
        (np.array([None, 1.0, 0.8, 0.7], dtype=object), "NaN"),
    ]:
        with pytest.raises(ValueError, match=f"^X.*{message}"):
            calibrator.fit(values, y)
        with pytest.raises(ValueError, match=f"^y.*{message}"):
            calibrator.fit(X, values)
        fitted, name = clone(calibrator).fit(X, y), "X" if isinstance(calibrator, AffineCalibrator) else "widths"
        with pytest.raises(ValueError, match=f"^{name}.*{message}"):
            fitted.predict(values)


def test_tensors_are_read():
    X, y = torch.tensor([64, 32, 16, 8]), torch.tensor([2.25, 2.5, 3.0, 4.0], requires_grad=True)
    expected = PowerLawCalibrator().fit(X.numpy(), y.detach().numpy()).predict([10.0])
    assert PowerLawCalibrator().fit(X.bfloat16(), y.bfloat16()).predict(torch.tensor([10.0])) == expected
    expected = AffineCalibrator().fit(-y.detach().numpy(), X.numpy()).predict([10.0])
    assert AffineCalibrator().fit(-y.bfloat16(), X.bfloat16()).predict(torch.tensor([10.0])) == expected


def test_floors_too_small_for_a_slope_are_named():
    with pytest.raises(ValueError, match=r"X holds floors of at most .*e-3.*, so that the slope overflows"):
        AffineCalibrator(0.5).fit(FLOORS * 1e-310, OBSERVED)


def test_losses_too_large_to_square_are_named():
    for calibrator, X in ((AffineCalibrator(), FLOORS), (PowerLawCalibrator(), WIDTHS)):
        with pytest.raises(ValueError, match="^y holds .*1.32e.300"):
            calibrator.fit(X, 1e300 * OBSERVED)
    with pytest.raises(ValueError, match=r"X holds 7.95e.298, which is too large to square"):
        AffineCalibrator().fit(1e300 * FLOORS, OBSERVED)
    with pytest.raises(ValueError, match=r"baseline=1e.300 must be a finite number"):
        AffineCalibrator(1e300).fit(FLOORS, OBSERVED)


def test_losses_in_the_place_of_widths_are_named():
    with pytest.raises(ValueError, match="widths come first, then losses in nats per token; exchange X and y"):
        PowerLawCalibrator().fit(OBSERVED, WIDTHS)


def test_power_law_at_width_0_is_infinite_if_it_falls():
    assert PowerLawCalibrator().fit(WIDTHS, OBSERVED).predict([0, 128])[0] == np.inf
    assert PowerLawCalibrator().fit(WIDTHS, np.ones(5)).predict([0]).tolist() == [1.0]
    with pytest.raises(ValueError, match="widths: -1 is below 0"):
        PowerLawCalibrator().fit(WIDTHS, OBSERVED).predict([-1])


def test_intervals_are_at_90_percent_by_default():
    fitted = AffineCalibrator().fit(FLOORS, OBSERVED)
    default, at_90 = (fitted.predict([0.02], return_interval=True, **level)[1] for level in ({}, {"level": 0.9}))
    np.testing.assert_array_equal(default, at_90)
