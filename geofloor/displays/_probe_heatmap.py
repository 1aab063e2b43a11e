"""Accuracies of linear probes by concept and model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from geofloor._validation import check_choice, check_number, check_object
from geofloor.displays._drawing import OneAxesMixin, draw_cells, minus
from geofloor.displays._tables import check_reference, plain_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LARGEST_CHANGE = 5.0  # percentage points; the colors of changes span at least this
_SIGNIFICANCE = 0.05


class _Cells(NamedTuple):
    """Numbers of the cells, each an ndarray of shape (n_concepts, n_models).

    Attributes
    ----------
    accuracies : ndarray
        Accuracies, in percent.
    changes : ndarray
        Changes, in percentage points; NaN where there is none.
    p_values : ndarray
        P-values of the changes; NaN where there is none.
    starred : ndarray
        Whether a change is significant.
    """

    accuracies: np.ndarray
    changes: np.ndarray
    p_values: np.ndarray
    starred: np.ndarray


class ProbeHeatmapDisplay(OneAxesMixin):
    r"""Accuracy of linear probes by concept and model, with the change against the teacher (Figure 8 of the paper).

    Parameters
    ----------
    accuracies : DataFrame of shape (n_concepts, n_models)
        Accuracies between 0 and 1, with concepts as index and models as columns; NaN where there is none.
    changes : DataFrame of shape (n_concepts, n_models), default=None
        Changes against the reference, in the same order; NaN cells stay without a change.
    p_values : DataFrame of shape (n_concepts, n_models), default=None
        P-values of tests for a change, in the same order.
    significance : float, default=None
        Changes with a p-value below this are marked with a star. By default 0.05; refused without `p_values`.
    colors : {"accuracy", "change"}, default="accuracy"
        Quantity shown by the colors. The numbers in the cells are the same.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    image_ : matplotlib AxesImage
        The heat map, in percent or percentage points.
    texts_ : ndarray of shape (n_concepts, n_models) of matplotlib Text
        Numbers in the cells.
    colorbar_ : matplotlib Colorbar
        Scale of the colors. For accuracies it starts at 50%, or at the lowest accuracy below.

    See Also
    --------
    ProbeHeatmapDisplay.from_table : Arrange a probe table and draw it.
    geofloor.probing.probe_table : Makes the table.

    Examples
    --------
    >>> from geofloor.datasets import load_paper_tables
    >>> from geofloor.displays import ProbeHeatmapDisplay
    >>> probes = load_paper_tables().probes
    >>> probes["model"] += " " + probes["width"].astype(str)
    >>> probes["accuracy"] = probes["accuracy_percent"] / 100
    >>> display = ProbeHeatmapDisplay.from_table(probes, reference="teacher 1024")
    >>> display.texts_[0, 3].get_text()
    '75.0\n+1.0'
    """

    def __init__(
        self,
        *,
        accuracies: pd.DataFrame,
        changes: pd.DataFrame | None = None,
        p_values: pd.DataFrame | None = None,
        significance: float | None = None,
        colors: str = "accuracy",
    ) -> None:
        self.accuracies = accuracies
        self.changes = changes
        self.p_values = p_values
        self.significance = significance
        self.colors = colors

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        *,
        reference: str | None = "teacher",
        significance: float | None = None,
        colors: str = "accuracy",
        ax: Axes | None = None,
    ) -> ProbeHeatmapDisplay:
        """Arrange a probe table by concept and model, and draw it.

        Parameters
        ----------
        table : DataFrame
            One row per concept and model, with the columns concept, model and accuracy, between 0 and 1, and perhaps
            p_value. Concepts and models keep their order.
        reference : str or None, default="teacher"
            Model from which changes are taken; None writes no changes.
        significance : float, default=None
            Changes with a p-value below this are marked with a star. By default 0.05; refused without changes and
            p-values. It holds for each test alone: of twenty models without a change, one is marked.
        colors : {"accuracy", "change"}, default="accuracy"
            Quantity shown by the colors.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : ProbeHeatmapDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the table is empty, lacks a column, has a concept and model twice or an accuracy outside [0, 1], the
            reference is not among its models or lacks a concept, or `colors` is unknown.
        """
        check_object("table", table, pd.DataFrame, "give the table of probe_table")
        p_value = [name for name in ("p_value",) if name in table.columns]
        table = plain_table(table, "table", ["concept", "model", "accuracy"], ["accuracy", *p_value])
        if table.empty:
            raise ValueError("table has no rows; see probe_table.")
        if not table["accuracy"].between(0.0, 1.0).all():
            raise ValueError("table['accuracy'] has values outside [0, 1]; give shares, not percent.")
        if table.duplicated(["concept", "model"]).any():
            raise ValueError("table has a concept and model twice; give one row each.")
        check_reference(reference, table["model"])

        def arranged(column: str) -> pd.DataFrame:
            """Arrange a column by concept and model."""
            wide = table.set_index(["concept", "model"])[column].unstack()  # noqa: PD010
            return wide.reindex(index=table["concept"].unique(), columns=table["model"].unique())

        accuracies = arranged("accuracy")
        changes = p_values = None
        if reference is not None:
            if accuracies[reference].isna().any():
                raise ValueError(f"table has no accuracy of the reference {reference!r} for some concept; add it.")
            changes = accuracies.sub(accuracies[reference], axis=0)
            changes[reference] = np.nan
            p_values = arranged("p_value") if "p_value" in table.columns else None
        display = cls(
            accuracies=accuracies, changes=changes, p_values=p_values, significance=significance, colors=colors
        )
        return display.plot(ax=ax)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per cell, row by row, with the columns

            - ``concept``, ``model``: row and column of the heat map;
            - ``accuracy``: accuracy, in percent; NaN where there is none;
            - ``change``: change against the reference, in percentage points; NaN where there is none;
            - ``p_value``: p-value of the change; NaN where there is none;
            - ``significant``: whether the change is marked with a star.
        """
        cells = self._checked()
        n_concepts, n_models = cells.accuracies.shape
        return pd.DataFrame(
            {
                "concept": np.repeat(self.accuracies.index.to_numpy(), n_models),
                "model": np.tile(self.accuracies.columns.to_numpy(), n_concepts),
                "accuracy": cells.accuracies.ravel(),
                "change": cells.changes.ravel(),
                "p_value": cells.p_values.ravel(),
                "significant": cells.starred.ravel(),
            }
        )

    def plot(self, ax: Axes | None = None) -> ProbeHeatmapDisplay:
        """Draw the heat map, with the numbers in its cells.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        self : ProbeHeatmapDisplay
            The display.

        Raises
        ------
        ValueError
            If `colors` is unknown, or "change" without changes; or if `significance` is given without `p_values`.
        """
        cells = self._checked()
        values, colormap, norm, label = self._colors(cells)
        n_rows, n_columns = values.shape
        ax = self._start(ax, (1.9 + 0.85 * n_columns + 0.9, 0.9 + 0.48 * n_rows))
        self.image_, self.texts_ = draw_cells(
            ax,
            values,
            colormap=colormap,
            norm=norm,
            cells=[list(map(_cell, *row)) for row in zip(cells.accuracies, cells.changes, cells.starred, strict=True)],
            columns=[str(name).replace(" ", "\n", 1) for name in self.accuracies.columns],
            rows=[str(name).replace("_", " ") for name in self.accuracies.index],
        )
        ax.set(xlabel="model", ylabel="concept")
        self.colorbar_ = self.figure_.colorbar(self.image_, ax=ax, label=label)
        self.colorbar_.outline.set_visible(False)
        return self

    def _checked(self) -> _Cells:
        """Return the numbers of the cells."""
        accuracies = _numbers(self.accuracies, "accuracies")
        if not accuracies.size:
            raise ValueError("accuracies is empty; give at least one concept and model.")
        absent = np.full(accuracies.shape, np.nan)
        changes = absent if self.changes is None else _numbers(self.changes, "changes", accuracies.shape)
        p_values = absent if self.p_values is None else _numbers(self.p_values, "p_values", accuracies.shape)
        significance = _SIGNIFICANCE
        if self.significance is not None:
            significance = check_number("significance", self.significance, 0, 1)
            if self.p_values is None:
                raise ValueError(
                    f"significance={significance} needs p_values, and there are none; from_table takes them from the "
                    "column p_value, with a reference."
                )
        if check_choice("colors", self.colors, ("accuracy", "change")) == "change" and self.changes is None:
            raise ValueError("colors='change' needs changes; give a reference, or colors='accuracy'.")
        return _Cells(100.0 * accuracies, 100.0 * changes, p_values, p_values < significance)

    def _colors(self, cells: _Cells) -> tuple[np.ndarray, Any, Any, str]:
        """Return the colored values, with their colormap, scale and label."""
        import matplotlib as mpl

        if self.colors == "accuracy":
            lowest = min(50.0, float(np.nanmin(cells.accuracies, initial=50.0)))
            colormap = mpl.colormaps["cividis"].with_extremes(bad="#e8e8e8")
            return cells.accuracies, colormap, mpl.colors.Normalize(lowest, 100.0), "accuracy (%)"
        most = float(np.nanmax(np.abs(cells.changes), initial=_LARGEST_CHANGE))
        colormap = mpl.colormaps["RdBu"].with_extremes(bad="#e8e8e8")
        return cells.changes, colormap, mpl.colors.Normalize(-most, most), "change (percentage points)"


def _numbers(table: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return a table as numbers, if it has the given shape."""
    check_object(name, table, pd.DataFrame, "give a DataFrame of concepts and models")
    numbers = plain_table(table, name, [], list(table.columns)).to_numpy(dtype=np.float64)
    if shape is not None and numbers.shape != shape:
        raise ValueError(f"{name} has shape {numbers.shape} for accuracies of {shape}; give one for each.")
    return numbers


def _cell(accuracy: float, change: float, starred: bool) -> str:
    """Write an accuracy in percent, with its change below."""
    if np.isnan(accuracy):
        return "–"
    lines = [f"{accuracy:.1f}"]
    if np.isfinite(change):
        lines.append(minus(f"{change:+.1f}") + ("*" if starred else ""))
    return "\n".join(lines)
