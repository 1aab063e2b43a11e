import dataclasses

import numpy as np
import pytest
from display_calls import BAND
from display_data import texts

from geofloor.displays import FloorBandDisplay

DATA = {
    "widths": [8, 2, 4],
    "floors": [[1.0, 9.0, 5.0], [2.0, 7.0, 4.0], [0.5, 8.0, 3.0]],
    "critical_widths": [9.0, 20.0, 8.4],
    "l0": [16.0, 32.0, 16.2],
    "explained_variance": [0.8, 0.92, 0.84],
}


def test_each_dictionary_has_a_curve_within_the_band():
    display = FloorBandDisplay(**DATA).plot()
    for line, row in zip(display.lines_, DATA["floors"], strict=True):
        assert line.get_xdata().tolist() == [2, 4, 8]
        assert line.get_ydata().tolist() == [row[1], row[2], row[0]]
    edge = display.band_.get_paths()[0].vertices
    assert {tuple(point) for point in edge} >= {(2.0, 7.0), (2.0, 9.0), (8.0, 0.5), (8.0, 2.0)}
    assert display.lines_[0].get_color() == display.lines_[2].get_color() != display.lines_[1].get_color()
    assert display.ax_.get_ylim()[0] <= 0.0


def test_every_critical_width_has_its_sparsity_and_variance_beside_it():
    display = FloorBandDisplay(**DATA).plot()
    assert texts(display.ax_.get_legend()) == [
        "L0 = 16–16.2, EV = 80–84%, d* = 8–9",
        "L0 = 32, EV = 92%, d* = 20",
    ]
    # A critical width beyond the axes is named, but has no mark.
    assert [float(mark.get_xdata()[0]) for mark in display.marks_] == [8.4]


def test_a_band_is_drawn_at_other_widths_and_as_shares():
    display = FloorBandDisplay.from_band(BAND, [1, 3])
    expected = dataclasses.replace(BAND, widths=np.array([1.0, 3.0])).floors(relative=True)
    np.testing.assert_allclose([line.get_ydata() for line in display.lines_], expected)
    assert "share of the variance" in display.ax_.get_ylabel()
    assert "hidden-space" in FloorBandDisplay.from_band(BAND, relative=False).ax_.get_ylabel()


def test_frame_holds_the_curves():
    frame = FloorBandDisplay(**DATA).frame()
    assert len(frame) == 9
    assert frame.query("dictionary == 1 and width == 2")[["l0", "floor"]].to_numpy().tolist() == [[32.0, 7.0]]


def test_shapes_that_differ_are_refused():
    for change, message in [
        ({"widths": [1, 2]}, "floors has 3 columns for 2 widths"),
        ({"l0": [1.0]}, "l0 has 1 values, and floors 3 rows"),
        ({"floors": [[-1.0] * 3] * 3}, "floors"),
        ({"explained_variance": [0.5, 0.5, 1.5]}, "explained_variance"),
    ]:
        with pytest.raises(ValueError, match=message):
            FloorBandDisplay(**DATA | change).plot()
    with pytest.raises(TypeError, match="give a FloorBand, from measure_band"):
        FloorBandDisplay.from_band(BAND.predictors[0])
