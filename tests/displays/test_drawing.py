import inspect

import matplotlib.pyplot as plt
import pytest
from display_calls import CALLS
from display_data import PAPER_FLOORS, PAPER_WIDTHS

from geofloor import displays
from geofloor.displays import (
    AccuracyDisplay,
    CollapseDisplay,
    DistillationDisplay,
    DistilledFloorsDisplay,
    ErrorDisplay,
    FloorDisplay,
    FloorGridDisplay,
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
