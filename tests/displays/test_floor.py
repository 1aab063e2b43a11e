import numpy as np
import pytest
from display_data import PAPER_FLOORS, PAPER_LOSSES, PAPER_WIDTHS
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from geofloor import AffineCalibrator, FloorPredictor, PowerLawCalibrator
from geofloor.displays import FloorDisplay


@pytest.fixture
def predictor():
    return FloorPredictor(alpha=0.99).fit(1 / np.arange(1, 1001) ** 2)


def test_floor_display_draws_predictions_critical_width_and_observed_points(predictor):
    widths = np.arange(1, 61)
    display = FloorDisplay.from_predictor(predictor, widths, observed_widths=[10, 20], observed=[0.3, 0.2])
    np.testing.assert_array_equal(display.lines_[0].get_xydata().T, [widths, predictor.predict(widths)])
    assert display.critical_lines_[0].get_xdata()[0] == predictor.critical_width_
    np.testing.assert_array_equal(display.observed_points_.get_offsets(), [[10, 0.3], [20, 0.2]])


def test_floor_display_has_one_labeled_curve_for_each_predictor(predictor):
    exact = FloorPredictor(alpha=0.99, capacity="minimax").fit(predictor.importances_)
    predictors = {"Eq. 1": predictor, "exact": exact}
    display = FloorDisplay.from_predictor(predictors, [10, 20, 40])
    for line, each in zip(display.lines_, predictors.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), each.predict([10, 20, 40]))
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == [f"{name}, d* = {each.critical_width_:,.0f}" for name, each in predictors.items()]
    assert len({(line.get_color(), line.get_linestyle()) for line in display.lines_}) == 2


def test_floor_display_takes_any_predictor_over_widths(predictor):
    calibrated = make_pipeline(FrozenEstimator(predictor), AffineCalibrator()).fit([10, 20, 40], [0.9, 0.7, 0.6])
    law = PowerLawCalibrator().fit(PAPER_WIDTHS, PAPER_LOSSES)
    display = FloorDisplay.from_predictor({"a": calibrated, "b": law}, PAPER_WIDTHS, unit="nats per token")
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), calibrated.predict(PAPER_WIDTHS))
    np.testing.assert_array_equal(display.lines_[1].get_ydata(), law.predict(PAPER_WIDTHS))
    assert "nats per token" in display.ax_.get_ylabel()


def test_a_far_critical_width_is_named_and_leaves_the_axis_with_the_widths():
    display = FloorDisplay(widths=PAPER_WIDTHS, floors=PAPER_FLOORS, critical_widths=1e5).plot()
    assert display.critical_lines_ == []
    assert display.ax_.get_xlim()[1] < 1200
    assert [text.get_text() for text in display.ax_.texts] == ["d* = 100,000 →"]


def test_floor_axis_holds_zero_and_can_be_made_logarithmic():
    ax = FloorDisplay(widths=PAPER_WIDTHS, floors=PAPER_FLOORS + 1).plot().ax_
    assert ax.get_ylim()[0] <= 0
    ax = FloorDisplay(widths=PAPER_WIDTHS, floors=PAPER_FLOORS).plot().ax_
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    assert PAPER_FLOORS.min() / 10 < low <= PAPER_FLOORS.min()
    assert PAPER_FLOORS.max() <= high < 10 * PAPER_FLOORS.max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observed": PAPER_LOSSES}, "observed_widths"),
        ({"floors": {"a": PAPER_FLOORS}, "critical_widths": {"b": 100.0}}, "critical_widths"),
    ],
)
def test_floor_display_refuses_incomplete_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FloorDisplay(**{"widths": PAPER_WIDTHS, "floors": PAPER_FLOORS, **arguments}).plot()


def test_frame_holds_curves_critical_widths_and_observed_losses(predictor):
    others = {"a": predictor, "b": PowerLawCalibrator().fit(PAPER_WIDTHS, PAPER_LOSSES)}
    display = FloorDisplay.from_predictor(others, [10, 20], observed_widths=[10], observed=[0.3])
    frame = display.frame()
    assert frame.columns.tolist() == ["source", "label", "width", "floor"]
    for label, line in zip(others, display.lines_, strict=True):
        curve = frame[(frame["source"] == "predicted") & (frame["label"] == label)]
        np.testing.assert_array_equal(curve[["width", "floor"]], line.get_xydata())
    critical = frame[frame["source"] == "critical width"]
    assert critical[["label", "width"]].to_numpy().tolist() == [["a", predictor.critical_width_]]
    observed = frame.loc[frame["source"] == "observed", ["width", "floor"]]
    np.testing.assert_array_equal(observed, display.observed_points_.get_offsets())


def test_a_logarithmic_scale_holds_all_floors():
    display = FloorDisplay(widths=PAPER_WIDTHS, floors=PAPER_FLOORS).plot(scale="log")
    assert display.ax_.get_yscale() == "log"
    assert display.ax_.get_ylim()[0] <= PAPER_FLOORS.min()


def test_styles_of_points_need_points():
    display = FloorDisplay(widths=[1, 2], floors=[2, 1], observed_widths=[1], observed=[2])
    points = display.plot(scatter_kwargs={"color": "red", "s": 9}).observed_points_
    assert points.get_sizes().tolist() == [9]
    assert points.get_facecolor().tolist() == [[1, 0, 0, 1]]
    with pytest.raises(ValueError, match="scatter_kwargs is for observed losses, and there are none"):
        FloorDisplay(widths=[1, 2], floors=[2, 1]).plot(scatter_kwargs={"s": 9})
