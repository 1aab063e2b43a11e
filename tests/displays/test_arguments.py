"""Every argument of every display, with values of wrong kinds."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from display_calls import CALLS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

IDS = [f"{display.__name__}-{way or 'plot'}" for display, way, _ in CALLS]
# Values that no argument takes, by kind.
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
FREE = {"unit", "label", "reference", "statistic"}  # any text or named object may stand in a label


def draw(display, way, arguments, **drawing):
    if way is not None:
        return getattr(display, way)(**arguments, **drawing)
    return display(**arguments).plot(**drawing)


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
            # An argument that names a column is reported by its value.
            assert name in str(caught.value) or repr(value)[:15] in str(caught.value), (name, kind)


@pytest.mark.parametrize(("display", "way", "arguments"), CALLS, ids=IDS)
def test_wrong_axes_figures_and_styles_are_refused_before_drawing(display, way, arguments):
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
