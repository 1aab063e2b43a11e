import numpy as np
import pytest
from display_data import ALPHAS, N_FEATURES, chosen

from geofloor.displays import SparsityDisplay


def test_sparsity_display_draws_one_teachers_students(summary):
    display = SparsityDisplay.from_summary(summary, teacher_width=3, predicted="naive")
    assert len(display.axes_) == len(N_FEATURES)
    assert set(display.lines_) == {(n_features, alpha) for n_features in N_FEATURES for alpha in ALPHAS}
    for (n_features, alpha), line in display.lines_.items():
        points = chosen(summary, n_features, alpha, 3)
        assert line.axes is display.axes_[N_FEATURES.index(n_features)]
        np.testing.assert_array_equal(line.get_xydata(), points[["width", "floor"]])
        np.testing.assert_array_equal(display.predicted_lines_[n_features, alpha].get_ydata(), points["naive"])
    assert len({line.get_color() for line in display.lines_.values()}) == len(ALPHAS)


def test_a_single_seed_has_no_spread(summary):
    display = SparsityDisplay.from_summary(summary.assign(floor_std=np.nan))
    assert np.isfinite(display.lines_[10, 0.8].get_ydata()).all()


def test_frame_holds_the_points_of_one_teacher(summary):
    display = SparsityDisplay.from_summary(summary, teacher_width=3, scale="log")
    frame = display.frame()
    assert set(frame["teacher_width"]) == {3}
    for (n_features, alpha), line in display.lines_.items():
        points = chosen(frame, n_features, alpha, 3)
        np.testing.assert_array_equal(points[["width", "floor"]], line.get_xydata())
        np.testing.assert_array_equal(points["Eq. 2"], display.predicted_lines_[n_features, alpha].get_ydata())
    assert {ax.get_yscale() for ax in display.axes_} == {"log"}


def test_students_of_several_teachers_are_refused(summary):
    with pytest.raises(ValueError, match=r"points has the teacher widths \[3, 5\]; select one"):
        SparsityDisplay(points=summary).plot()
    with pytest.raises(ValueError, match=r"teacher_width=8 is not in the summary; it has \[3, 5\]"):
        SparsityDisplay.from_summary(summary, teacher_width=8)
