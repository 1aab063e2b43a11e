import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from display_data import STUDENTS

from geofloor.displays import DistillationSummaryDisplay, DistilledFloorsDisplay


def test_the_summary_combines_the_other_displays(history, floors, predictor):
    display = DistillationSummaryDisplay.from_predictor(predictor, history, floors, scale="log")
    parts = [display.curves_, display.floors_, display.normalized_, display.seeds_]
    assert [part.ax_ for part in parts] == display.axes_.ravel().tolist()
    alone = DistilledFloorsDisplay.from_predictor(predictor, floors, normalized=True)
    np.testing.assert_array_equal(
        display.normalized_.predicted_lines_["predicted"].get_ydata(), alone.predicted_lines_["predicted"].get_ydata()
    )
    assert list(display.curves_.lines_) == list(STUDENTS)
    assert list(display.seeds_.lines_) == [(16, 0), (16, 1)]
    assert display.seeds_.difference_ == pytest.approx(2.0)
    assert display.floors_.critical_lines_[0].get_xdata()[0] == predictor.critical_width_
    assert [ax.get_yscale() for ax in display.axes_.flat] == ["log", "linear", "linear", "log"]


def test_the_summary_without_seeds_or_prediction(history, floors):
    seed_0 = floors[floors["seed"] == 0]
    display = DistillationSummaryDisplay(history=history, floors=seed_0).plot()
    assert display.seeds_ is None
    assert not display.axes_[1, 1].axison
    assert display.normalized_.predicted_lines_ == {}


def test_frame_holds_the_frames_of_the_panels(history, floors, predictor):
    display = DistillationSummaryDisplay.from_predictor(predictor, history, floors)
    frame = display.frame()
    for panel in ("curves", "floors", "normalized", "seeds"):
        expected = getattr(display, f"{panel}_").frame()
        shown = frame.loc[frame["panel"] == panel, expected.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(shown, expected, check_dtype=False)
    assert "seeds" not in set(DistillationSummaryDisplay(history=history, floors=floors[::2]).frame()["panel"])


def test_summary_draws_in_a_given_figure(history, floors):
    figure = plt.figure(layout="constrained")
    summary = DistillationSummaryDisplay(history=history, floors=floors)
    assert summary.plot(figure) is summary
    assert summary.figure_ is figure
