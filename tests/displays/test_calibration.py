import numpy as np
import pytest
from display_data import PAPER_FLOORS, PAPER_LOSSES, PAPER_WIDTHS

from geofloor import AffineCalibrator
from geofloor.displays import CalibrationDisplay


def test_calibration_display_draws_points_line_and_interval():
    calibrator = AffineCalibrator().fit(PAPER_FLOORS, PAPER_LOSSES)
    display = CalibrationDisplay.from_calibrator(
        calibrator, PAPER_FLOORS, PAPER_LOSSES, observed_widths=PAPER_WIDTHS, level=0.8
    )
    np.testing.assert_array_equal(display.observed_points_.get_offsets().T, [PAPER_FLOORS, PAPER_LOSSES])
    grid, line = display.line_.get_xydata().T
    expected, interval = calibrator.predict(grid, return_interval=True, level=0.8)
    np.testing.assert_array_equal(line, expected)
    edges = display.band_.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (interval.min(), interval.max())
    assert len(display.ax_.texts) == len(PAPER_WIDTHS)
    assert display.line_.get_label() == "C = 8.96, B = 0.623, R² = 0.993"


def test_calibration_display_has_no_band_without_degrees_of_freedom():
    calibrator = AffineCalibrator().fit(PAPER_FLOORS[:2], PAPER_LOSSES[:2])
    assert CalibrationDisplay.from_calibrator(calibrator, PAPER_FLOORS, PAPER_LOSSES).band_ is None
    assert CalibrationDisplay.from_calibrator(calibrator, PAPER_FLOORS, PAPER_LOSSES, level=None).interval is None


def test_calibration_display_refuses_several_terms():
    terms = np.column_stack([PAPER_FLOORS, PAPER_FLOORS**2])
    calibrator = AffineCalibrator().fit(terms, PAPER_LOSSES)
    with pytest.raises(ValueError, match="2 terms"):
        CalibrationDisplay.from_calibrator(calibrator, PAPER_FLOORS, PAPER_LOSSES)


def test_frame_holds_runs_line_and_interval():
    calibrator = AffineCalibrator().fit(PAPER_FLOORS, PAPER_LOSSES)
    display = CalibrationDisplay.from_calibrator(calibrator, PAPER_FLOORS, PAPER_LOSSES, observed_widths=PAPER_WIDTHS)
    frame = display.frame()
    runs, line = frame[frame["source"] == "observed"], frame[frame["source"] == "line"]
    np.testing.assert_array_equal(runs[["floor", "loss"]], display.observed_points_.get_offsets())
    assert runs["width"].tolist() == PAPER_WIDTHS.tolist()
    np.testing.assert_array_equal(line[["floor", "loss"]], display.line_.get_xydata())
    edges = display.band_.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (line["low"].min(), line["high"].max())
    alone = CalibrationDisplay(floors=PAPER_FLOORS, observed=PAPER_LOSSES).frame()
    assert alone["source"].unique().tolist() == ["observed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "line"}, "label is given without line"),
        ({"interval": [[0, 1]]}, "interval is given without line"),
        ({"grid": [0], "line": [1], "level": 0.9}, "level is given without interval"),
    ],
)
def test_calibration_display_refuses_a_label_interval_or_level_of_nothing(arguments, message):
    display = CalibrationDisplay(floors=PAPER_FLOORS, observed=PAPER_LOSSES, **arguments)
    with pytest.raises(ValueError, match=message):
        display.plot()
    with pytest.raises(ValueError, match="line_kwargs is for the fitted line"):
        CalibrationDisplay(floors=PAPER_FLOORS, observed=PAPER_LOSSES).plot(line_kwargs={"color": "red"})
