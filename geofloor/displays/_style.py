"""Colors, dashes, markers, units and labels shared by all figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from geofloor._validation import check_object, shown

# The colors of Okabe and Ito stay distinct under any color vision. Dashes keep curves distinct in gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1.2, 1)), (0, (8, 1.5, 1, 1.5)), (0, (2.5, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#222222"
FAINT = "#8a8a8a"
ALPHA_COLORMAP = "viridis"  # sparsities
WIDTH_COLORMAP = "plasma"  # student and teacher widths

HIDDEN_UNITS = "hidden-space units"
NATS = "nats per token"
WIDTH_LABEL = "student width d (dimensions)"
FLOOR_LABEL = f"floor L* ({HIDDEN_UNITS})"

OBSERVED = {"s": 5.5**2, "facecolor": "white", "edgecolor": INK, "linewidth": 1.0, "label": "observed", "zorder": 3}
_NOT_OF_LINES = ("scalex", "scaley", "data")  # arguments of `Axes.plot` that `Line2D` does not take


def ramp(values: Sequence[Any], colormap: str) -> dict[Any, str]:
    """Assign a color to each value, from dark to light, leaving out colors too light for white paper."""
    import matplotlib as mpl

    places = np.linspace(0.0, 0.85, len(values))
    return {
        value: mpl.colors.to_hex(mpl.colormaps[colormap](place)) for value, place in zip(values, places, strict=True)
    }


def alpha_colors(alphas: Iterable[float]) -> dict[float, str]:
    """Assign a color to each sparsity."""
    return ramp(np.unique(np.asarray(alphas)).tolist(), ALPHA_COLORMAP)


def predictor_style(index: int) -> dict[str, Any]:
    """Return the style of the curves of a predictor, given its position among the predictors."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[1 + index % (len(DASHES) - 1)],
        "linewidth": 1.4,
    }


def key(label: str, /, **style: Any) -> Any:
    """Make a legend entry. A label in `style` wins."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"label": label, **style})


def check_line_kwargs(line_kwargs: Any) -> dict[str, Any]:
    """Return keyword arguments for ``Axes.plot`` under their full names; None gives an empty dict.

    Raises
    ------
    ValueError
        If matplotlib cannot draw a line with them.
    """
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    given = dict(check_object("line_kwargs", {} if line_kwargs is None else line_kwargs, Mapping, "give a dict"))
    rest = {name: given.pop(name) for name in _NOT_OF_LINES if name in given}
    try:
        style = normalize_kwargs(given, Line2D)
        Line2D([], [], **style)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"line_kwargs={shown(line_kwargs)} can't be drawn: {error}.") from error
    return {**style, **rest}


def check_scatter_kwargs(scatter_kwargs: Any) -> dict[str, Any]:
    """Return keyword arguments for ``Axes.scatter`` under their full names; None gives an empty dict.

    Raises
    ------
    ValueError
        If matplotlib cannot draw a point with them.
    """
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    given = dict(
        check_object("scatter_kwargs", {} if scatter_kwargs is None else scatter_kwargs, Mapping, "give a dict")
    )
    try:
        Figure().subplots().scatter([0.0], [0.0], **given)
        return normalize_kwargs(given, PathCollection)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"scatter_kwargs={shown(scatter_kwargs)} can't be drawn: {error}.") from error


def scatter_style(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Merge the given style of points into the default one.

    A given ``c`` or ``color`` replaces the default fill and edge. Markers without a fill, such as "x", take the
    default edge color as their only color.
    """
    from matplotlib.markers import MarkerStyle

    default = dict(default)
    if "c" in given or "color" in given:
        default.pop("facecolor", None)
        default.pop("edgecolor", None)
    elif not MarkerStyle(given.get("marker", "o")).is_filled() and "edgecolor" in default:
        default["facecolor"] = default.pop("edgecolor")
    return {**default, **given}
