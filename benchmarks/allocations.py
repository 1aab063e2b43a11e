"""Predictors of the floor against measured ones: the paper's toy sweep, and importances that no curve was made with.

    python benchmarks/full_toy_sweep.py && python benchmarks/allocations.py

Nothing is fitted to the floors, except for the packing law, whose two numbers are fitted on half of the configurations.
It takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from full_toy_sweep import NOTHING, PREDICTORS, show
from scipy.optimize import minimize

from geofloor import FloorPredictor
from geofloor.agreement import agreement_table
from geofloor.allocation import BlockPacking, Waterfilling
from geofloor.capacity import capacity, critical_width
from geofloor.distortion import blocks, distortion_curve, empty_distortion
from geofloor.toy import SparseFeatures, predict_sweep, summarize_sweep, toy_sweep

RESULTS = Path(__file__).parent / "results"
STRATA = ([0.0, 0.8, 1.2, np.inf], ["d/d* < 0.8", "0.8 to 1.2", "> 1.2"])


def shared(allocation: str, importance=lambda n: 1 / np.arange(1, n + 1)):
    """What makes a predictor with an allocation for features from U[0, 1]."""

    def make(n_features: int, alpha: float) -> FloorPredictor:
        moments = SparseFeatures(n_features, alpha).second_moments
        return FloorPredictor(alpha, allocation=allocation).fit(importance(n_features), second_moments=moments)

    return make


def packing_law(summary: pd.DataFrame) -> pd.Series:
    """Eq. 2 with the capacity a·g^b, fitted to the logarithms of the floors of every other configuration."""
    configurations = summary.groupby(["n_features", "alpha"]).ngroup()
    half = (configurations % 2 == 0).to_numpy()

    def predict(parameters: np.ndarray) -> np.ndarray:
        def make(n_features: int, alpha: float) -> FloorPredictor:
            features = SparseFeatures(n_features, alpha)
            scaled = float(np.exp(parameters[0]) * capacity(alpha) ** parameters[1])
            predictor = FloorPredictor(alpha, capacity=lambda _: scaled)
            return predictor.fit(1 / np.arange(1, n_features + 1), second_moments=features.variances)

        return predict_sweep(summary, {"law": make})["law"].to_numpy()

    measured = summary.floor.to_numpy()
    fitted = minimize(
        lambda parameters: np.mean((predict(parameters) - measured)[half] ** 2),
        [0.0, 0.5],
        method="Nelder-Mead",
        options={"maxiter": 60},
    )
    print(f"packing law, fitted on half of the configurations: {np.exp(fitted.x[0]):.3f} g^{fitted.x[1]:.3f}")
    return pd.Series(predict(fitted.x), index=summary.index)


def bounds(n_features: int, alpha: float, widths: np.ndarray, importances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Water-filling and packing with the best of the seeds: bounds from below and from above."""
    charges = importances * SparseFeatures(n_features, alpha).second_moments
    lower = Waterfilling(charges, distortion_curve(alpha, starts="best")).floors(widths)
    upper = BlockPacking(charges, *blocks(alpha, starts="best"), empty_distortion(alpha)).floors(widths)
    return lower, upper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--only-paper", action="store_true", help="leave out the other importances")
    options = parser.parse_args()
    summary = pd.read_csv(RESULTS / "toy_sweep_data.csv", comment="#").drop(columns=list(PREDICTORS))
    summary = predict_sweep(summary, PREDICTORS)
    summary["packing law"] = packing_law(summary)
    summary = predict_sweep(summary, {name: shared(name) for name in ("waterfilling", "blocks", "auto")})
    names = [*PREDICTORS, "packing law", "waterfilling", "blocks", "auto"]
    ratio = summary.width / [critical_width(n, a) for n, a in zip(summary.n_features, summary.alpha, strict=True)]
    strata = pd.cut(ratio, *STRATA[:1], labels=STRATA[1]).astype(object)
    print(f"\n=== the paper's sweep, all {len(summary)} points")
    predictions = {name: summary[name] for name in names}
    show(agreement_table(summary.floor, predictions, strata=strata, relative_above=NOTHING))
    print("\n=== by sparsity")
    chosen = {name: predictions[name] for name in ("Eq. 2", "waterfilling", "blocks")}
    show(agreement_table(summary.floor, chosen, strata=summary.alpha, relative_above=NOTHING))
    inside(summary, "the paper's sweep")
    if options.only_paper:
        return

    rows = []
    laws = {f"Zipf, exponent {s}": (lambda n, s=s: np.arange(1, n + 1) ** -float(s)) for s in (0, 0.5, 1.5, 2, 3)}
    laws["exponential"] = lambda n: np.exp(-np.arange(n) / (n / 5))
    for label, law in laws.items():
        for n, widths in ((30, [1, 2, 4, 7, 12, 20]), (100, [2, 5, 10, 20, 40])):
            sweep = toy_sweep(
                n, widths, (0.85, 0.93, 0.98), teacher_widths=None, importance=law, n_seeds=5, n_jobs=options.n_jobs
            )
            found = predict_sweep(
                summarize_sweep(sweep),
                {name: shared(name, law) for name in ("cutoff", "waterfilling", "blocks", "auto")},
            )
            rows.append(found.assign(importances=label))
    other = pd.concat(rows, ignore_index=True)
    print(f"\n=== importances and feature counts that were not used, {len(other)} points")
    predictions = {name: other[name] / other.total for name in ("cutoff", "waterfilling", "blocks", "auto")}
    show(agreement_table(other.floor / other.total, predictions, strata=other.importances))
    for label, law in laws.items():
        inside(other[other.importances == label], label, law)


def inside(summary: pd.DataFrame, label: str, importance=lambda n: 1 / np.arange(1, n + 1)) -> None:
    """How many floors of best seeds lie between the bounds, up to two standard errors."""
    points = summary.drop_duplicates(["n_features", "alpha", "width"])
    within = []
    for (n, alpha), group in points.groupby(["n_features", "alpha"]):
        lower, upper = bounds(n, alpha, group.width.to_numpy(), importance(n))
        slack = 2 * group.sampling_error.to_numpy() + NOTHING
        best = group.floor_best.to_numpy()
        within += ((best >= lower - slack) & (best <= upper + slack)).tolist()
    print(f"best seeds between the bounds, {label}: {np.mean(within):.1%} of {len(within)} points")


if __name__ == "__main__":
    main()
