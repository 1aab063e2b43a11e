"""Every argument of every display, with what it can't take."""

import inspect
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from display_calls import CALLS, POINTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geofloor import displays

IDS = [f"{display.__name__}-{way or 'plot'}" for display, way, _ in CALLS]
# What no argument takes, each of another kind.
WRONG = {
    "number": 3.5,
    "text": "nothing of the kind",
    "object": object(),
    "huge": 10**400,
    "set": {1.5},
    "iterator": iter([1.0]),
    "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "complex": np.array([1j, 2j]),
    "mapping": {object(): object()},
}
FREE = {"unit", "label", "reference", "statistic"}  # any text, or anything with a name, stands in a label


def draw(display, way, arguments, **drawing):
    if way is not None:
        return getattr(display, way)(**arguments, **drawing)
    return display(**arguments).plot(**drawing)


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    plt.close("all")


@pytest.mark.parametrize(("display", "way", "arguments"), CALLS, ids=IDS)
def test_wrong_arguments_are_refused_by_name(display, way, arguments):
    if "students" not in arguments:
        draw(display, way, arguments)
    for name in arguments.keys() - FREE:
        for kind, value in WRONG.items():
            fits = kind == "number" and np.isscalar(arguments[name]) and not isinstance(arguments[name], str)
            if fits or (name == "students" and kind in ("set", "iterator")):
                continue
            with pytest.raises((ValueError, TypeError)) as caught:
                draw(display, way, arguments | {name: value})
            # A column is named by its own name, which is the value.
            assert name in str(caught.value) or repr(value)[:15] in str(caught.value), (name, kind)


@pytest.mark.parametrize(("display", "way", "arguments"), CALLS, ids=IDS)
def test_what_is_no_axes_no_figure_and_no_style_is_refused_before_drawing(display, way, arguments):
    places = inspect.signature(getattr(display, way or "plot")).parameters.keys() & {"ax", "figure", "line_kwargs"}
    assert places & {"ax", "figure"}
    if "students" in arguments:
        return
    for name in places:
        with pytest.raises(TypeError, match=f"{name}=3 is a int; give a "):
            draw(display, way, arguments, **{name: 3})
    assert isinstance(draw(display, way, arguments).figure_, Figure)
    assert all(isinstance(ax, Axes) for ax in plt.gcf().axes)


@pytest.mark.parametrize(("display", "way", "arguments"), CALLS, ids=IDS)
def test_tables_with_pandas_own_dtypes_draw_the_same(display, way, arguments):
    tables = {name: value for name, value in arguments.items() if isinstance(value, pd.DataFrame)}
    if not tables:
        return
    drawn = [
        draw(display, way, arguments | {name: change(table) for name, table in tables.items()}).figure_
        for change in (pd.DataFrame.copy, pd.DataFrame.convert_dtypes)
    ]
    lines, others = ([line.get_xydata() for ax in figure.axes for line in ax.lines] for figure in drawn)
    assert len(lines) == len(others)
    for line, other in zip(lines, others, strict=True):
        np.testing.assert_array_equal(line, np.asarray(other, dtype=float))


def test_no_predictor_is_no_figure():
    with pytest.raises(ValueError, match="errors is empty; give at least one"):
        displays.ErrorDisplay(errors={}, alphas=[0.9]).plot()
    with pytest.raises(ValueError, match="predicted is empty; give at least one"):
        displays.PredictionDisplay(measured=[0.1], predicted={}, alphas=[0.9]).plot()
    with pytest.raises(ValueError, match="predicted=.* must name at least one column"):
        displays.ErrorDisplay.from_summary(POINTS, predicted=[])


def test_a_missing_value_in_a_column_is_counted():
    holed = POINTS.convert_dtypes()
    holed.loc[1, "floor"] = pd.NA
    with pytest.raises(ValueError, match=r"summary\['floor'\]: 1 of 4 values are not finite"):
        displays.FloorGridDisplay.from_summary(holed)
    with pytest.raises(ValueError, match=r"summary\['floor'\]=.* holds text"):
        displays.FloorGridDisplay.from_summary(POINTS.astype({"floor": str}))


def test_capacities_are_drawn_without_a_word_and_without_a_change_of_the_warning_filters():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display = displays.CapacityDisplay.from_methods(["asymptotic"], alphas=[0.0, 0.3, 0.7])
    sparsities = np.array([0.3, 0.7])
    expected = [1.0, *(-1 / ((1 - sparsities) * np.log1p(-sparsities)))]
    np.testing.assert_array_equal(display.capacities["asymptotic"], expected)
