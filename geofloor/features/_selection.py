"""Choose the codes to keep of a batch, from pieces of its pre-activations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geofloor.features._threads import KernelThreads

_COLUMNS_PER_CODE = 8  # of the table that a row is seen as; more columns hold fewer codes that are searched in vain


class KeptCodes(NamedTuple):
    """Codes of the rows of a batch.

    Attributes
    ----------
    latents : ndarray of shape (n_codes,), int32
        Latent of each code. Some entries may belong to no row.
    values : ndarray of shape (n_codes,)
        The codes, above zero.
    firsts : ndarray of shape (n_rows,), int64
        Position of the first code of each row.
    counts : ndarray of shape (n_rows,), int32
        Number of codes of each row.
    """

    latents: np.ndarray
    values: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray


def join(one: KeptCodes, other: KeptCodes) -> KeptCodes:
    """Append the rows of another batch."""
    return KeptCodes(
        np.concatenate([one.latents, other.latents]),
        np.concatenate([one.values, other.values]),
        np.concatenate([one.firsts, other.firsts + len(one.values)]),
        np.concatenate([one.counts, other.counts]),
    )


class LargestPerRow:
    """The k largest pre-activations of each row that are above zero.

    Parameters
    ----------
    n_rows : int
        Rows of the batch.
    k : int
        Codes to keep per row.
    dtype : dtype
        Type of the pre-activations.
    threads : KernelThreads
        Threads to use.
    chosen : ndarray of shape (n_chosen,) or None
        Latents to choose from, at least k; None for all of them.
    """

    def __init__(
        self, n_rows: int, k: int, dtype: np.dtype, threads: KernelThreads, chosen: np.ndarray | None = None
    ) -> None:
        self._k = k
        self._threads = threads
        self._chosen = chosen
        self._latents = np.empty((n_rows, k), np.int32)
        self._values = np.empty((n_rows, k), dtype)
        self._counts = np.empty(n_rows, np.int32)

    def add(self, first_row: int, preactivations: np.ndarray) -> None:
        """Select from a piece of the batch, (n_in_piece, n_latents), that begins at `first_row`."""
        from geofloor.features import _selection_kernels as kernels

        n_choices = preactivations.shape[1] if self._chosen is None else len(self._chosen)
        n_columns = min(16 * -(-_COLUMNS_PER_CODE * self._k // 16), n_choices)
        written = (first_row, self._k, n_columns, self._latents, self._values, self._counts)
        n_rows, work = len(preactivations), len(preactivations) * n_choices
        if self._chosen is None:
            self._threads.divide(kernels.select_largest, (preactivations, *written), n_rows, work)
        else:
            arguments = (preactivations, self._chosen, *written)
            self._threads.divide(kernels.select_largest_among, arguments, n_rows, work)

    def finish(self) -> KeptCodes:
        """Return the codes of all rows."""
        firsts = np.arange(0, self._latents.size, self._k)
        return KeptCodes(self._latents.ravel(), self._values.ravel(), firsts, self._counts)
