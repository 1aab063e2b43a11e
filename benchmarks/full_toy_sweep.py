"""Run the paper's toy sweep at full size, in both readings of its set-up, and compare predictors with it.

    python benchmarks/full_toy_sweep.py --work toy-sweep-work

It takes about twenty minutes on two cores, most of them for the students distilled from teachers. After an interruption
it resumes. The summaries of the sweeps and the training curves go to benchmarks/results.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning

from geofloor import FloorPredictor, ToyModel
from geofloor.forecasting import agreement_table
from geofloor.theory import critical_width, kept_features
from geofloor.toy import SparseFeatures, predict_sweep, summarize_sweep, toy_sweep

RESULTS = Path(__file__).parent / "results"
COMMAND = "python benchmarks/full_toy_sweep.py"
# Means of five seeds from independent trainings: importance 1/i, 1,024 samples per step, 10,000 steps.
INDEPENDENT = {(40, 0.9, 3): 0.06045, (40, 0.9, 6): 0.04118, (40, 0.9, 9): 0.02930, (20, 0.8, 5): 0.05683}
NOTHING = 1e-9  # smaller floors count as zero
CURVES = tuple(itertools.product((20, 40), (0.8, 0.95, 0.99)))
CURVE_WIDTHS, CURVE_SEEDS = (1, 2, 3, 5, 8, 10), 2


def one_feature_per_dimension(alpha: np.ndarray) -> np.ndarray:
    """Return the naive capacity, g = 1."""
    return np.ones_like(alpha)


def predictor(capacity, *, bias: bool = False):
    """Return a factory of Eq. 2 with a capacity; with `bias` a dropped feature costs its variance."""

    def make(n_features: int, alpha: float) -> FloorPredictor:
        features = SparseFeatures(n_features, alpha)
        charge = features.variances if bias else features.second_moments
        return FloorPredictor(alpha, capacity=capacity).fit(1 / np.arange(1, n_features + 1), second_moments=charge)

    return make


PREDICTORS = {
    "Eq. 2": predictor("asymptotic"),
    "exact, either sign": predictor("minimax"),
    "exact, non-negative": predictor("minimax_nonnegative"),
    "naive": predictor(one_feature_per_dimension),
    "naive, variance": predictor(one_feature_per_dimension, bias=True),
}


def show(table: pd.DataFrame, formats: dict[str, str] | None = None) -> None:
    print(table.to_string(index=False, float_format="{:.3f}".format, formatters=formats), flush=True)


def write(table: pd.DataFrame, name: str) -> None:
    """Write a table with six digits, below the command."""
    with open(RESULTS / name, "w", encoding="utf-8") as file:
        file.write(f"# {COMMAND}\n")
        table.to_csv(file, index=False, float_format="%.6g")


def compare(summary: pd.DataFrame, measured: str) -> None:
    ratio = summary.width / [critical_width(n, a) for n, a in zip(summary.n_features, summary.alpha, strict=True)]
    strata = pd.cut(ratio, [0.0, 0.8, 1.2, np.inf], labels=["d/d* < 0.8", "0.8 to 1.2", "> 1.2"]).astype(object)
    exact = summary[measured] <= NOTHING  # with as many dimensions as features, or as the teacher
    if exact.any():
        print(f"{exact.sum()} points with a measured floor of zero have no relative error")
    some = summary["Eq. 2"] > 0
    print(f"\npoints where Eq. 2 is not zero ({some.sum()}):")
    show(
        agreement_table(
            summary[measured][some], {name: summary[name][some] for name in PREDICTORS}, relative_above=NOTHING
        )
    )
    print(f"\nall points ({len(summary)}):")
    columns = {name: summary[name] for name in PREDICTORS}
    show(agreement_table(summary[measured], columns, strata=strata, relative_above=NOTHING))


def curve(n_features: int, alpha: float, width: int, seed: int, learning_rate: float) -> pd.DataFrame:
    """Train with this library's settings, or with 1,024 samples per step as in the original notebook."""
    features = SparseFeatures(n_features, alpha)
    notebook = learning_rate < 1e-2
    settings = {"n_steps": 5000, "max_rounds": 1} if notebook else {}
    if notebook:
        settings["batch_size"] = max(1, round(1024 * (1 - features.empty_probability)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one round cannot show that a loss has stopped falling
        model = ToyModel(width, learning_rate=learning_rate, random_state=seed, **settings).fit(features)
    history = pd.DataFrame(model.history_)
    return history.assign(
        n_features=n_features, alpha=alpha, width=width, seed=seed, learning_rate=learning_rate, floor=model.floor_
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=None, help="folder for finished parts")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--n-seeds", type=int, default=20)
    parser.add_argument("--target", choices=["data", "teacher"], nargs="+", default=["data", "teacher"])
    options = parser.parse_args()

    for target in options.target:
        sweep = toy_sweep(
            target=target, n_seeds=options.n_seeds, n_jobs=options.n_jobs, checkpoint_dir=options.work, verbose=1
        )
        summary = predict_sweep(summarize_sweep(sweep), PREDICTORS)
        write(summary, f"toy_sweep_{target}.csv")
        print(f"=== students trained on the {'data' if target == 'data' else 'output of a trained teacher'}")
        print(
            f"{len(sweep)} students at {len(summary)} points; {sweep.n_steps.mean():.0f} steps on average; "
            f"{sweep.converged.mean():.1%} converged"
        )
        relative = (sweep.standard_error / sweep.floor)[sweep.floor > NOTHING]
        print(f"standard error of a floor: {relative.median():.2%} of it (median), {relative.max():.2%} at most")
        spread = (summary.floor_std / summary.floor)[summary.floor > NOTHING]
        print(f"spread over seeds: {spread.median():.2%} (median), {spread.max():.2%} at most")
        print(f"best seed below the mean: {(1 - summary.floor_best / summary.floor).median():.2%} (median)")
        if target == "data":
            for (n, alpha, width), value in INDEPENDENT.items():
                here = summary[(summary.n_features == n) & (summary.alpha == alpha) & (summary.width == width)].iloc[0]
                print(
                    f"n = {n}, alpha = {alpha}, d = {width}: {here.floor:.5f} +- {here.standard_error:.5f}, "
                    f"independently {value:.5f}, {here.floor / value - 1:+.1%}"
                )
            print("--- mean of the seeds")
            compare(summary, "floor")
            print("\n--- best of the seeds")
            compare(summary, "floor_best")
            by_sparsity(summary)
            beyond(summary)
        else:
            print("--- measured against the teacher")
            compare(summary, "floor")
            print("\n--- measured against the data")
            compare(summary, "data_floor")
        print()

    cases = itertools.product(CURVES, CURVE_WIDTHS, range(CURVE_SEEDS), (1e-3, 1e-2))
    curves = pd.concat(
        Parallel(n_jobs=options.n_jobs)(delayed(curve)(n, alpha, d, seed, rate) for (n, alpha), d, seed, rate in cases)
    )
    arrival(curves)
    keys = ["learning_rate", "n_features", "alpha", "width", "step"]
    complete = curves.groupby(keys).loss.agg(["mean", "size"]).reset_index()
    complete = complete[complete["size"] == CURVE_SEEDS].drop(columns="size").rename(columns={"mean": "loss"})
    write(predict_sweep(complete, {"Eq. 2": PREDICTORS["Eq. 2"]}), "toy_training_curves.csv")


def by_sparsity(summary: pd.DataFrame) -> None:
    """Print, by sparsity, the errors of Eq. 2, the features kept against its count, and the parts of the loss."""
    nonzero = summary[summary["Eq. 2"] > 0]
    print("\nEq. 2 by sparsity, points where it is not zero:")
    show(agreement_table(nonzero.floor, {"Eq. 2": nonzero["Eq. 2"]}, strata=nonzero.alpha))
    counted = [kept_features(d, a) for n, a, d in nonzero[["n_features", "alpha", "width"]].itertuples(index=False)]
    ratio = (nonzero.kept / counted).groupby(nonzero.alpha).describe()[["min", "50%", "max"]]
    print("\nfeatures kept, by norm, over the count of Eq. 2, same points:")
    show(ratio.reset_index().rename(columns={"50%": "median"}))
    shares = summary[summary.floor > NOTHING].groupby("alpha").dropped_share.describe()[["min", "50%", "max"]]
    print("\nshare of the loss that is due to dropped features, the rest being interference:")
    show(shares.reset_index().rename(columns={"50%": "median"}))
    print("\n40 features, width 5: the effect of sparsity")
    chosen = summary.query("n_features == 40 and width == 5 and teacher_width == 5")
    table = chosen[["alpha", "floor", "total", "kept"]].assign(relative=chosen.floor / chosen.total)
    show(table, dict.fromkeys(("floor", "total"), "{:.5f}".format))


def beyond(summary: pd.DataFrame) -> None:
    """Compare the floors at the widths just before and just after d*, to see if the floor vanishes there."""
    print(
        "\nfloor at the first width from d* on, over that at the last width before, and over the loss of answering 0:"
    )
    rows = []
    for (n, alpha), group in summary.drop_duplicates(["n_features", "alpha", "width"]).groupby(["n_features", "alpha"]):
        critical = critical_width(n, alpha)
        before, after = group[group.width < critical], group[group.width >= critical]
        if len(before) and len(after):
            floor = after.floor.iloc[0]
            rows.append(
                {
                    "n_features": n, "alpha": alpha, "d*": critical, "width": after.width.iloc[0], "floor": floor,
                    "of last before": floor / before.floor.iloc[-1], "of total": floor / group.total.iloc[0],
                }
            )  # fmt: skip
    show(pd.DataFrame(rows), {"floor": "{:.5f}".format})


def arrival(curves: pd.DataFrame) -> None:
    """Print the number of steps until a training curve stays within 10% of its end."""
    print("steps until the loss stays within 10% of where it ends:")
    rows = []
    for (rate, *_), group in curves.groupby(["learning_rate", "n_features", "alpha", "width", "seed"]):
        steps, loss = group.sort_values("step")[["step", "loss"]].to_numpy().T
        late = loss > 1.1 * loss[-1]
        rows.append({"learning_rate": rate, "steps": steps[np.flatnonzero(late)[-1] + 1] if late.any() else steps[0]})
    table = pd.DataFrame(rows).groupby("learning_rate").steps.describe(percentiles=[0.1, 0.5, 0.9]).reset_index()
    table = table[["learning_rate", "10%", "50%", "90%"]].rename(columns={"50%": "median"})
    show(table, {"learning_rate": "{:g}".format})


if __name__ == "__main__":
    main()
