"""Bootstrap intervals of predicted floors, over blocks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from geofloor._validation import check_number, check_object, shown
from geofloor.features._resampling import resampled_tables
from geofloor.features._statistics import FeatureStatistics
from geofloor.theory import FloorPredictor
from geofloor.theory._widths import read_widths


def bootstrap_floors(
    predictor: FloorPredictor,
    blocks: Sequence[FeatureStatistics],
    widths: ArrayLike,
    *,
    calibrator: Any = None,
    level: float = 0.9,
    n_resamples: int = 200,
    random_state: int | np.random.RandomState | None = None,
) -> np.ndarray:
    """Bootstrap an interval of the floor, for the sampling error of the feature statistics.

    The features were measured on a sample of tokens. Each resample draws blocks of these tokens with replacement and
    repeats the whole prediction: statistics, sparsity, allocation and, with a calibrator, nats. The error of
    the calibration itself is not included: see `AffineCalibrator.predict` with ``return_interval=True``.

    Parameters
    ----------
    predictor : FloorPredictor
        Predictor, fitted or not; it is not changed. With ``alpha=None`` the sparsity varies too.
    blocks : sequence of FeatureStatistics
        Statistics of one block of tokens each, as for `resampled_tables`.
    widths : array-like of shape (n_widths,)
        Widths of students, in dimensions.
    calibrator : estimator, default=None
        Fitted calibrator, whose `predict` turns floors into nats per token.
    level : float, default=0.9
        Probability of the interval, between 0 and 1.
    n_resamples : int, default=200
        Number of resamples.
    random_state : int, RandomState or None, default=None
        Seed of the draws.

    Returns
    -------
    interval : ndarray of shape (n_widths, 2), float64
        Lower and upper end at each width, in the units of the importances, or in nats with a calibrator.

    Raises
    ------
    ValueError
        If `level` is outside (0, 1), `n_resamples` is below 2, a width is negative or not finite, or there are fewer
        than 2 blocks.
    TypeError
        If `predictor`, `blocks` or `calibrator` is of another type.
    NotFittedError
        If a block has seen no codes.

    Notes
    -----
    The ends are quantiles over the resamples (percentile bootstrap).

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FeatureStatistics, FloorPredictor
    >>> from geofloor.features import bootstrap_floors
    >>> codes = np.maximum(np.random.default_rng(0).standard_normal((20, 200, 30)) - 2, 0)
    >>> blocks = [FeatureStatistics().fit(block) for block in codes]
    >>> low, high = bootstrap_floors(FloorPredictor(), blocks, [1, 2], random_state=0).T
    >>> bool((low < high).all())
    True
    """
    level = check_number("level", level, 0.0, 1.0, open_low=True, open_high=True)
    n_resamples = check_number("n_resamples", n_resamples, 2, whole=True)
    check_object("predictor", predictor, FloorPredictor, "give a FloorPredictor, fitted or not")
    if calibrator is not None and not hasattr(calibrator, "predict"):
        raise TypeError(f"calibrator={shown(calibrator)} has no predict; give a fitted calibrator, or None.")
    at = read_widths(widths)
    resampled: list[np.ndarray] = []
    for table in resampled_tables(blocks, n_resamples=n_resamples, random_state=random_state):
        fresh = clone(predictor)
        # Only the first fit may warn: the others would repeat its warning.
        floors = (fresh._fit(table) if resampled else fresh.fit(table)).predict(at)
        resampled.append(floors if calibrator is None else calibrator.predict(floors))
    return np.quantile(resampled, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0).T
