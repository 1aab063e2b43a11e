import numpy as np
import pytest
from display_data import ALPHAS, N_FEATURES, chosen

from geofloor.displays import CollapseDisplay
from geofloor.theory import critical_width


def test_collapse_display_divides_by_total_and_critical_width(summary):
    display = CollapseDisplay.from_summary(summary, capacity="minimax")
    assert len(display.lines_) == len(N_FEATURES) * len(ALPHAS)
    for (n_features, alpha), (line,) in display.lines_.items():
        points = chosen(summary, n_features, alpha, 5)
        widths, floors = line.get_xydata().T
        np.testing.assert_allclose(widths * critical_width(n_features, alpha, "minimax"), points["width"])
        np.testing.assert_allclose(floors * points["total"].iloc[0], points["floor"])
    assert len({lines[0].get_marker() for lines in display.lines_.values()}) == len(N_FEATURES)
    assert display.critical_line_.get_xdata()[0] == 1


def test_frame_holds_both_ratios(summary):
    display = CollapseDisplay.from_summary(summary, scale="log")
    assert display.ax_.get_yscale() == "log"
    frame = display.frame()
    for (n_features, alpha), (line,) in display.lines_.items():
        points = chosen(frame, n_features, alpha, 5)
        np.testing.assert_array_equal(points[["relative_width", "relative_floor"]], line.get_xydata())


def test_a_total_of_zero_is_refused(summary):
    with pytest.raises(ValueError, match="total"):
        CollapseDisplay.from_summary(summary.assign(total=0.0))
