import numpy as np
import pytest
from display_data import ALPHAS, N_FEATURES, TEACHERS, chosen

from geofloor.displays import FloorGridDisplay
from geofloor.theory import critical_width


def test_floor_grid_draws_teachers_that_make_no_difference_once(summary):
    display = FloorGridDisplay.from_summary(summary, predicted=["Eq. 2", "naive"])
    assert display.axes_.shape == (2, 3)
    for (n_features, alpha), lines in display.lines_.items():
        widest = chosen(summary, n_features, alpha, 5)
        (line,), (band,), predicted = (
            lines,
            display.bands_[n_features, alpha],
            display.predicted_lines_[n_features, alpha],
        )
        assert line.axes is display.axes_[N_FEATURES.index(n_features), ALPHAS.index(alpha)]
        np.testing.assert_array_equal(line.get_xydata(), widest[["width", "floor"]])
        for each, name in zip(predicted, ["Eq. 2", "naive"], strict=True):
            np.testing.assert_array_equal(each.get_xydata(), widest[["width", name]])
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(1.1 * widest["floor"].max())


def test_floor_grid_draws_teachers_that_make_a_difference_apart(summary):
    summary.loc[(summary["alpha"] == 0.9) & (summary["teacher_width"] == 3), "floor"] *= 1.5
    display = FloorGridDisplay.from_summary(summary, spread=None)
    assert {place: len(lines) for place, lines in display.lines_.items()} == {
        (n_features, alpha): 2 if alpha == 0.9 else 1 for n_features in N_FEATURES for alpha in ALPHAS
    }
    for line, teacher_width in zip(display.lines_[40, 0.9], TEACHERS, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), chosen(summary, 40, 0.9, teacher_width)["floor"])
    labels = [text.get_text() for text in display.figure_.legends[0].get_texts()]
    assert [label for label in labels if "teacher" in label] == ["teacher width 3", "teacher width 5"]


@pytest.mark.parametrize("method", ["asymptotic", "minimax_nonnegative"])
def test_floor_grid_marks_critical_widths_within_the_axes_and_names_all(summary, method):
    display = FloorGridDisplay.from_summary(summary, capacity=method)
    expected = {(n, alpha): critical_width(n, alpha, method) for n in N_FEATURES for alpha in ALPHAS}
    drawn = {place: line.get_xdata()[0] for place, line in display.critical_lines_.items()}
    assert drawn == {place: width for place, width in expected.items() if width <= 5.5}
    texts = [ax.texts[0].get_text() for ax in display.axes_.flat]
    assert texts == [f"d* = {width:.2f}" + (" →" if width > 5.5 else "") for width in expected.values()]


def test_floor_grid_leaves_the_panel_of_an_absent_configuration_empty(summary):
    display = FloorGridDisplay.from_summary(summary.query("not (n_features == 40 and alpha == 0.9)"))
    assert (40, 0.9) not in display.lines_
    assert [ax.axison for ax in display.axes_.flat] == [True, True, True, True, False, True]
    assert display.axes_[0, 1].xaxis.get_tick_params()["labelbottom"]


def test_frame_holds_the_points_of_each_panel(summary):
    display = FloorGridDisplay.from_summary(summary, predicted=["Eq. 2", "naive"])
    frame = display.frame()
    for (n_features, alpha), (line,) in display.lines_.items():
        points = chosen(frame, n_features, alpha, 5)
        np.testing.assert_array_equal(points[["width", "floor"]], line.get_xydata())
        for name, predicted in zip(["Eq. 2", "naive"], display.predicted_lines_[n_features, alpha], strict=True):
            np.testing.assert_array_equal(points[name], predicted.get_ydata())
        assert set(points["critical_width"]) == {display.critical_widths[n_features, alpha]}
    display = FloorGridDisplay(points=summary, spread=None).plot(scale="log")
    assert display.frame()["critical_width"].isna().all()
    assert {ax.get_yscale() for ax in display.axes_.flat} == {"log"}


def test_measured_floors_alone_and_without_teachers_are_drawn(summary):
    plain = chosen(summary, N_FEATURES[0], ALPHAS[0], 5).drop(columns=["Eq. 2", "naive", "teacher_width"])
    display = FloorGridDisplay.from_summary(plain)
    ((line,),) = display.lines_.values()
    np.testing.assert_array_equal(line.get_xydata(), plain[["width", "floor"]])
    assert display.predicted_lines_ == {(N_FEATURES[0], ALPHAS[0]): []}
    assert set(display.frame()["teacher_width"]) == {0}
    with pytest.raises(ValueError, match=r"summary lacks the columns \['Eq. 2'\]"):
        FloorGridDisplay.from_summary(plain, predicted="Eq. 2")
