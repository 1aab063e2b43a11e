import numpy as np
import pytest
from scipy.stats import linregress
from sklearn.metrics import mean_squared_error

from geofloor.displays import PredictionDisplay
from geofloor.forecasting import agreement_table


def test_prediction_display_draws_floors_above_zero_and_counts_the_rest(summary):
    display = PredictionDisplay.from_summary(summary)
    for (name, alpha), points in display.points_.items():
        above = summary[(summary["alpha"] == alpha) & (summary[name] > 0)]
        np.testing.assert_array_equal(points.get_offsets(), above[["floor", name]])
    n_zero = (summary[["Eq. 2", "naive"]] == 0).sum()
    assert n_zero["Eq. 2"] > 0
    assert display.statistics_["n_not_drawn"].tolist() == n_zero.tolist()
    assert display.statistics_["n_points"].tolist() == [len(summary)] * 2
    assert f"{n_zero['Eq. 2']} of them zero" in display.axes_[0].get_title(loc="left")


def test_prediction_statistics_are_those_of_all_points(summary):
    statistics = PredictionDisplay.from_summary(summary).statistics_.loc["Eq. 2"]
    measured, predicted = summary["floor"], summary["Eq. 2"]
    error = np.median(np.abs(predicted - measured) / measured)
    assert statistics["pearson_r"] == pytest.approx(linregress(measured, predicted).rvalue)
    assert statistics["r2"] == pytest.approx(1 - mean_squared_error(measured, predicted) / measured.var(ddof=0))
    assert statistics["median_error"] == pytest.approx(error)


def test_prediction_statistics_are_nan_where_they_are_not_defined():
    statistics = PredictionDisplay(measured=[0.1], predicted={"a": [0.2]}, alphas=[0.9]).plot().statistics_.loc["a"]
    assert np.isnan(statistics[["pearson_r", "r2"]].to_numpy()).all()
    assert statistics["median_error"] == pytest.approx(1)


def test_statistics_are_those_of_the_agreement_table(summary):
    statistics = PredictionDisplay.from_summary(summary).statistics_
    table = agreement_table(summary["floor"], {name: summary[name] for name in ("Eq. 2", "naive")})
    for name in statistics.columns.drop("n_not_drawn"):
        np.testing.assert_array_equal(statistics[name], table[name])
    assert statistics.index.tolist() == table["predictor"].tolist()


def test_frame_holds_all_points_and_says_which_are_drawn(summary):
    display = PredictionDisplay.from_summary(summary)
    frame = display.frame()
    assert len(frame) == 2 * len(summary)
    for (name, alpha), points in display.points_.items():
        drawn = frame[frame["drawn"] & (frame["predictor"] == name) & (frame["alpha"] == alpha)]
        np.testing.assert_array_equal(drawn[["measured", "predicted"]], points.get_offsets())


def test_no_floor_above_zero_is_refused(summary):
    with pytest.raises(ValueError, match="above zero"):
        PredictionDisplay.from_summary(summary.assign(naive=0.0), predicted="naive")
