"""Measure the time of a batch and the memory of a stream of batches in FeatureStatistics.

    python benchmarks/feature_statistics.py

Codes are float32, with 32,768 latents and 218 firings per token. Targets: at most 3 times the time of the two necessary
column sums, and the same peak memory for 40 batches as for 2.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import scipy.sparse as sp
from _timing import report, side_by_side

from geofloor import FeatureStatistics

N_TOKENS, N_LATENTS, MEAN_L0 = 8_192, 32_768, 218


def make_codes() -> sp.csr_matrix:
    """Make codes with firing rates proportional to 1 / (rank + 1000), and latents in random order."""
    rng = np.random.default_rng(0)
    rates = 1 / (np.arange(N_LATENTS) + 1_000)
    rates = rng.permutation(rates * MEAN_L0 / rates.sum()).astype(np.float32)
    rows = [np.flatnonzero(rng.random(N_LATENTS, dtype=np.float32) < rates) for _ in range(N_TOKENS)]
    ends = np.cumsum([0, *map(len, rows)])
    values = rng.exponential(size=ends[-1]).astype(np.float32)
    indices = np.concatenate(rows).astype(np.int32)
    return sp.csr_matrix((values, indices, ends.astype(np.int32)), shape=(N_TOKENS, N_LATENTS))


def peak_bytes(codes: sp.csr_matrix, n_batches: int) -> int:
    """Measure the peak of Python's allocations while a stream of fresh batches is read."""
    tracemalloc.start()
    FeatureStatistics().fit(codes.copy() for _ in range(n_batches))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    codes = make_codes()

    def fresh() -> sp.csr_matrix:  # scipy caches checks on a matrix, and the batches of a stream are new
        return sp.csr_matrix((codes.data, codes.indices, codes.indptr), shape=codes.shape)

    def column_sums() -> None:
        batch = fresh()
        batch.power(2).sum(axis=0)
        batch.getnnz(axis=0)

    statistics = FeatureStatistics()
    seconds = side_by_side(
        {"column sums": column_sums, "partial_fit": lambda: statistics.partial_fit(fresh())}, repeats=31
    )
    print(f"{codes.shape[0]:,} x {codes.shape[1]:,} float32 codes, mean L0 {codes.nnz / codes.shape[0]:.0f}")
    for name, median in seconds.items():
        print(f"  {name}: {1e3 * median:.1f} ms")
    report("partial_fit / column sums, seconds", seconds["partial_fit"] / seconds["column sums"], 3)

    few, many = peak_bytes(codes, 2), peak_bytes(codes, 40)
    batch = codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes
    print(f"  peak memory: {few / batch:.2f} batches for 2, {many / batch:.2f} for 40")
    report("peak memory, 40 batches / 2 batches", many / few, 1.05)


if __name__ == "__main__":
    main()
