"""Errors of forecasts at widths left out of the fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.metrics import r2_score

from geofloor._validation import check_array_of_numbers, check_object, plain_array, shown
from geofloor.forecasting._runs import check_order


class ForecastErrors(NamedTuple):
    """Relative errors, predicted / observed − 1, of losses left out of the fit."""

    left_out: np.ndarray  # (n_widths,) at each width, from all others
    two_runs: np.ndarray  # (n_widths - 1, n_widths) row k: from the k-th width and the widest; NaN at these two


def forecast_errors(estimator: Any, widths: ArrayLike, losses: ArrayLike) -> ForecastErrors:
    """Compute errors at widths left out one by one, and of forecasts from two runs.

    Parameters
    ----------
    estimator : estimator
        Regressor of losses on widths: a `LossForecaster`, a `PowerLawCalibrator`, or a pipeline of a frozen
        `FloorPredictor` and an `AffineCalibrator`. Clones of it are fitted to widths of shape (n_runs, 1).
    widths : array-like of shape (n_widths,)
        Widths of students, in dimensions, all different and in ascending order.
    losses : array-like of shape (n_widths,)
        Observed losses, in nats per token, above 0.

    Returns
    -------
    errors : ForecastErrors
        Named tuple of ``left_out`` (n_widths,) and ``two_runs`` (n_widths − 1, n_widths). Row k of ``two_runs`` holds
        the errors after a fit to the k-th width and the widest, with NaN at these two. All of it is NaN if the
        estimator refuses two runs because it has three parameters.

    Raises
    ------
    ValueError
        If there are fewer than three widths, they are not ascending, a loss is not above 0, or widths and
        losses are exchanged.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import PowerLawCalibrator
    >>> from geofloor.forecasting import forecast_errors
    >>> widths = np.array([8, 16, 32, 64])
    >>> errors = forecast_errors(PowerLawCalibrator(), widths, 0.1 + 2.0 / widths)
    >>> bool((abs(errors.left_out) < 1e-6).all()), bool(np.isnan(errors.two_runs).all())
    (True, True)
    """
    _check_estimator("estimator", estimator)
    at, observed = _read_runs(widths, losses)
    n_widths = len(at)
    left_out = np.empty(n_widths)
    for i in range(n_widths):
        seen = np.arange(n_widths) != i
        left_out[i] = _errors(clone(estimator).fit(at[seen], observed[seen]), at[[i]], observed[[i]])[0]
    two_runs = np.full((n_widths - 1, n_widths), np.nan)
    for k in range(n_widths - 1):
        seen = np.isin(np.arange(n_widths), [k, n_widths - 1])
        try:
            fitted = clone(estimator).fit(at[seen], observed[seen])
        except ValueError:  # the same data were accepted above, so two runs are too few
            break
        two_runs[k, ~seen] = _errors(fitted, at[~seen], observed[~seen])
    return ForecastErrors(left_out, two_runs)


def forecast_table(
    estimators: Mapping[str, Any], widths: ArrayLike, losses: ArrayLike, *, groups: ArrayLike | None = None
) -> pd.DataFrame:
    """Compare predictors and rivals by their forecasts of widths, or of whole teachers, left out of the fit.

    Parameters
    ----------
    estimators : mapping of str to estimator
        Regressors of losses on widths by name, as for `forecast_errors`.
    widths : array-like of shape (n_runs,)
        Widths of students, in dimensions, all different and in ascending order. With `groups` this holds in each group.
    losses : array-like of shape (n_runs,)
        Observed losses, in nats per token, above 0.
    groups : array-like of shape (n_runs,) or None, default=None
        Group of each run, such as the name of its teacher. Two groups or more. All figures are then computed in each
        group, and the table gives their medians over the groups.

    Returns
    -------
    table : DataFrame
        One row per estimator, with the columns

        - ``r2``: R² on all runs, after a fit to all runs;
        - ``left_out``: median absolute relative error at a width, after a fit to all others;
        - ``inside``: the same without the narrowest and the widest width, which are extrapolated;
        - ``two_runs``: error of the forecast from the widest run and one more. It is the median over the other widths,
          and then over the choices of the second run;
        - ``two_runs_best``, ``two_runs_worst``: least and largest error over these choices;
        - ``group_out``, with `groups` only: median absolute relative error at the widths of a group, after a fit to the
          runs of all other groups. It says what the estimator knows of a teacher that it has no run of.

    Raises
    ------
    ValueError
        As `forecast_errors`, or if there is no estimator, `groups` differs in length, or there is only one group.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.pipeline import make_pipeline
    >>> from geofloor import AffineCalibrator, FloorPredictor, LossForecaster, PowerLawCalibrator
    >>> from geofloor.forecasting import forecast_table
    >>> floor = FloorPredictor(alpha=0.992).fit(1 / np.arange(1, 3001))
    >>> widths = np.array([8, 16, 32, 64])
    >>> rivals = {
    ...     "Eq. 2": make_pipeline(FrozenEstimator(floor), AffineCalibrator()),
    ...     "power law": PowerLawCalibrator(),
    ... }
    >>> table = forecast_table(rivals, widths, 0.2 * floor.predict(widths) + 0.05)
    >>> bool(table.left_out["Eq. 2"] < 1e-6 < table.left_out["power law"])
    True

    Two teachers whose students lose the same, up to a factor of two:

    >>> losses = np.append(2.0 * widths**-0.5, 4.0 * widths**-0.5)
    >>> groups = np.repeat(["one", "another"], 4)
    >>> table = forecast_table({"power": LossForecaster("power")}, np.tile(widths, 2), losses, groups=groups)
    >>> table[["left_out", "group_out"]].round(3).to_dict("records")
    [{'left_out': 0.0, 'group_out': 0.75}]
    """
    check_object("estimators", estimators, Mapping, "give a dict of estimators by name")
    if not estimators:
        raise ValueError("estimators is empty; give at least one estimator by name.")
    for name, estimator in estimators.items():
        _check_estimator(f"estimators[{name!r}]", estimator)
    if groups is None:
        at, observed = _read_runs(widths, losses)
        return pd.DataFrame.from_dict(
            {name: _row(estimator, at, observed) for name, estimator in estimators.items()}, orient="index"
        )
    members = _read_groups(groups, widths, losses)
    rows = {}
    for name, estimator in estimators.items():
        of_groups = []
        for i, (at, observed) in enumerate(members):
            others = [member for k, member in enumerate(members) if k != i]
            others_at, others_observed = (np.concatenate(part) for part in zip(*others, strict=True))
            fitted = clone(estimator).fit(others_at, others_observed)
            error = {"group_out": np.median(np.abs(_errors(fitted, at, observed)))}
            of_groups.append(_row(estimator, at, observed) | error)
        rows[name] = pd.DataFrame(of_groups).median()
    return pd.DataFrame(rows).T


def _row(estimator: Any, at: np.ndarray, observed: np.ndarray) -> dict[str, float]:
    """Return the figures of an estimator on one set."""
    errors = forecast_errors(estimator, at[:, 0], observed)
    choices = np.nanmedian(np.abs(errors.two_runs), axis=1) if np.isfinite(errors.two_runs).any() else [np.nan]
    return {
        "r2": r2_score(observed, clone(estimator).fit(at, observed).predict(at)),
        "left_out": float(np.median(np.abs(errors.left_out))),
        "inside": float(np.median(np.abs(errors.left_out[1:-1]))),
        "two_runs": float(np.median(choices)),
        "two_runs_best": float(np.min(choices)),
        "two_runs_worst": float(np.max(choices)),
    }


def _read_groups(groups: ArrayLike, widths: ArrayLike, losses: ArrayLike) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read widths as columns, and losses, of each group."""
    labels = np.asarray(plain_array(groups, "groups"), dtype=object)
    at, observed = check_array_of_numbers(widths, "widths", low=0), check_array_of_numbers(losses, "losses")
    if not labels.shape == at.shape == observed.shape:
        raise ValueError(
            f"groups has shape {labels.shape}, widths {at.shape} and losses {observed.shape}; give one group and one "
            "loss per width."
        )
    if pd.isna(labels).any():
        raise ValueError("groups holds a missing value; give the group of every run.")
    names = pd.unique(labels)
    if len(names) < 2:
        raise ValueError(f"groups holds {shown(names[0])} only; give two groups or more, or None.")
    return [_read_runs(at[labels == name], observed[labels == name]) for name in names]


def _errors(fitted: Any, widths: np.ndarray, losses: np.ndarray) -> np.ndarray:
    return np.asarray(fitted.predict(widths)) / losses - 1.0


def _check_estimator(name: str, estimator: Any) -> None:
    if not (hasattr(estimator, "fit") and hasattr(estimator, "predict")):
        raise TypeError(f"{name}={shown(estimator)} has no fit and predict; give a regressor of losses on widths.")


def _read_runs(widths: ArrayLike, losses: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Read widths as a column, and losses."""
    at, observed = check_array_of_numbers(widths, "widths", low=0), check_array_of_numbers(losses, "losses")
    if at.shape != observed.shape:
        raise ValueError(f"widths has shape {at.shape} and losses {observed.shape}; give one loss per width.")
    check_order(at, observed, ("widths", "losses"))
    if len(at) < 3 or not (np.diff(at) > 0).all():
        raise ValueError(
            f"widths={shown(at.tolist())} must be 3 or more different widths, ascending; average repeated runs."
        )
    if not observed.min() > 0:
        raise ValueError(f"losses holds {observed.min():g}; relative errors need losses above 0.")
    return at[:, np.newaxis], observed
