import numpy as np
import pytest
from display_data import WIDTHS, texts
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from geofloor import AffineCalibrator
from geofloor.displays import DistilledFloorsDisplay


def test_floors_are_means_over_seeds_and_every_student_is_a_point(floors):
    display = DistilledFloorsDisplay(floors=floors, critical_widths=30.0).plot()
    np.testing.assert_allclose(display.line_.get_xydata(), np.column_stack([WIDTHS, [0.8, 0.495, 0.1]]))
    points, _, (bars,) = display.errorbars_
    np.testing.assert_array_equal(points.get_xydata(), floors[["width", "floor"]])
    ends = np.array(bars.get_segments())[:, :, 1]
    np.testing.assert_allclose(np.diff(ends, axis=1)[:, 0], 2 * floors["floor_error"])
    assert display.predicted_lines_ == {}
    assert display.critical_lines_[0].get_xdata()[0] == 30.0
    assert display.ax_.get_ylabel() == "floor (nats per token)"
    assert display.ax_.get_ylim()[0] == 0


def test_each_curve_is_normalized_by_its_own_narrowest_width(floors, predictor):
    display = DistilledFloorsDisplay.from_predictor(predictor, floors, normalized=True)
    predicted = predictor.predict(WIDTHS)
    np.testing.assert_allclose(
        display.predicted_lines_["predicted"].get_xydata(), np.column_stack([WIDTHS, predicted / predicted[0]])
    )
    np.testing.assert_allclose(display.line_.get_ydata(), [1.0, 0.495 / 0.8, 0.1 / 0.8])
    np.testing.assert_allclose(display.errorbars_[0].get_ydata(), floors["floor"] / 0.8)
    assert texts(display.ax_.get_legend()) == [f"predicted, d* = {predictor.critical_width_:,.0f}", "observed"]
    assert display.ax_.get_ylabel() == "floor (relative to d = 8)"


def test_calibrated_predictions_are_drawn_in_nats_by_label(floors, predictor):
    seed_0 = floors[floors["seed"] == 0].drop(columns=["seed", "floor_error"])
    calibrated = make_pipeline(FrozenEstimator(predictor), AffineCalibrator()).fit(WIDTHS, seed_0["floor"])
    display = DistilledFloorsDisplay.from_predictor(
        {"a": calibrated, "b": predictor}, seed_0, critical_widths={"a": 20.0}, scale="log"
    )
    np.testing.assert_array_equal(display.predicted_lines_["a"].get_ydata(), calibrated.predict(WIDTHS))
    np.testing.assert_array_equal(display.predicted_lines_["b"].get_ydata(), predictor.predict(WIDTHS))
    assert [line.get_xdata()[0] for line in display.critical_lines_] == [20.0]
    assert display.ax_.get_yscale() == "log"


def test_floors_that_do_not_fit_together_are_refused(floors, predictor):
    with pytest.raises(ValueError, match="observed floor of the narrowest width, which is 0"):
        DistilledFloorsDisplay(floors=floors.assign(floor=0.0), normalized=True).plot()
    with pytest.raises(ValueError, match="none floor of the narrowest width"):
        DistilledFloorsDisplay(floors=floors, predicted={"none": [0.0, 0.0, 0.0]}, normalized=True).plot()
    with pytest.raises(ValueError, match=r"predicted\['a'\] has 2 values for 3 widths"):
        DistilledFloorsDisplay(floors=floors, predicted={"a": [1.0, 2.0]}).plot()
    with pytest.raises(ValueError, match="critical_widths"):
        DistilledFloorsDisplay.from_predictor(predictor, floors, critical_widths={"b": 3.0})


@pytest.mark.parametrize("normalized", [False, True])
def test_frame_holds_students_means_and_predictions(floors, predictor, normalized):
    display = DistilledFloorsDisplay.from_predictor(predictor, floors, normalized=normalized)
    frame = display.frame()
    students, means, predicted = (frame[frame["source"] == each] for each in ("student", "mean", "predicted"))
    points, _, (bars,) = display.errorbars_
    np.testing.assert_array_equal(students[["width", "floor"]], points.get_xydata())
    np.testing.assert_allclose(2 * students["floor_error"], np.ptp(np.array(bars.get_segments())[:, :, 1], axis=1))
    np.testing.assert_array_equal(means[["width", "floor"]], display.line_.get_xydata())
    np.testing.assert_array_equal(predicted[["width", "floor"]], display.predicted_lines_["predicted"].get_xydata())


def test_normalized_floors_have_no_unit(floors):
    with pytest.raises(ValueError, match="unit='bits' counts only without normalized=True"):
        DistilledFloorsDisplay(floors=floors, normalized=True, unit="bits").plot()
