import numpy as np
import pandas as pd
import pytest
from display_data import ALPHAS, N_FEATURES

from geofloor.displays import TrainingCurvesDisplay


def test_training_curves_have_one_panel_per_configuration_and_one_curve_per_width(training):
    display = TrainingCurvesDisplay(history=training, predicted="Eq. 2", n_columns=4).plot()
    assert set(display.axes_) == {(n_features, alpha) for n_features in N_FEATURES for alpha in ALPHAS}
    for (n_features, alpha, width), line in display.lines_.items():
        curve = training.query("n_features == @n_features and alpha == @alpha and width == @width and step > 0")
        assert line.axes is display.axes_[n_features, alpha]
        np.testing.assert_array_equal(line.get_xydata(), curve[["step", "loss"]])
        floor = curve["Eq. 2"].iloc[0]
        assert ((n_features, alpha, width) in display.predicted_lines_) == (floor > 0)
        if floor > 0:
            assert display.predicted_lines_[n_features, alpha, width].get_ydata()[0] == floor
    assert len(display.figure_.axes) == 8
    assert [ax.axison for ax in display.figure_.axes] == [True] * 6 + [False] * 2


def test_histories_that_cannot_be_drawn_are_refused(training):
    with pytest.raises(ValueError, match=r"history lacks the columns \['loss', 'naive'\]"):
        TrainingCurvesDisplay(history=training.drop(columns="loss"), predicted="naive").plot()
    with pytest.raises(ValueError, match="several rows for n_features=10, alpha=0.8, width=1, step=0"):
        TrainingCurvesDisplay(history=pd.concat([training, training])).plot()


def test_frame_holds_the_drawn_steps(training):
    display = TrainingCurvesDisplay(history=training, predicted="Eq. 2").plot()
    frame = display.frame()
    assert frame["step"].min() == 1
    for (n_features, alpha, width), curve in frame.groupby(["n_features", "alpha", "width"]):
        line = display.lines_[n_features, alpha, width]
        np.testing.assert_array_equal(curve[["step", "loss"]], line.get_xydata())
