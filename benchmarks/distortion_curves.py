"""Measure the loss of equally important features in few dimensions, for the library's distortion curves.

    python benchmarks/distortion_curves.py --work distortion-work

It trains toy models of K features of equal importance in d dimensions, over sparsities from 0 to 0.9999, each from
several starting points. Their losses, relative to the second moment, go to
geofloor/theory/_distortion_tables/relu_uniform.csv. Runs can share the work by `--features`; `--join` then joins their
tables.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from geofloor.theory import capacity
from geofloor.toy import toy_sweep

TABLE = Path(__file__).parents[1] / "geofloor" / "theory" / "_distortion_tables" / "relu_uniform.csv"
ALPHAS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10)
FEATURES = (
    *range(2, 19), 20, 22, 24, 28, 32, 36, 40, 46, 50, 56, 64, 80, 128, 256, 512
)  # fmt: skip
# Models of few features often end in poor minima and get more starts.
FEW, STARTS_OF_FEW, STARTS = 8, 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=None, help="folder for finished parts")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--features", type=int, nargs="+", default=FEATURES, help="numbers of features to train")
    parser.add_argument("--join", type=Path, nargs="+", default=None, help="tables to join instead of training")
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS)
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    if options.join:
        tables = pd.concat([pd.read_csv(path, comment="#") for path in options.join])
        write_table(tables.sort_values(["alpha", "width", "n_features"]), options.output)
        return
    warnings.simplefilter("ignore", ConvergenceWarning)  # unconverged models are counted below
    sweeps = []
    for n_features in options.features:
        began = time.perf_counter()
        # Up to three times as many features as an ideal decoder could keep in the largest width.
        alphas = [a for a in options.alphas if n_features <= 3.0 * WIDTHS[-1] * capacity(a, "minimax_nonnegative")]
        sweeps.append(
            toy_sweep(
                n_features,
                [width for width in WIDTHS if width < n_features],
                alphas,
                teacher_widths=None,
                n_seeds=STARTS_OF_FEW if n_features <= FEW else STARTS,
                importance="uniform",
                n_eval_samples=131_072,
                checkpoint_dir=options.work,
                n_jobs=options.n_jobs,
            )
        )
        seconds = time.perf_counter() - began
        print(f"{n_features} features: {len(sweeps[-1])} models in {seconds:.0f} s", flush=True)
    sweep = pd.concat(sweeps)
    sweep["distortion"] = sweep.floor / sweep.total
    sweep["error"] = sweep.standard_error / sweep.total
    groups = sweep.groupby(["alpha", "width", "n_features"])
    table = pd.DataFrame(
        {"mean": groups.distortion.mean(), "best": groups.distortion.min(), "standard_error": groups.error.mean()}
    ).reset_index()
    write_table(table, options.output)
    print(f"{len(sweep)} models at {len(table)} points; {sweep.converged.mean():.1%} converged")
    relative = (table.standard_error / table["mean"])[table["mean"] > 1e-6]
    print(
        f"standard error: {relative.median():.2%} of the distortion (median), {np.quantile(relative, 0.95):.2%} (95%)"
    )


def write_table(table: pd.DataFrame, path: Path, command: str = "python benchmarks/distortion_curves.py") -> None:
    """Write distortions with four digits and standard errors with two, below the command of the script."""
    text = table.copy()
    for name, digits in (("mean", 4), ("best", 4), ("standard_error", 2)):
        text[name] = [f"{value:.{digits}g}" for value in table[name]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"# {command}\n")
        text.to_csv(file, index=False)


if __name__ == "__main__":
    main()
