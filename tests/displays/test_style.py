import inspect

import pytest
from display_calls import CALLS
from display_data import ALPHAS, PAPER_FLOORS, PAPER_LOSSES, PAPER_WIDTHS
from matplotlib.colors import to_hex

from geofloor.displays import (
    CalibrationDisplay,
    CollapseDisplay,
    FloorDisplay,
    ForecastDisplay,
    PredictionDisplay,
    SparsityDisplay,
)

CONSTRUCTED = [(display, arguments) for display, way, arguments in CALLS if way is None]
IDS = [display.__name__ for display, _ in CONSTRUCTED]


def lines_of(display):
    """Return the lines that `line_kwargs` styles."""
    lines = getattr(display, "line_", None) or display.lines_
    lines = list(lines.values()) if isinstance(lines, dict) else lines
    lines = lines if isinstance(lines, list) else [lines]
    return [line for each in lines for line in (each if isinstance(each, list) else [each])]


@pytest.mark.parametrize(("display", "arguments"), CONSTRUCTED, ids=IDS)
def test_styles_reach_the_lines(display, arguments):
    if "line_kwargs" not in inspect.signature(display.plot).parameters:
        return
    lines = lines_of(display(**arguments).plot(line_kwargs={"c": "red", "linewidth": 3.0, "label": "mine"}))
    assert lines
    assert {(line.get_color(), line.get_linewidth(), line.get_label()) for line in lines} == {("red", 3.0, "mine")}
    with pytest.raises(ValueError, match="line_kwargs=.*can't be drawn"):
        display(**arguments).plot(line_kwargs={"thickness": 3})


def test_styles_reach_the_points():
    runs = {"observed_widths": PAPER_WIDTHS, "observed": PAPER_LOSSES}
    interval = [[loss - 0.1, loss + 0.1] for loss in PAPER_LOSSES]
    style = {"marker": "x", "c": "red", "s": 16.0}
    points = [
        FloorDisplay(widths=PAPER_WIDTHS, floors=PAPER_FLOORS, **runs).plot(scatter_kwargs=style).observed_points_,
        CalibrationDisplay(floors=PAPER_FLOORS, observed=PAPER_LOSSES).plot(scatter_kwargs=style).observed_points_,
        ForecastDisplay(widths=PAPER_WIDTHS, losses=PAPER_LOSSES, interval=interval, **runs)
        .plot(scatter_kwargs=style)
        .observed_points_,
        PredictionDisplay(measured=[0.1], predicted={"a": [0.2]}, alphas=[0.9])
        .plot(scatter_kwargs=style)
        .points_["a", 0.9],
    ]
    for each in points:
        assert each.get_edgecolor().tolist() == [[1, 0, 0, 1]]
        assert each.get_sizes().tolist() == [16]
    with pytest.raises(ValueError, match="scatter_kwargs=.*can't be drawn"):
        CalibrationDisplay(floors=PAPER_FLOORS, observed=PAPER_LOSSES).plot(scatter_kwargs={"marker": "?"})


def test_a_sparsity_has_one_color_in_all_figures(summary):
    colors = {
        alpha: {
            SparsityDisplay.from_summary(summary).lines_[10, alpha].get_color(),
            CollapseDisplay.from_summary(summary).lines_[40, alpha][0].get_color(),
            to_hex(PredictionDisplay.from_summary(summary).points_["naive", alpha].get_facecolor()[0]),
        }
        for alpha in ALPHAS
    }
    assert [len(each) for each in colors.values()] == [1, 1, 1]
