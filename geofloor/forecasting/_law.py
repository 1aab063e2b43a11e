"""Base class of the laws of the loss over student width."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class Law:
    """Base class of the laws for `LossForecaster`.

    To add a law, derive a frozen dataclass from this class. Its fields are the constants known before the fit. If the
    curve is linear in the fitted values, define `parameters`, `bounds`, `design` and `describe`. Otherwise define
    `linearize` and `start` in place of `design`. All other members have defaults.

    Attributes
    ----------
    parameters : tuple of str
        Names of the fitted parameters. The fit needs as many different widths.
    bounds : tuple of (float, float)
        Lowest and highest value of each fitted value, in the order of the columns of `design`.
    logarithmic : bool
        Whether the curve is the logarithm of the loss, with a log-normal error. Otherwise the curve is the loss
        itself, with a normal error proportional to it.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> from geofloor import LossForecaster
    >>> from geofloor.forecasting import Law
    >>> @dataclass(frozen=True)
    ... class RootDecay(Law):
    ...     parameters = ("decay", "log_scale")
    ...     bounds = ((0, np.inf), (-np.inf, np.inf))
    ...
    ...     def design(self, widths):
    ...         return np.column_stack([-np.sqrt(widths), np.ones(len(widths))])
    ...
    ...     def describe(self, params):
    ...         return f"exp({params['log_scale']:.3f} - {params['decay']:.4f} sqrt(d))"
    >>> fitted = LossForecaster(RootDecay()).fit([16, 64], [np.exp(0.1), np.exp(-0.3)])
    >>> fitted.law_.describe(fitted.params_), fitted.predict([36]).round(3)
    ('exp(0.500 - 0.1000 sqrt(d))', array([0.905]))
    """

    logarithmic: bool = True
    # Messages call `loss_at_zero` and `end_width` by the names of the arguments behind them.
    _zero_name = "loss_at_zero"
    _end_name = "end_width"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the fitted parameters."""
        raise NotImplementedError(f"{type(self).__name__} defines no parameters; give a tuple of their names.")

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Lowest and highest value of each fitted value."""
        raise NotImplementedError(f"{type(self).__name__} defines no bounds; give one pair per parameter.")

    @property
    def loss_at_zero(self) -> float | None:
        """Known loss at width 0, in nats per token: inf at a pole, or None to compute it from the curve."""
        return None

    @property
    def end_width(self) -> float:
        """First width without loss, in dimensions, or inf."""
        return np.inf

    @property
    def reach(self) -> float:
        """Least range of the search for a smallest width, in dimensions."""
        return self.end_width if np.isfinite(self.end_width) else 0.0

    def known(self) -> float:
        """Return the part of the curve known before the fit."""
        return 0.0

    def design(self, widths: np.ndarray) -> np.ndarray:
        """Return the derivatives of a linear curve with respect to the fitted values.

        Parameters
        ----------
        widths : ndarray of shape (n_widths,)
            Widths below `end_width`. Width 0 occurs only if `loss_at_zero` is None.

        Returns
        -------
        derivatives : ndarray of shape (n_widths, n_parameters)
            One column per fitted value.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither design nor linearize; give one of them.")

    def linearize(self, widths: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the curve and its derivatives with respect to the fitted values.

        Parameters
        ----------
        widths : ndarray of shape (n_widths,)
            Widths below `end_width`. Width 0 occurs only if `loss_at_zero` is None.
        values : ndarray of shape (n_parameters,)
            Fitted values.

        Returns
        -------
        curve : ndarray of shape (n_widths,)
            Logarithm of the loss if the law is `logarithmic`, otherwise the loss.
        derivatives : ndarray of shape (n_widths, n_parameters)
            One column per fitted value.
        """
        design = self.design(widths)
        return design @ values + self.known(), design

    def start(self, widths: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """Return a start for the fit, within the bounds.

        Parameters
        ----------
        widths, losses : ndarray of shape (n_runs,)
            The runs.

        Returns
        -------
        values : ndarray of shape (n_parameters,)
            Any will do if the curve is linear in them.
        """
        return np.clip(np.zeros(len(self.bounds)), *np.transpose(self.bounds))

    def params(self, values: np.ndarray) -> dict[str, float]:
        """Return the parameters by name.

        Parameters
        ----------
        values : ndarray of shape (n_parameters,)
            Fitted values.

        Returns
        -------
        params : dict of str to float
            By default the values under the names of `parameters`.
        """
        return {name: float(value) for name, value in zip(self.parameters, values, strict=True)}

    def describe(self, params: Mapping[str, float]) -> str:
        """Return the formula with its numbers.

        Parameters
        ----------
        params : mapping of str to float
            Parameters by name, such as ``params_`` of a `LossForecaster`.

        Returns
        -------
        formula : str
            Loss in nats per token as a function of the width d.
        """
        return f"{type(self).__name__}({', '.join(f'{name}={value:.4g}' for name, value in params.items())})"

    def least(self, widths: np.ndarray) -> np.ndarray | None:
        """Return a lower bound of the loss at each width, or None if there is none.

        Parameters
        ----------
        widths : ndarray of shape (n_widths,)
            Widths from 0 on.

        Returns
        -------
        losses : ndarray of shape (n_widths,) or None
            In nats per token. No forecast is below it.
        """
        return None

    def check_runs(self, widths: np.ndarray, losses: np.ndarray) -> None:
        """Refuse runs in contradiction to the known ends of the law.

        Parameters
        ----------
        widths, losses : ndarray of shape (n_runs,)
            The runs.

        Raises
        ------
        ValueError
            If a loss is not below the known loss at width 0, or a width is not below the end of the law.
        """
        zero = self.loss_at_zero
        if zero is not None and not losses.max() < zero:
            raise ValueError(
                f"y holds the loss {losses.max():g}, which is not below {self._zero_name}={zero:g}, the loss of one "
                "distribution for all positions; measure both at one temperature, as a divergence from the teacher "
                "and not as a cross-entropy, without the factor T² (4 at temperature 2), or train for longer."
            )
        if not widths.max() < self.end_width:
            raise ValueError(
                f"X holds the width {widths.max():g}, which is not below {self._end_name}={self.end_width:g}, where a "
                "student can equal the teacher and lose nothing; leave it out, or choose a law without this end."
            )
