import numpy as np
import pandas as pd
import pytest
from display_data import ALPHAS, N_FEATURES, TEACHERS, chosen

from geofloor.displays import AccuracyDisplay


def test_accuracy_display_writes_the_median_of_each_cell(summary):
    display = AccuracyDisplay.from_summary(summary[summary["Eq. 2"] > 0])
    for n_features, image, texts in zip(N_FEATURES, display.images_, display.texts_, strict=True):
        for (row, column), text in np.ndenumerate(texts):
            points = chosen(summary, n_features, ALPHAS[row], TEACHERS[column]).query("`Eq. 2` > 0")
            shown = image.get_array()[row, column]
            if points.empty:
                assert text.get_text() == "–"
                assert shown is np.ma.masked
            else:
                accuracy = np.median(100 - 100 * np.abs(points["Eq. 2"] / points["floor"] - 1))
                assert shown == pytest.approx(accuracy)
                assert text.get_text() == f"{accuracy:.0f}"
    assert "–" in [text.get_text() for text in display.texts_[0].flat]


def test_accuracy_below_zero_is_written_and_the_scale_says_so():
    table = pd.DataFrame([[-5.0, -2e6, 80.0]], index=[0.9], columns=[3, 5, 8])
    display = AccuracyDisplay(accuracies={10: table}).plot()
    assert [text.get_text() for text in display.texts_[0].flat] == ["−5", "<−999", "80"]
    assert display.colorbar_.extend == "min"


def test_frame_holds_every_cell(summary):
    display = AccuracyDisplay.from_summary(summary[summary["Eq. 2"] > 0])
    frame = display.frame()
    for n_features, image in zip(N_FEATURES, display.images_, strict=True):
        cells = frame[frame["n_features"] == n_features]
        table = cells.pivot_table("accuracy", "alpha", "teacher_width", dropna=False)
        np.testing.assert_array_equal(table, image.get_array().filled(np.nan))
