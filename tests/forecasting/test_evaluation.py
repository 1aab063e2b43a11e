import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from geofloor import AffineCalibrator, FloorPredictor, PowerLawCalibrator
from geofloor.forecasting import forecast_errors, forecast_table

# Tables 2 and 3 of the paper.
WIDTHS = np.array([128, 256, 512, 768, 1024])
OBSERVED = np.array([1.320, 1.008, 0.733, 0.652, 0.586])
# Of two scales, so that a multiplier is neither a slope nor a baseline.
IMPORTANCES = np.exp(-np.arange(30_000) / 2_000) + 0.1 * np.exp(-np.arange(30_000) / 10_000)
LOGARITHMIC = make_pipeline(FunctionTransformer(np.log), LinearRegression())


@pytest.fixture
def floor():
    return FloorPredictor(alpha=0.99).fit(IMPORTANCES)


def test_left_out_widths_are_predicted_by_the_line_through_the_others():
    errors = forecast_errors(LOGARITHMIC, WIDTHS, OBSERVED)
    for i in range(len(WIDTHS)):
        rest = np.delete(np.arange(len(WIDTHS)), i)
        line = np.polyfit(np.log(WIDTHS[rest]), OBSERVED[rest], 1)
        assert errors.left_out[i] == pytest.approx(np.polyval(line, np.log(WIDTHS[i])) / OBSERVED[i] - 1)


def test_two_runs_fix_a_line_through_the_widest():
    errors = forecast_errors(LOGARITHMIC, WIDTHS, OBSERVED).two_runs
    assert errors.shape == (4, 5)
    for k in range(4):
        np.testing.assert_array_equal(np.isnan(errors[k]), np.isin(np.arange(5), [k, 4]))
        for i in np.flatnonzero(np.isfinite(errors[k])):
            share = np.log(WIDTHS[i] / WIDTHS[k]) / np.log(WIDTHS[4] / WIDTHS[k])
            line = OBSERVED[k] + share * (OBSERVED[4] - OBSERVED[k])
            assert errors[k, i] == pytest.approx(line / OBSERVED[i] - 1)


def test_the_table_sums_up_the_errors():
    table = forecast_table({"log": LOGARITHMIC, "law": PowerLawCalibrator()}, WIDTHS, OBSERVED)
    errors = forecast_errors(LOGARITHMIC, WIDTHS, OBSERVED)
    row = table.loc["log"]
    assert row.left_out == np.median(np.abs(errors.left_out))
    assert row.inside == np.median(np.abs(errors.left_out[1:-1]))
    medians = [np.median(np.abs(row[np.isfinite(row)])) for row in errors.two_runs]
    assert (row.two_runs_best, row.two_runs, row.two_runs_worst) == (min(medians), np.median(medians), max(medians))
    assert table.r2["law"] == pytest.approx(PowerLawCalibrator().fit(WIDTHS, OBSERVED).r2_)
    assert table.loc["law", ["two_runs", "two_runs_best", "two_runs_worst"]].isna().all()


def test_floors_that_hold_are_forecast_from_two_runs(floor):
    estimator = make_pipeline(FrozenEstimator(floor), AffineCalibrator())
    errors = forecast_errors(estimator, WIDTHS, 3.0 * floor.predict(WIDTHS) + 0.5)
    np.testing.assert_allclose(errors.left_out, 0.0, atol=1e-9)
    np.testing.assert_allclose(errors.two_runs[np.isfinite(errors.two_runs)], 0.0, atol=1e-9)


def test_groups_are_left_out_whole():
    widths, groups = np.tile(WIDTHS, 3), np.repeat(["a", "b", "c"], len(WIDTHS))
    losses = np.outer([1.0, 1.2, 1.7], OBSERVED).ravel()
    table = forecast_table({"log": LOGARITHMIC}, widths, losses, groups=groups)
    alone = forecast_table({"log": LOGARITHMIC}, WIDTHS, OBSERVED)
    np.testing.assert_allclose(table[alone.columns], alone)  # relative errors do not depend on a factor
    errors = []
    for name in "abc":
        line = np.polyfit(np.log(widths[groups != name]), losses[groups != name], 1)
        errors.append(np.median(np.abs(np.polyval(line, np.log(WIDTHS)) / losses[groups == name] - 1)))
    assert table.group_out["log"] == pytest.approx(np.median(errors))
    with pytest.raises(ValueError, match="groups holds 'a' only; give two groups or more"):
        forecast_table({"log": LOGARITHMIC}, WIDTHS, OBSERVED, groups=["a"] * 5)
    with pytest.raises(ValueError, match=r"groups has shape \(4,\), widths \(5,\)"):
        forecast_table({"log": LOGARITHMIC}, WIDTHS, OBSERVED, groups=["a"] * 4)
    with pytest.raises(ValueError, match="groups holds a missing value"):
        forecast_table({"log": LOGARITHMIC}, WIDTHS, OBSERVED, groups=["a", "b", None, "a", "b"])


def test_bad_input():
    with pytest.raises(ValueError, match="ascending"):
        forecast_errors(LOGARITHMIC, [1, 1, 2], [3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="above 0"):
        forecast_errors(LOGARITHMIC, [1, 2, 3], [3.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="one loss per width"):
        forecast_errors(LOGARITHMIC, [1, 2, 3], [3.0, 2.0])
    with pytest.raises(ValueError, match="estimators is empty"):
        forecast_table({}, WIDTHS, OBSERVED)


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
def test_what_is_no_number_is_named(values, message):
    for call, x, y in [
        (lambda a, b: forecast_errors(LOGARITHMIC, a, b), "widths", "losses"),
        (lambda a, b: forecast_table({"log": LOGARITHMIC}, a, b), "widths", "losses"),
    ]:
        with pytest.raises(ValueError, match=f"^{x}.*{message}"):
            call(values, [3.0, 2.0, 1.0])
        with pytest.raises(ValueError, match=f"^{y}.*{message}"):
            call([1, 2, 3], values)


def test_a_wrong_kind_of_object_is_named():
    with pytest.raises(TypeError, match="estimator=3 has no fit and predict"):
        forecast_errors(3, WIDTHS, OBSERVED)
    with pytest.raises(TypeError, match=r"estimators\['law'\]=3 has no fit and predict"):
        forecast_table({"law": 3}, WIDTHS, OBSERVED)
    with pytest.raises(TypeError, match="estimators=.* is a list; give a dict of estimators by name"):
        forecast_table([LOGARITHMIC], WIDTHS, OBSERVED)


def test_losses_in_the_place_of_widths_are_named():
    with pytest.raises(ValueError, match="exchange widths and losses"):
        forecast_errors(LOGARITHMIC, OBSERVED[::-1], WIDTHS)
