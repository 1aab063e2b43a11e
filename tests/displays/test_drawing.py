import inspect

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from display_calls import CALLS
from display_data import ALPHAS, PAPER_FLOORS, PAPER_LOSSES, PAPER_WIDTHS
from matplotlib.colors import to_hex

from geofloor import displays
from geofloor.displays import (
    AccuracyDisplay,
    CalibrationDisplay,
    CollapseDisplay,
    DistillationDisplay,
    DistilledFloorsDisplay,
    ErrorDisplay,
    FloorDisplay,
    FloorGridDisplay,
    ForecastDisplay,
    PredictionDisplay,
    SparsityDisplay,
    TrainingCurvesDisplay,
)

CONSTRUCTED = [(display, arguments) for display, way, arguments in CALLS if way is None]
IDS = [display.__name__ for display, _ in CONSTRUCTED]


def test_every_display_is_constructed_and_has_a_frame():
    assert sorted(IDS) == sorted(displays.__all__)
    assert all(inspect.getdoc(display.frame) for display, _ in CONSTRUCTED)


@pytest.mark.parametrize(("display", "arguments"), CONSTRUCTED, ids=IDS)
def test_plot_draws_in_the_given_place_and_returns_the_display(display, arguments):
    drawn = display(**arguments)
    place = "ax" if "ax" in inspect.signature(display.plot).parameters else "figure"
    given = plt.subplots()[1] if place == "ax" else plt.figure(layout="constrained")
    assert drawn.plot(given) is drawn
    assert getattr(drawn, f"{place}_") is given
    assert drawn.figure_ is given.figure
    if place == "ax":
        assert drawn.ax_.get_xlabel()
        assert drawn.ax_.get_ylabel()
    else:
        assert given.axes
        assert len(drawn.axes_)
    assert getattr(drawn.plot(), f"{place}_") is not given


@pytest.mark.parametrize(("display", "arguments"), CONSTRUCTED, ids=IDS)
def test_frames_need_no_figure(display, arguments, monkeypatch):
    monkeypatch.setattr(plt, "figure", None)
    monkeypatch.setattr(plt, "subplots", None)
    frame = display(**arguments).frame()
    assert len(frame)
    assert frame.index.tolist() == list(range(len(frame)))


@pytest.mark.parametrize(("display", "arguments"), CONSTRUCTED, ids=IDS)
def test_unknown_scales_are_refused(display, arguments):
    if "scale" in inspect.signature(display.plot).parameters:
        with pytest.raises(ValueError, match="scale='symlog' is unknown"):
            display(**arguments).plot(scale="symlog")


@pytest.mark.parametrize("lowest", [0.1, 1e-3, 1e-20])
def test_logarithmic_axes_have_ticks_whatever_their_range(lowest):
    ax = FloorDisplay(widths=[1, 2], floors=[1.0, lowest]).plot(scale="log").ax_
    ax.figure.canvas.draw()
    assert len([tick for tick in ax.get_yticklabels() if tick.get_text()]) >= 2


def test_units_stand_in_the_label(history, floors):
    for display in (
        DistillationDisplay(history=history, floors=floors, unit="u"),
        DistilledFloorsDisplay(floors=floors, unit="u"),
        FloorDisplay(widths=PAPER_WIDTHS, floors=PAPER_FLOORS, unit="u"),
    ):
        assert display.plot().ax_.get_ylabel().endswith("(u)")


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


@pytest.mark.parametrize(
    "draw",
    [
        FloorGridDisplay.from_summary,
        SparsityDisplay.from_summary,
        PredictionDisplay.from_summary,
        ErrorDisplay.from_summary,
        AccuracyDisplay.from_summary,
        CollapseDisplay.from_summary,
    ],
    ids=lambda draw: draw.__self__.__name__,
)
def test_summaries_that_cannot_be_drawn_are_refused(summary, draw):
    with pytest.raises(ValueError, match=r"lacks the columns \['alpha', 'floor'\]; needed are \['n_features', 'alpha'"):
        draw(summary.drop(columns=["floor", "alpha"]))
    with pytest.raises(ValueError, match="no rows"):
        draw(summary.iloc[:0])
    with pytest.raises(ValueError, match="several rows for n_features=10, alpha=0.8, teacher_width=3, width=1"):
        draw(pd.concat([summary, summary]))
    with pytest.raises(ValueError, match="'floor']: 1 of 48 values are not finite"):
        draw(summary.assign(floor=summary["floor"].where(summary.index > 0)))


def test_displays_draw_in_subfigures_and_in_axes(summary, training):
    in_figure = [
        FloorGridDisplay.from_summary,
        SparsityDisplay.from_summary,
        PredictionDisplay.from_summary,
        AccuracyDisplay.from_summary,
    ]
    figures = plt.figure(figsize=(12, 30), layout="constrained").subfigures(len(in_figure) + 1)
    for figure, draw in zip(figures, in_figure, strict=False):
        assert draw(summary, figure=figure).figure_ is figure
        assert figure.axes
    display = TrainingCurvesDisplay(history=training).plot(figures[-1])
    assert display.figure_ is figures[-1]
    assert display.plot() is display
    assert display.figure_ is not figures[-1]
    _, axes = plt.subplots(2)
    for ax, draw in zip(axes, [ErrorDisplay.from_summary, CollapseDisplay.from_summary], strict=True):
        assert draw(summary, ax=ax).ax_ is ax
