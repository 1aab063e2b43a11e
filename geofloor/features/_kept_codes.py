"""Codes of a batch, stored flat, and their collection from pieces of its pre-activations."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def join(*batches: KeptCodes) -> KeptCodes:
    """Append the rows of batches to each other."""
    starts = np.cumsum([0, *(len(each.values) for each in batches)])
    return KeptCodes(
        np.concatenate([each.latents for each in batches]),
        np.concatenate([each.values for each in batches]),
        np.concatenate([each.firsts + start for each, start in zip(batches, starts, strict=False)]),
        np.concatenate([each.counts for each in batches]),
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


class AbovePerBatch:
    """Pre-activations of a batch above zero: all of them, or its `n_wanted` largest and those equal to the least of it.

    Parameters
    ----------
    threads : KernelThreads
        Threads to use.
    n_wanted : int or None
        Number of pre-activations wanted; None for all.
    guess : scalar
        Number of the type of the pre-activations, at least 0. Those up to it are left out.
    """

    def __init__(self, threads: KernelThreads, guess: Any, n_wanted: int | None = None) -> None:
        self._threads = threads
        self._bound = guess
        self._n_wanted = n_wanted
        self._pieces: list[KeptCodes] = []
        self.n_codes = 0

    def add(self, first_row: int, preactivations: np.ndarray) -> None:
        """Select from a piece of the batch, (n_in_piece, n_latents); pieces come in order."""
        from geofloor.features import _selection_kernels as kernels

        n_rows, work = len(preactivations), preactivations.size
        counts = np.empty(n_rows, np.int32)
        self._threads.divide(kernels.count_above, (preactivations, self._bound, counts), n_rows, work)
        lasts = counts.cumsum(dtype=np.int64)
        latents, values = np.empty(lasts[-1], np.int32), np.empty(lasts[-1], preactivations.dtype)
        arguments = (preactivations, self._bound, lasts - counts, latents, values)
        self._threads.divide(kernels.collect_above, arguments, n_rows, work)
        self._pieces.append(KeptCodes(latents, values, lasts - counts, counts))
        self.n_codes += len(values)
        if self._n_wanted is not None and self.n_codes > 2 * self._n_wanted:
            self._keep_wanted(self._n_wanted)

    def finish(self) -> KeptCodes:
        """Return the codes of all rows."""
        if self._n_wanted is not None and self.n_codes > self._n_wanted:
            self._keep_wanted(self._n_wanted)
        return self._join()

    def _join(self) -> KeptCodes:
        """Join the pieces to one."""
        if len(self._pieces) > 1:
            self._pieces = [join(*self._pieces)]
        return self._pieces[0]

    def _keep_wanted(self, n_wanted: int) -> None:
        """Raise the bound until it leaves the wanted number, and drop the others."""
        kept = self._join()
        least = nth_largest(kept, n_wanted)
        self._bound = kept.values.dtype.type(least - 1) if least.dtype.kind == "i" else np.nextafter(least, 0 * least)
        self._pieces = [drop_to(kept, self._bound)]
        self.n_codes = len(self._pieces[0].values)


def nth_largest(kept: KeptCodes, n: int) -> Any:
    """Find the n-th largest of consecutive codes."""
    from geofloor.features import _selection_kernels as kernels

    return kept.values.dtype.type(kernels.kth_largest(kept.values.copy(), len(kept.values), n))


def drop_to(kept: KeptCodes, bound: Any) -> KeptCodes:
    """Drop the codes up to a bound, a scalar of their type."""
    from geofloor.features import _selection_kernels as kernels

    n_codes = kernels.drop_to(bound, *kept)
    return kept._replace(latents=kept.latents[:n_codes], values=kept.values[:n_codes])
