"""Compare predicted floors with measured ones, of the paper's toy sweep and of students unlike it.

    python benchmarks/allocations.py

Most floors are those measured by full_toy_sweep.py, other_toy_sweeps.py and deep_students.py. The script itself trains
models of features with other amplitude laws, with mixed sparsities, and mutually exclusive ones. Nothing is fitted to
the floors of the paper's sweep, except the two parameters of the packing law, on half of its configurations. The excess
of an average training over the best is measured on the other importances. It takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from full_toy_sweep import NOTHING, PREDICTORS, show
from other_toy_sweeps import LAWS
from scipy.optimize import minimize

from geofloor import FloorPredictor, ToyModel
from geofloor.forecasting import agreement_table
from geofloor.theory import capacity, critical_width
from geofloor.toy import SparseFeatures, predict_sweep, summarize_sweep, toy_sweep

RESULTS = Path(__file__).parent / "results"
STRATA = ([0.0, 0.8, 1.2, np.inf], ["d/d* < 0.8", "0.8 to 1.2", "> 1.2"])


def shared(allocation: str, importance=LAWS["Zipf 1"], amplitude: str = "uniform", **parameters: str):
    """Return a factory of predictors with this allocation, for sparse features of an amplitude law."""

    def make(n_features: int, alpha: float) -> FloorPredictor:
        moments = SparseFeatures(n_features, alpha, amplitude).second_moments
        law = None if allocation == "cutoff" else amplitude  # Eq. 2 does not use amplitudes
        predictor = FloorPredictor(alpha, allocation=allocation, amplitude=law, **parameters)
        return predictor.fit(importance(n_features), second_moments=moments)

    return make


def packing_law(summary: pd.DataFrame) -> pd.Series:
    """Predict floors by Eq. 2 with the capacity a·g^b, fitted to log floors of every second configuration."""
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


def inside(summary: pd.DataFrame, label: str, importance=LAWS["Zipf 1"]) -> None:
    """Print the share of best seeds with a floor between the bounds, up to two standard errors."""
    points = summary.drop_duplicates(["n_features", "alpha", "width"])
    within, above = [], []
    for (n, alpha), group in points.groupby(["n_features", "alpha"]):
        predictor = shared("auto", importance)(int(n), float(alpha))
        _, limits = predictor.predict(group.width.to_numpy(), return_bounds=True)
        slack = 2 * group.sampling_error.to_numpy() + NOTHING
        best = group.floor_best.to_numpy()
        within += ((best >= limits[:, 0] - slack) & (best <= limits[:, 1] + slack)).tolist()
        above += (best > limits[:, 1] + slack).tolist()
    print(f"best seeds between the bounds, {label}: {np.mean(within):.1%} of {len(within)}, above {np.mean(above):.1%}")


def papers_sweep() -> None:
    summary = pd.read_csv(RESULTS / "toy_sweep_data.csv", comment="#").drop(columns=list(PREDICTORS))
    summary = predict_sweep(summary, PREDICTORS)
    summary["packing law"] = packing_law(summary)
    summary = predict_sweep(summary, {name: shared(name) for name in ("waterfilling", "blocks", "auto")})
    names = [*PREDICTORS, "packing law", "waterfilling", "blocks", "auto"]
    ratio = summary.width / [critical_width(n, a) for n, a in zip(summary.n_features, summary.alpha, strict=True)]
    strata = pd.cut(ratio, *STRATA[:1], labels=STRATA[1]).astype(object)
    print(f"\n=== the paper's sweep, all {len(summary)} points, mean of 20 seeds")
    predictions = {name: summary[name] for name in names}
    show(agreement_table(summary.floor, predictions, strata=strata, relative_above=NOTHING))
    print("\n=== by sparsity")
    chosen = {name: predictions[name] for name in ("Eq. 2", "waterfilling", "auto")}
    show(agreement_table(summary.floor, chosen, strata=summary.alpha, relative_above=NOTHING))
    configurations = summary.groupby(["n_features", "alpha", "teacher_width"]).filter(lambda g: len(g) > 2)
    each = configurations.groupby(["n_features", "alpha", "teacher_width"])[["floor", "auto"]].apply(
        lambda g: 1 - ((g.floor - g.auto) ** 2).sum() / ((g.floor - g.floor.mean()) ** 2).sum()
    )
    print(f"R2 of auto within a configuration: mean {each.mean():.4f}, lowest {each.min():.4f}, of {len(each)}")
    print("\n=== the best of 20 seeds")
    best = predict_sweep(
        summary[["n_features", "alpha", "teacher_width", "width", "floor_best"]],
        {"waterfilling, best": shared("waterfilling"), "auto, best": shared("auto", starts="best")},
    )
    show(
        agreement_table(
            best.floor_best,
            {name: best[name] for name in best.columns if "best" in name and name != "floor_best"},
            relative_above=NOTHING,
        )
    )
    inside(summary, "the paper's sweep")


def other_sweeps() -> None:
    other = pd.read_csv(RESULTS / "toy_other_sweeps.csv", comment="#")
    rows = []
    for label, group in other.groupby("importance", sort=False):
        makers = {name: shared(name, LAWS[label]) for name in ("cutoff", "waterfilling", "auto")}
        rows.append(predict_sweep(group, makers | {"auto, best": shared("auto", LAWS[label], starts="best")}))
    found = pd.concat(rows, ignore_index=True)
    measured = found.floor / found.total
    print(
        f"\n=== other importances, feature counts and sparsities, {len(found)} points, mean of 5 seeds, by importance"
    )
    predictions = {name: found[name] / found.total for name in ("cutoff", "waterfilling", "auto")}
    show(agreement_table(measured, predictions, strata=found.importance, relative_above=1e-3))
    print("\n=== the same by number of features, and the best of 5 seeds")
    show(agreement_table(measured, {"auto": predictions["auto"]}, strata=found.n_features, relative_above=1e-3))
    best = {"auto, best": found["auto, best"] / found.total}
    show(agreement_table(found.floor_best / found.total, best, strata=found.n_features, relative_above=1e-3))
    for label, group in found.groupby("importance", sort=False):
        inside(group, label, LAWS[label])
    trained = found[(measured > 1e-3) & (found.importance != "Zipf 1")]
    effective = [
        np.sum(LAWS[law](n)) ** 2 / np.sum(LAWS[law](n) ** 2)
        for law, n in zip(trained.importance, trained.n_features, strict=True)
    ]
    excess = (trained.floor / trained["auto, best"] - 1) * np.sqrt(effective)
    print(f"excess of an average training times the root of the effective features: median {excess.median():.3f}")


def deep_students() -> None:
    floors = pd.read_csv(RESULTS / "toy_deep_floors.csv", comment="#")
    columns = {
        name: np.zeros(len(floors))
        for name in ("cutoff", "waterfilling, relu", "blocks, relu", "waterfilling, deep", "blocks, deep")
    }
    for (law, n, alpha), group in floors.groupby(["law", "n_features", "alpha"]):
        importances = LAWS[law](n) / LAWS[law](n).sum()
        for name, values in columns.items():
            allocation, _, curve = name.partition(", ")
            starts = "best" if allocation == "blocks" else None
            predictor = FloorPredictor(alpha, allocation=allocation, curve=curve or None, starts=starts)
            values[group.index] = predictor.fit(importances).predict(group.width)
    print(f"\n=== students with a deep decoder, {len(floors)} points, best of 2 seeds, by importance")
    show(agreement_table(floors.best, columns, strata=floors.law, relative_above=3e-3))
    worse = np.median(2 * floors["mean"] / floors.best - 2)
    print(f"the worse of the two seeds is {worse:.1%} above the better (median)")


def other_features(n_jobs: int) -> None:
    print("\n=== other amplitude laws: predicted from the curves of U[0, 1], 4 seeds")
    rows = []
    for amplitude in ("exponential", "half-normal", "constant"):
        sweep = toy_sweep(
            (20, 40), (2, 5, 10), (0.9, 0.97), teacher_widths=None, amplitude=amplitude, n_seeds=4, n_jobs=n_jobs
        )
        makers = {"auto": shared("auto", amplitude=amplitude)}
        rows.append(predict_sweep(summarize_sweep(sweep), makers).assign(amplitude=amplitude))
    found = pd.concat(rows, ignore_index=True)
    show(agreement_table(found.floor / found.total, {"auto": found.auto / found.total}, strata=found.amplitude))
    n = 40
    importances = LAWS["Zipf 1"](n)
    mixed = SparseFeatures(n, np.tile([0.8, 0.9, 0.95, 0.99], n // 4))
    groups = SparseFeatures(n, 0.9, groups=np.arange(n) // 4)
    print(
        "\n=== mixed sparsities, and groups of four mutually exclusive features: predicted / measured, best of 4 seeds"
    )
    for label, features in (("mixed", mixed), ("exclusive", groups)):
        table = pd.DataFrame(
            {
                "importance": importances * features.second_moments,
                "firing_rate": features.firing_rates,
                "mean": np.sqrt(importances) * features.means,
            }
        )
        for width in (2, 5, 10):
            measured = ToyModel(width, n_init=4, random_state=0).fit(features).floor_
            predicted = {
                name: FloorPredictor(allocation=name, starts=starts).fit(table).predict([width])[0]
                for name, starts in (("cutoff", None), ("waterfilling", None), ("blocks", "best"))
            }
            ratios = ", ".join(f"{name} {value / measured:.2f}" for name, value in predicted.items())
            print(f"{label}, width {width}: floor {measured:.5f}; {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-jobs", type=int, default=2)
    options = parser.parse_args()
    papers_sweep()
    other_sweeps()
    deep_students()
    other_features(options.n_jobs)


if __name__ == "__main__":
    main()
