"""Features per dimension over sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers, check_choice, shown
from geofloor.displays._drawing import OneAxesMixin
from geofloor.displays._style import COLORS, DASHES, check_line_kwargs
from geofloor.displays._tables import vectors_of
from geofloor.theory import capacity
from geofloor.theory._capacity import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOWEST = 1.0 - np.exp(-1.0)  # sparsity at the minimum of Eq. 1
_LABELS = {
    "asymptotic": "Eq. 1",
    "minimax": "exact, either sign",
    "minimax_nonnegative": "exact, non-negative",
}


class CapacityDisplay(OneAxesMixin):
    """Features per dimension over sparsity, for Eq. 1 and the exact thresholds (Figure 1 of the paper).

    Parameters
    ----------
    alphas : array-like of shape (n_alphas,)
        Sparsities, in [0, 1).
    capacities : mapping of str to array-like of shape (n_alphas,)
        Features per dimension, by method. Names of methods outside `geofloor.theory.capacity` stand in the legend
        unchanged.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on. Their x coordinate is α, on the scale of log(1 − α).
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : dict of str to matplotlib Line2D
        Curve of each method. The curve of Eq. 1 starts at its minimum, α = 1 − 1/e.
    non_monotone_line_ : matplotlib Line2D or None
        Eq. 1 below its minimum, drawn faintly, because it is no capacity there.

    See Also
    --------
    CapacityDisplay.from_methods : Compute the capacities and draw them.
    geofloor.theory.capacity : Features per dimension.

    Examples
    --------
    >>> from geofloor.displays import CapacityDisplay
    >>> display = CapacityDisplay.from_methods()
    >>> sorted(display.lines_)
    ['asymptotic', 'minimax', 'minimax_nonnegative']
    """

    def __init__(self, *, alphas: ArrayLike, capacities: Mapping[str, ArrayLike]) -> None:
        self.alphas = alphas
        self.capacities = capacities

    @classmethod
    def from_methods(
        cls,
        methods: Sequence[str] = METHODS,
        *,
        alphas: ArrayLike | None = None,
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> CapacityDisplay:
        """Compute features per dimension with each method and draw them.

        Parameters
        ----------
        methods : sequence of str, default=("asymptotic", "minimax", "minimax_nonnegative")
            Methods of `geofloor.theory.capacity`.
        alphas : array-like of shape (n_alphas,), default=None
            Sparsities, in [0, 1). By default 0 to 0.999, evenly spaced in log(1 − α).
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        display : CapacityDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If a method is unknown or a sparsity is outside [0, 1).
        """
        sparsities = 1.0 - np.geomspace(1.0, 1e-3, 301) if alphas is None else check_array_of_numbers(alphas, "alphas")
        if not isinstance(methods, list | tuple) or not methods:
            raise ValueError(f"methods={shown(methods)} must be a list of some of {', '.join(map(repr, METHODS))}.")
        capacities = {check_choice("methods", method, METHODS): _capacity(sparsities, method) for method in methods}
        return cls(alphas=sparsities, capacities=capacities).plot(ax=ax, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per method and sparsity, with the columns

            - ``method``: method, as in `capacities`;
            - ``alpha``: sparsity α;
            - ``capacity``: features per dimension;
            - ``holds``: False where Eq. 1 is below its minimum, and so no capacity.
        """
        alphas, capacities = self._checked()
        frames = [
            pd.DataFrame({"method": method, "alpha": alphas, "capacity": values, "holds": _holds(method, alphas)})
            for method, values in capacities.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def plot(self, ax: Axes | None = None, *, line_kwargs: dict[str, Any] | None = None) -> CapacityDisplay:
        """Draw features per dimension over sparsity.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : CapacityDisplay
            The display.
        """
        line_kwargs = check_line_kwargs(line_kwargs)
        alphas, capacities = self._checked()
        ax = self._start(ax)
        self.lines_, self.non_monotone_line_ = {}, None
        highest = 1.0
        for index, (method, values) in enumerate(capacities.items()):
            style = {
                "color": COLORS[index % len(COLORS)],
                "linestyle": DASHES[index % len(DASHES)],
                "label": _LABELS.get(method, method),
                **line_kwargs,
            }
            holds = _holds(method, alphas)
            if method == "asymptotic":
                below = ~holds & (alphas > 0.0)  # the value at 0 is the paper's convention, apart from the curve
                faint = {**style, "linestyle": ":", "alpha": 0.6, "label": "_no capacity"}
                (self.non_monotone_line_,) = ax.plot(alphas[below], values[below], **faint)
            (self.lines_[method],) = ax.plot(alphas[holds], values[holds], **style)
            highest = max(highest, values[holds].max(initial=1.0))

        ax.set_xscale("function", functions=(_sparsity_to_axis, _axis_to_sparsity))
        ax.set_yscale("log")
        ax.set_ylim(0.9, 1.3 * highest)
        ticks = [tick for tick in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999) if tick <= alphas.max()]
        ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.legend(frameon=False, fontsize="small")
        ax.set(xlabel="sparsity α", ylabel="features per dimension, g(α)")
        return self

    def _checked(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the sparsities and the capacities by method."""
        alphas = check_array_of_numbers(self.alphas, "alphas", low=0, high=np.nextafter(1.0, 0.0))
        return alphas, vectors_of(self.capacities, "capacities", len(alphas), "alphas")


def _capacity(alphas: np.ndarray, method: str) -> np.ndarray:
    """Compute the capacity at each sparsity, and Eq. 1 below its minimum without a warning."""
    falls = (method == "asymptotic") & (alphas > 0.0) & (alphas < _LOWEST)
    values = capacity(np.where(falls, 0.0, alphas), method)
    values[falls] = -1.0 / ((1.0 - alphas[falls]) * np.log1p(-alphas[falls]))
    return values


def _holds(method: str, alphas: np.ndarray) -> np.ndarray:
    """Return where a method gives a capacity."""
    return alphas >= _LOWEST if method == "asymptotic" else np.ones_like(alphas, dtype=bool)


def _sparsity_to_axis(alpha: np.ndarray) -> np.ndarray:
    """Map sparsities to positions on the axis."""
    return -np.log10(np.clip(1.0 - np.asarray(alpha, dtype=np.float64), 1e-12, None))


def _axis_to_sparsity(position: np.ndarray) -> np.ndarray:
    """Map positions on the axis to sparsities."""
    return 1.0 - 10.0 ** -np.asarray(position, dtype=np.float64)
