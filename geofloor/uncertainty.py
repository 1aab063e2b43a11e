"""How far a predicted floor would move on other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from geofloor.floor import FloorPredictor
from geofloor.statistics import FeatureStatistics, resampled_tables


def bootstrap_floors(
    predictor: FloorPredictor,
    blocks: Sequence[FeatureStatistics],
    widths: ArrayLike,
    *,
    calibrator: Any = None,
    level: float = 0.95,
    n_resamples: int = 200,
    random_state: int | np.random.RandomState | None = None,
) -> np.ndarray:
    """Interval of the floor from the sampling error of the feature statistics.

    The features were measured on a sample of tokens. Blocks of it are drawn anew, with replacement, and the
    whole prediction is repeated: statistics, sparsity, allocation and, with a calibrator, nats. The error of
    the calibration itself is not in it: that is `AffineCalibrator.predict` with ``return_interval=True``.

    Parameters
    ----------
    predictor : FloorPredictor
        Predictor, fitted or not; it is left as it is. With ``alpha=None`` the sparsity varies too.
    blocks : sequence of FeatureStatistics
        Statistics of one block of tokens each, as `resampled_tables` takes them.
    widths : array-like of shape (n_widths,)
        Widths of students, in dimensions.
    calibrator : estimator, default=None
        Fitted calibrator, whose `predict` turns floors into nats per token.
    level : float, default=0.95
        Probability of the interval, between 0 and 1.
    n_resamples : int, default=200
        Repetitions.
    random_state : int, RandomState or None, default=None
        Seed of the draws.

    Returns
    -------
    interval : ndarray of shape (n_widths, 2), float64
        Lower and upper end at each width, in the units of the importances, or in nats with a calibrator.

    Raises
    ------
    ValueError
        If `level` is outside (0, 1), `n_resamples` is below 2, or there are fewer than 2 blocks.

    Notes
    -----
    The ends are quantiles of the repetitions (percentile bootstrap).

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FeatureStatistics, FloorPredictor
    >>> from geofloor.uncertainty import bootstrap_floors
    >>> codes = np.maximum(np.random.default_rng(0).standard_normal((20, 200, 30)) - 2, 0)
    >>> blocks = [FeatureStatistics().fit(block) for block in codes]
    >>> low, high = bootstrap_floors(FloorPredictor(), blocks, [1, 2], random_state=0).T
    >>> bool((low < high).all())
    True
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level!r} must be a probability between 0 and 1.")
    if n_resamples < 2:
        raise ValueError(f"n_resamples={n_resamples!r} must be at least 2.")
    repeated = []
    for table in resampled_tables(blocks, n_resamples=n_resamples, random_state=random_state):
        floors = clone(predictor).fit(table).predict(widths)
        repeated.append(floors if calibrator is None else calibrator.predict(floors))
    return np.quantile(repeated, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0).T
