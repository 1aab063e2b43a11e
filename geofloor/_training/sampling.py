"""Which rows a step trains on, found from the step alone so that a loop can resume anywhere."""

from __future__ import annotations

import functools

import numpy as np

from geofloor._training.seeds import step_generator


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Whole batches in one pass; fewer rows than a batch make one batch."""
    return max(n_rows // batch_size, 1)


def epoch_rows(n_rows: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Row numbers of one step, ascending for the sake of memory maps.

    Every epoch is a fresh permutation cut into whole batches; the rows left over differ each time.
    """
    epoch, within = divmod(step, steps_per_epoch(n_rows, batch_size))
    order = _permutation(n_rows, epoch, seed)
    return np.sort(order[within * batch_size : (within + 1) * batch_size])


@functools.lru_cache(maxsize=1)
def _permutation(n_rows: int, epoch: int, seed: int) -> np.ndarray:
    return step_generator(seed, epoch).permutation(n_rows)
