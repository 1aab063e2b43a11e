"""Draw feature tables anew, by a bootstrap over blocks of tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_iterable, check_number, check_object
from geofloor.features._statistics import FeatureStatistics


def resampled_tables(
    blocks: Sequence[FeatureStatistics],
    *,
    n_resamples: int = 200,
    random_state: int | np.random.RandomState | None = None,
) -> Iterator[np.ndarray]:
    """Draw feature tables by a bootstrap over blocks of tokens.

    Each draw takes whole blocks, with replacement, because neighboring tokens are alike.

    Parameters
    ----------
    blocks : sequence of FeatureStatistics
        Statistics of the same latents, each fitted on one block of tokens: some documents, or some thousand
        consecutive tokens.
    n_resamples : int, default=200
        Number of tables.
    random_state : int, RandomState or None, default=None
        Seed of the draws.

    Returns
    -------
    tables : iterator of ndarray of shape (n_alive, 3), float64
        Importance, firing rate and mean of the features that are alive on all blocks together. Rows stand in order of
        falling importance on all blocks, the same in each table.

    Raises
    ------
    ValueError
        If there are fewer than 2 blocks, blocks differ in their number of latents, or `n_resamples` is below 1.
    TypeError
        If `blocks` holds anything but FeatureStatistics.
    NotFittedError
        If a block has seen no codes.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FeatureStatistics
    >>> from geofloor.features import resampled_tables
    >>> codes = np.abs(np.random.default_rng(0).standard_normal((8, 100, 3)))
    >>> blocks = [FeatureStatistics().fit(block) for block in codes]
    >>> [table.shape for table in resampled_tables(blocks, n_resamples=2, random_state=0)]
    [(3, 3), (3, 3)]
    """
    n_resamples = check_number("n_resamples", n_resamples, 1, whole=True)
    blocks = read_blocks(blocks)
    rng = check_random_state(random_state)
    pooled = copy.copy(blocks[0])  # merging replaces its sums and leaves those of the block
    for block in blocks[1:]:
        pooled.merge(block)
    totals = np.stack([block._totals[:, pooled.alive_] for block in blocks])
    return _draw_tables(totals, np.array([block.n_tokens_ for block in blocks]), n_resamples, rng)


def read_blocks(blocks: Any) -> list[FeatureStatistics]:
    """Read the statistics of at least two blocks of tokens.

    Parameters
    ----------
    blocks : iterable of FeatureStatistics
        Fitted statistics.

    Returns
    -------
    blocks : list of FeatureStatistics
        The same statistics.

    Raises
    ------
    ValueError
        If there are fewer than 2.
    TypeError
        If `blocks` holds anything but FeatureStatistics.
    NotFittedError
        If a block has seen no codes.

    Examples
    --------
    >>> from geofloor import FeatureStatistics
    >>> from geofloor.features._resampling import read_blocks
    >>> len(read_blocks(FeatureStatistics().fit([[1.0, 0.0], [0.0, 2.0]]) for _ in range(3)))
    3
    """
    remedy = "give a sequence of fitted FeatureStatistics, one per block of tokens"
    read = list(check_iterable("blocks", blocks, remedy))
    for place, block in enumerate(read):
        check_is_fitted(check_object(f"blocks[{place}]", block, FeatureStatistics, remedy), "n_tokens_")
    if len(read) < 2:
        raise ValueError(f"blocks has {len(read)} statistics; a bootstrap needs at least 2, and better 20.")
    return read


def _draw_tables(
    totals: np.ndarray, n_tokens: np.ndarray, n_resamples: int, rng: np.random.RandomState
) -> Iterator[np.ndarray]:
    """Yield tables of blocks drawn with replacement, from sums per block, (n_blocks, 3, n_alive)."""
    n_blocks = len(n_tokens)
    for _ in range(n_resamples):
        times = np.bincount(rng.randint(n_blocks, size=n_blocks), minlength=n_blocks)
        yield np.ascontiguousarray(np.tensordot(times, totals, axes=1).T) / (times @ n_tokens)
