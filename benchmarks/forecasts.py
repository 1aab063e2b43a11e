"""Predicted floors against observed ones: students of the embedded teacher, at each of its layers.

    python benchmarks/distilled_floors.py --work distilled-work --device cuda
    python benchmarks/forecasts.py --work distilled-work

For each layer a sparse autoencoder is trained on the teacher's activations, its features are measured, and every
predictor is put through the same test as rivals that need no features: an affine calibration to the observed losses,
the error at a width that was left out, and the forecast of all others from two runs, the widest and one more. It takes
ten minutes on two cores; what is finished is kept in `--work`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar, nnls

from geofloor import (
    ActivationExtractor,
    AffineCalibrator,
    FeatureStatistics,
    FloorPredictor,
    PowerLawCalibrator,
    SparseAutoencoder,
)
from geofloor.capacity import capacity
from geofloor.datasets import load_teacher

RESULTS = Path(__file__).parent / "results"
N_SEQUENCES = 800
PREDICTORS = {
    "Eq. 2": {},
    "Eq. 2, exact g": {"capacity": "minimax_nonnegative"},
    "auto, relu": {"allocation": "auto", "curve": "relu"},
    "auto, deep": {"allocation": "auto", "curve": "deep"},
}


def measured(work: Path, layer: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Feature table of a layer, the variance of its activations along each principal direction, and a description."""
    path = work / f"layer-{layer}.npz"
    if not path.exists():
        tokens = np.load(work / "tokens-train.npy", mmap_mode="r")[:N_SEQUENCES].astype(np.int64)
        held_out = np.load(work / "tokens-test.npy", mmap_mode="r")[:80].astype(np.int64)
        extractor = ActivationExtractor(load_teacher().path, layer, max_length=256, batch_size=32).fit()
        activations, test = extractor.transform(tokens), extractor.transform(held_out)
        sae = SparseAutoencoder(
            expansion=32,
            l1_coefficient=0.8,
            normalization="mean_norm",
            learning_rate=3e-3,
            warmup_steps=50,
            decay_fraction=0.3,
            batch_size=1024,
            n_epochs=5,
            random_state=0,
        ).fit(activations)
        batches = np.array_split(activations, 25)
        statistics = FeatureStatistics().fit(sae.transform(batch) for batch in batches)
        variances = np.linalg.eigvalsh(np.cov(activations.T, dtype=np.float64))[::-1]
        description = (
            f"{len(activations):,} tokens; explained variance {sae.score(test):.3f}, L0 {statistics.mean_l0_:.1f}, "
            f"F {statistics.n_alive_:,}, alpha {statistics.alpha_:.4f}, d* {statistics.critical_width_:.0f}"
        )
        np.savez(path, table=statistics.table_, variances=variances, description=description)
    with np.load(path) as stored:
        return stored["table"], stored["variances"], str(stored["description"])


class Affine:
    """losses = C · floor + B, both at least 0 free, on a predictor's floors."""

    n_parameters = 2

    def __init__(self, floors_at) -> None:
        self.floors_at = floors_at

    def fit(self, widths, losses):
        self.calibrator = AffineCalibrator().fit(self.floors_at(widths), losses)
        return self

    def predict(self, widths):
        return self.calibrator.predict(self.floors_at(widths))


class Multiplied:
    """Eq. 2 with a capacity κ·g, where κ is fitted with C and B."""

    n_parameters = 3

    def __init__(self, table) -> None:
        self.table, self.g = table, capacity(1.0 - table[:, 1].mean())

    def floors_at(self, widths, kappa):
        return FloorPredictor(capacity=lambda _: kappa * self.g).fit(self.table).predict(widths)

    def fit(self, widths, losses):
        def residual(log_kappa):
            floors = self.floors_at(widths, np.exp(log_kappa))
            return nnls(np.column_stack([floors, np.ones(len(widths))]), losses)[1]

        # The residual is piecewise smooth: a grid finds the basin, Brent's method its bottom.
        grid = np.linspace(np.log(0.25), np.log(8.0), 41)
        best = grid[np.argmin([residual(x) for x in grid])]
        step = grid[1] - grid[0]
        self.kappa = float(np.exp(minimize_scalar(residual, bounds=(best - step, best + step), method="bounded").x))
        self.coefficients = nnls(np.column_stack([self.floors_at(widths, self.kappa), np.ones(len(widths))]), losses)[0]
        return self

    def predict(self, widths):
        return self.coefficients[0] * self.floors_at(widths, self.kappa) + self.coefficients[1]


