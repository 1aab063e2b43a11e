"""Measure toy floors at other importances, feature counts and sparsities than the paper's.

    python benchmarks/other_toy_sweeps.py --work other-work

No distortion curve was made from these floors. Every point has five seeds, and all sparsities lie between those of the
library's table. The summary goes to results/toy_other_sweeps.csv, where `allocations.py` reads it.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from geofloor.toy import summarize_sweep, toy_sweep

RESULTS = Path(__file__).parent / "results"
ALPHAS = (0.85, 0.93, 0.97, 0.992)
# Importance laws by name; each gives the weights of n features.
LAWS = {f"Zipf {s:g}": (lambda n, s=s: np.arange(1, n + 1) ** -float(s)) for s in (0.5, 1.0, 1.5, 2.0, 3.0)}
LAWS["exponential"] = lambda n: np.exp(-np.arange(n) / (n / 5))
GRID = {
    8: (1, 2, 3, 5),
    15: (1, 2, 4, 7, 10),
    30: (1, 2, 4, 7, 11, 16),
    60: (2, 4, 7, 12, 20),
    100: (3, 8, 16, 30),
    200: (5, 15, 30),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=None, help="folder for finished parts")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--n-seeds", type=int, default=5)
    parser.add_argument("--laws", nargs="+", default=list(LAWS), help="importance laws to train")
    parser.add_argument("--features", type=int, nargs="+", default=list(GRID), help="numbers of features to train")
    parser.add_argument("--output", type=Path, default=RESULTS / "toy_other_sweeps.csv")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for name in options.laws:
        law = LAWS[name]
        for n_features in options.features:
            widths = GRID[n_features]
            sweep = toy_sweep(
                n_features,
                widths,
                ALPHAS,
                teacher_widths=None,
                importance=law,
                n_seeds=options.n_seeds,
                checkpoint_dir=options.work,
                n_jobs=options.n_jobs,
                device="cpu",
            )
            rows.append(summarize_sweep(sweep).assign(importance=name))
            print(f"{name}, {n_features} features: {sweep.converged.mean():.1%} converged", flush=True)
    summary = pd.concat(rows, ignore_index=True)
    with open(options.output, "w", encoding="utf-8") as file:
        file.write("# python benchmarks/other_toy_sweeps.py\n")
        summary.to_csv(file, index=False, float_format="%.6g")
    print(f"{len(summary)} points")


if __name__ == "__main__":
    main()
