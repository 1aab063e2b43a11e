"""Rows of a training step, computed from its number alone, so that a loop can resume anywhere."""

from __future__ import annotations

import functools

import numpy as np

from geofloor._training.seeds import step_generator


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Count the whole batches in one pass; fewer rows than a batch make one batch."""
    return max(n_rows // batch_size, 1)


def epoch_rows(n_rows: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Return the row numbers of one step, in ascending order for memory maps.

    Every epoch cuts a new permutation into whole batches, so that other rows are left over each time.
    """
    epoch, within = divmod(step, steps_per_epoch(n_rows, batch_size))
    order = _permutation(n_rows, epoch, seed)
    return np.sort(order[within * batch_size : (within + 1) * batch_size])


@functools.lru_cache(maxsize=1)
def _permutation(n_rows: int, epoch: int, seed: int) -> np.ndarray:
    return step_generator(seed, epoch).permutation(n_rows)