class PowerLaw:
    n_parameters = 3

    def fit(self, widths, losses):
        self.calibrator = PowerLawCalibrator().fit(widths, losses)
        return self

    def predict(self, widths):
        return self.calibrator.predict(widths)


def r_squared(losses, predicted):
    return 1.0 - np.sum((losses - predicted) ** 2) / np.sum((losses - losses.mean()) ** 2)


def judge(make, widths, losses) -> dict[str, float]:
    """What a rival reaches: R² with all runs, errors at widths left out, and forecasts from two runs."""
    row = {"R2": r_squared(losses, make().fit(widths, losses).predict(widths))}
    left_out = []
    for i in range(len(widths)):
        rest = np.arange(len(widths)) != i
        left_out.append(make().fit(widths[rest], losses[rest]).predict(widths[[i]])[0] / losses[i] - 1.0)
    row["leave-one-out"], row["inside"] = np.median(np.abs(left_out)), np.median(np.abs(left_out[1:-1]))
    if make().n_parameters == 2:
        medians = []
        for i in range(len(widths) - 1):
            runs = np.array([i, len(widths) - 1])
            others = np.setdiff1d(np.arange(len(widths)), runs)
            forecast = make().fit(widths[runs], losses[runs]).predict(widths[others])
            medians.append(np.median(np.abs(forecast / losses[others] - 1.0)))
        row |= {"two runs": np.median(medians), "best": np.min(medians), "worst": np.max(medians)}
    return row


def compare(table, variances, widths, losses) -> pd.DataFrame:
    predictors = {name: FloorPredictor(**settings).fit(table).predict for name, settings in PREDICTORS.items()}
    tails = np.append(np.cumsum(variances[::-1])[::-1], 0.0)
    predictors["outside d components"] = lambda at: tails[np.asarray(at)]
    predictors["a + b/d"] = lambda at: 1.0 / np.asarray(at)
    predictors["a + b log d"] = lambda at: np.log(256.0 / np.asarray(at))
    makers = {name: (lambda floors=floors: Affine(floors)) for name, floors in predictors.items()}
    rows = {}
    for name, floors in predictors.items():
        fitted = AffineCalibrator().fit(floors(widths), losses)
        through = AffineCalibrator(baseline=0.0).fit(floors(widths), losses)
        rows[name] = judge(makers[name], widths, losses) | {
            "R2, B = 0": through.r2_, "C": fitted.slope_, "B": fitted.baseline_
        }  # fmt: skip
    multiplied = Multiplied(table).fit(widths, losses)
    rows["Eq. 2, kappa g"] = judge(lambda: Multiplied(table), widths, losses) | {
        "C": multiplied.coefficients[0], "B": multiplied.coefficients[1], "kappa": multiplied.kappa
    }  # fmt: skip
    rows["power law (Eq. 4)"] = judge(PowerLaw, widths, losses)
    return pd.DataFrame(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with the token blocks of distilled_floors.py")
    parser.add_argument("--floors", type=Path, default=RESULTS / "distilled_floors.json")
    parser.add_argument("--only-measure", action="store_true", help="train the autoencoders and stop")
    options = parser.parse_args()
    layers = {layer: measured(options.work, layer) for layer in range(4)}
    if options.only_measure:
        return
    runs = pd.DataFrame(json.loads(options.floors.read_text(encoding="utf-8"))["runs"])
    floors = runs.pivot_table(index=["width", "seed"], columns="n_steps", values="floor")
    few, many = sorted(floors.columns)
    floors["change"] = floors[many] / floors[few] - 1.0
    print("observed floors, nats a token at T = 2, after so many steps of 16,384 tokens:")
    print(floors.round(4).to_string())
    for width, seed in floors.index:
        if seed:
            change = floors[many][width, seed] / floors[many][width, 0] - 1.0
            print(f"width {width}: seed {seed} ends {change:+.1%} off seed 0")
    for n_steps in (many, few):
        observed = floors.xs(0, level="seed")[n_steps]
        widths, losses = observed.index.to_numpy(), observed.to_numpy()
        for layer, (table, variances, description) in layers.items():
            print(f"\n=== {n_steps} steps, after block {layer}: {description}")
            print(compare(table, variances, widths, losses).to_string(float_format="{:.3g}".format, na_rep=""))


if __name__ == "__main__":
    main()
