"""What the figures have in common: colours, dashes, axes, panels and legends."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from geofloor._validation import check_array_of_numbers, check_choice, check_object, shown
from geofloor.theory._capacity import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's colours, told apart with any colour vision; with the dashes, in grey as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1.2, 1)), (0, (8, 1.5, 1, 1.5)), (0, (2.5, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#222222"
FAINT = "#8a8a8a"
HIDDEN_UNITS = "hidden-space units"
ALPHA_COLORMAP = "viridis"  # sparsities
_OF_PLOT = ("scalex", "scaley", "data")  # arguments of `Axes.plot` that are none of its lines
WIDTH_COLORMAP = "plasma"  # widths of students


def axes_or_new(ax: Axes | None) -> Axes:
    """The given axes or new ones, without the frame's idle sides."""
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes as AnyAxes

    check_object("ax", ax, (AnyAxes, type(None)), "give a matplotlib Axes, or None for new ones")
    if ax is None:
        _, ax = plt.subplots(figsize=(4.8, 3.4), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def panels(
    figure: Figure | SubFigure | None,
    n_rows: int,
    n_columns: int,
    *,
    size: tuple[float, float],
    sharex: bool | Literal["none", "all", "row", "col"] = True,
    sharey: bool | Literal["none", "all", "row", "col"] = True,
) -> tuple[Figure | SubFigure, np.ndarray]:
    """A grid of axes in the given figure or a new one, whose panels have about the size given, in inches."""
    import matplotlib.pyplot as plt

    check_figure(figure)
    if figure is None:
        width, height = size
        figure = plt.figure(figsize=(width * n_columns + 0.6, height * n_rows + 0.8), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=sharex, sharey=sharey)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def check_figure(figure: Figure | SubFigure | None) -> None:
    """Refuse what nothing can be drawn in."""
    from matplotlib.figure import FigureBase

    check_object("figure", figure, (FigureBase, type(None)), "give a matplotlib Figure, or None for a new one")


def is_among(value: Any, names: pd.Series) -> bool:
    """Whether a value is one of the names in a column, whatever comparing it with them would do."""
    return isinstance(value, Hashable) and value in set(names)


def check_line_kwargs(line_kwargs: Any) -> dict[str, Any]:
    """Return keyword arguments for ``plot``; none in place of None."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    given = dict(check_object("line_kwargs", {} if line_kwargs is None else line_kwargs, Mapping, "give a dict"))
    try:
        names = normalize_kwargs({name: value for name, value in given.items() if name not in _OF_PLOT}, Line2D)
        Line2D([], [], **names)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"line_kwargs={shown(line_kwargs)} can't be drawn: {error}.") from error
    return given


def check_predictor(name: str, predictor: Any, *attributes: str) -> Any:
    """Return a fitted predictor, if it has a ``predict`` and the attributes named.

    Raises
    ------
    TypeError
        If it has not.
    """
    missing = [each for each in ("predict", *attributes) if not hasattr(predictor, each)]
    if missing:
        raise TypeError(f"{name}={shown(predictor)} has no {missing[0]}; give a fitted estimator that has it.")
    return predictor


def check_capacity(method: Any) -> None:
    """Refuse what is no method of `geofloor.theory.capacity`."""
    if not callable(method):
        check_choice("capacity", method, METHODS)


def numbers_of(values: Any, name: str) -> dict[str, np.ndarray]:
    """Return finite vectors by label; one without a label has an empty one."""
    if not isinstance(values, Mapping):
        return {"": check_array_of_numbers(values, name)}
    if not values:
        raise ValueError(f"{name} is empty; give at least one.")
    return {label: check_array_of_numbers(each, f"{name}[{label!r}]") for label, each in values.items()}


def check_lengths(values: Mapping[str, np.ndarray], name: str, length: int, others: str) -> None:
    """Refuse vectors of another length.

    Raises
    ------
    ValueError
        If one has another length; the message names it.
    """
    for label, each in values.items():
        if len(each) != length:
            of = f"{name}[{label!r}]" if label else name
            raise ValueError(f"{of} has {len(each)} values for {length} {others}; give one for each.")


def plain_table(table: Any, argument: str, needed: Sequence[str], numeric: Sequence[Any]) -> pd.DataFrame:
    """Return a table whose numeric columns have NumPy's dtypes, with NaN for what is missing.

    Raises
    ------
    TypeError
        If it is no DataFrame.
    ValueError
        If a column is missing, or a numeric one holds anything but numbers.
    """
    check_object(argument, table, pd.DataFrame, "give a pandas DataFrame")
    for name in needed:
        if not isinstance(name, str):
            raise ValueError(f"{argument} has no column {shown(name)}; give the name of a column.")
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ValueError(f"{argument} lacks the columns {missing}; needed are {list(needed)}.")
    converted = {}
    for name in dict.fromkeys(numeric):
        column = table[name]
        if isinstance(column, pd.DataFrame):
            raise ValueError(f"{argument} has several columns {name!r}; give one.")
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf":
            continue
        values = column.to_numpy(dtype=object)
        absent = column.isna().to_numpy()
        found = np.full(len(column), np.nan)
        if not absent.all():
            found[~absent] = check_array_of_numbers(values[~absent], f"{argument}[{name!r}]")
        whole = pd.api.types.is_integer_dtype(column.dtype) and not absent.any()
        converted[name] = found.astype(np.int64) if whole else found
    return table.assign(**converted) if converted else table


def leave_empty(axes: np.ndarray, empty: np.ndarray) -> None:
    """Take the frames off panels without data, and give their tick labels to the panels above."""
    for row, column in np.argwhere(empty):
        axes[row, column].set_axis_off()
    for column in range(axes.shape[1]):
        used = np.flatnonzero(~empty[:, column])
        if used.size:
            axes[used[-1], column].tick_params(labelbottom=True)


def ramp(values: Sequence[Any], colormap: str) -> dict[Any, str]:
    """A colour for each value, in their order, from dark to light but none too light for white paper."""
    import matplotlib as mpl

    places = np.linspace(0.0, 0.85, len(values))
    return {
        value: mpl.colors.to_hex(mpl.colormaps[colormap](place)) for value, place in zip(values, places, strict=True)
    }


def key(label: str, **style: Any) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def legend_above(figure: Figure | SubFigure, handles: list[Any]) -> None:
    """A legend above all panels, in as many columns as the figure has room for."""
    needed = sum(0.5 + 0.07 * len(handle.get_label()) for handle in handles)  # inches, at the small font size
    n_rows = int(np.ceil(needed / (0.9 * figure.bbox.width / figure.dpi)))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=-(-len(handles) // n_rows),
        frameon=False,
        fontsize="small",
        columnspacing=1.4,
    )
