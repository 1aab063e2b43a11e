import numpy as np
import pandas as pd
import pytest
from display_data import FLOORS, STEPS, STUDENTS, WIDTHS, texts
from matplotlib.colors import to_hex

from geofloor.displays import DistillationDisplay


def test_curves_and_floors_are_those_given(history, floors):
    display = DistillationDisplay(history=history, floors=floors).plot()
    assert list(display.lines_) == list(display.floor_lines_) == list(STUDENTS)
    for student, floor in zip(STUDENTS, FLOORS, strict=True):
        np.testing.assert_allclose(
            display.lines_[student].get_xydata(), np.column_stack([STEPS, floor + 2.0 * np.exp(-STEPS / 20)])
        )
        line = display.floor_lines_[student]
        assert set(line.get_ydata()) == {floor}
        assert line.get_color() == display.lines_[student].get_color()
    assert display.difference_ is None
    assert texts(display.ax_.get_legend()) == [
        "d = 8: 0.8",
        "d = 16, seed 0: 0.5",
        "d = 16, seed 1: 0.49",
        "d = 32: 0.1",
        "floor",
    ]
    of_width = {width: to_hex(display.lines_[width, 0].get_color()) for width in WIDTHS.tolist()}
    assert len(set(of_width.values())) == 3
    assert to_hex(display.lines_[16, 1].get_color()) == of_width[16]
    assert display.lines_[16, 1].get_linestyle() != display.lines_[16, 0].get_linestyle()


def test_seeds_of_one_width_are_compared(history, floors):
    floors = pd.concat([floors, pd.DataFrame({"width": [16], "seed": [2], "floor": [0.52]})])
    history = pd.concat([history, history[history["seed"] == 1].assign(seed=2)])
    chosen = floors["width"] == 16
    display = DistillationDisplay(history=history[history["width"] == 16], floors=floors[chosen]).plot()
    assert display.difference_ == pytest.approx(4.0)
    legend = display.ax_.get_legend()
    assert legend.get_title().get_text() == "floors differ by 0.02 (4.0%)"
    assert texts(legend) == ["seed 0: 0.5", "seed 1: 0.49", "seed 2: 0.52", "floor"]
    assert len({line.get_color() for line in display.lines_.values()}) == 3


def test_curves_without_seeds_and_floors(history):
    display = DistillationDisplay(history=history[history["seed"] == 0].drop(columns="seed")).plot(scale="log")
    assert list(display.lines_) == [(8, 0), (16, 0), (32, 0)]
    assert display.floor_lines_ == {}
    assert texts(display.ax_.get_legend()) == ["d = 8", "d = 16", "d = 32"]
    assert display.ax_.get_yscale() == "log"
    display.figure_.canvas.draw()
    assert "0.2" in [label.get_text() for label in display.ax_.get_yticklabels()]


def test_styles_reach_the_curves(history):
    display = DistillationDisplay(history=history).plot(line_kwargs={"color": "red", "lw": 3.0})
    assert {(line.get_color(), line.get_linewidth()) for line in display.lines_.values()} == {("red", 3.0)}


def test_frame_holds_curves_and_floors(history, floors):
    display = DistillationDisplay(history=history, floors=floors.head(3)).plot()
    frame = display.frame()
    for (width, seed), line in display.lines_.items():
        curve = frame[(frame["width"] == width) & (frame["seed"] == seed)]
        np.testing.assert_array_equal(curve[["step", "loss"]], line.get_xydata())
        if width == 32:
            assert curve["floor"].isna().all()
        else:
            assert set(curve["floor"]) == set(display.floor_lines_[width, seed].get_ydata())
