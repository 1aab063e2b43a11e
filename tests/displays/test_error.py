import numpy as np
import pytest
from display_data import ALPHAS

from geofloor.displays import ErrorDisplay


def test_error_display_draws_signed_errors_from_extreme_to_extreme(summary):
    display = ErrorDisplay.from_summary(summary)
    assert set(display.boxes_) == {(name, alpha) for name in ("Eq. 2", "naive") for alpha in ALPHAS}
    for (name, alpha), box in display.boxes_.items():
        points = summary[summary["alpha"] == alpha]
        errors = 100 * (points[name] - points["floor"]) / points["floor"]
        drawn = [box["caps"][0], box["medians"][0], box["caps"][1]]
        np.testing.assert_allclose([line.get_ydata()[0] for line in drawn], np.quantile(errors, [0, 0.5, 1]))
    positions = [box["medians"][0].get_xdata().mean() for box in display.boxes_.values()]
    assert len(np.unique(np.round(positions, 6))) == 2 * len(ALPHAS)


@pytest.mark.parametrize(("largest", "scale"), [(900.0, "linear"), (90_000.0, "symlog")])
def test_error_axis_is_logarithmic_only_for_large_errors(largest, scale):
    assert ErrorDisplay(errors={"a": [-50.0, largest]}, alphas=[0.9, 0.9]).plot().ax_.get_yscale() == scale


def test_frame_holds_the_errors_of_each_box(summary):
    display = ErrorDisplay.from_summary(summary)
    frame = display.frame()
    for (name, alpha), box in display.boxes_.items():
        errors = frame.loc[(frame["predictor"] == name) & (frame["alpha"] == alpha), "error"]
        assert box["medians"][0].get_ydata()[0] == np.median(errors)
        assert [cap.get_ydata()[0] for cap in box["caps"]] == [errors.min(), errors.max()]


def test_no_measured_floor_above_zero_is_refused(summary):
    with pytest.raises(ValueError, match="no value above zero"):
        ErrorDisplay.from_summary(summary.assign(floor=0.0))
