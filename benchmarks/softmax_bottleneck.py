"""Compare the softmax bottleneck with observed floors, and test the law above it with one run or two.

    python benchmarks/softmax_bottleneck.py --work distilled-work --floors distilled_floors_principal.json

`--work` is the folder with the token blocks of distilled_floors.py. The curve of the bound is saved there. The floors
are those of distilled_floors.py, in results/ or elsewhere.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from forecasts import RESULTS
from sklearn.base import BaseEstimator
from transformers import AutoConfig

from geofloor import BottleneckPredictor, LossForecaster
from geofloor.datasets import load_teacher
from geofloor.forecasting import AboveBottleneck, Anchored, AnchoredBothEnds, forecast_errors

LEVEL = 0.9
SLOPE = 0.5  # assumed without a run


class Curve(BaseEstimator):
    """A measured bound, read from its numbers."""

    def __init__(self, curve: pd.DataFrame, rank: int) -> None:
        self._curve, self.curve_, self.critical_width_ = curve.set_index("width"), curve, float(rank)

    def fit(self, tokens=None, y=None):
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, widths: np.ndarray, *, return_bounds: bool = False):
        ends = self._curve.loc[np.ravel(widths).astype(int), ["low", "high"]].to_numpy()
        losses = np.sqrt(ends.prod(axis=1))
        return (losses, ends) if return_bounds else losses

    def min_width(self, loss: float) -> int:
        return int(self._curve.index[self._curve["low"] <= loss][0])


def measured(teacher: Path, work: Path, widths: list[int]) -> Curve:
    path = work / "bottleneck.json"
    if not path.exists():
        tokens = np.load(work / "tokens-test.npy", mmap_mode="r")[:512].astype(np.int64)
        bound = BottleneckPredictor(teacher, widths=widths, batch_size=16, random_state=0).fit(tokens)
        path.write_text(json.dumps({"rank": bound.rank_, "curve": bound.curve_.to_dict("list")}), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    return Curve(pd.DataFrame(found["curve"]), found["rank"])


def fitted_exponent(bound: Curve, widths: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Fit k and m by a line through log log (L0 / L) over log log (L0 / R)."""
    anchor = bound.predict([0])
    m, log_k = np.polyfit(np.log(np.log(anchor / bound.predict(widths))), np.log(np.log(anchor / losses)), 1)
    return np.exp(log_k), m


def held(forecaster: LossForecaster, widths: np.ndarray, losses: np.ndarray) -> float:
    """Share of losses inside the interval, forecast from two runs: the widest and one more."""
    inside = []
    for k in range(len(widths) - 1):
        seen = np.isin(np.arange(len(widths)), [k, len(widths) - 1])
        _, ends = forecaster.fit(widths[seen], losses[seen]).predict(widths[~seen], return_interval=True, level=LEVEL)
        inside.append((ends[:, 0] <= losses[~seen]) & (losses[~seen] <= ends[:, 1]))
    return float(np.mean(inside))


def one_run(bound: Curve, widths: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Median error at the other widths, by the width of the run."""
    found = {}
    for k, width in enumerate(widths):
        forecast = LossForecaster(AboveBottleneck(bound)).fit([width], [losses[k]]).predict(widths)
        found[str(width)] = np.median(np.abs(np.delete(forecast / losses - 1.0, k)))
    return found


def show(name: str, bound: Curve, own_width: int, runs: pd.DataFrame, *, principal: bool) -> None:
    widths, losses = runs["width"].to_numpy(), runs["floor"].to_numpy()
    anchor = float(bound.predict([0])[0])
    _, ends = bound.predict(widths, return_bounds=True)
    least = pd.DataFrame({"floor": losses, "low": ends[:, 0], "high": ends[:, 1]}, index=widths)
    least["R / floor"] = bound.predict(widths) / losses
    slope, exponent = fitted_exponent(bound, widths, losses)
    laws = {
        "law above the bottleneck": LossForecaster(AboveBottleneck(bound)),
        "the same, as it is": LossForecaster(AboveBottleneck(bound), form_error=1e-6),
        "anchored law": LossForecaster(Anchored(anchor)),
    }
    if principal:
        laws["law with both ends"] = LossForecaster(AnchoredBothEnds(anchor, own_width))
    alone = one_run(bound, widths, losses)
    none = anchor * np.exp(-SLOPE * np.log(anchor / bound.predict(widths)) ** AboveBottleneck.exponent)
    print(f"=== {name}\n{least.T.to_string(float_format='{:.4f}'.format)}")
    print(f"floors below the bottleneck: {(losses < ends[:, 0]).sum()}; fitted to all: k {slope:.3f}, m {exponent:.3f}")
    shown = {}
    for title, law in laws.items():
        errors = np.nanmedian(np.abs(forecast_errors(law, widths, losses).two_runs), axis=1)
        shown[title] = {"two runs": np.median(errors), "best": errors.min(), "worst": errors.max()}
        shown[title]["held"] = held(law, widths, losses)
    print(pd.DataFrame(shown).T.to_string(float_format="{:.1%}".format))
    by_width = ", ".join(f"{width}: {error:.1%}" for width, error in alone.items())
    print(f"one run, median {np.median([*alone.values()]):.1%}; by its width: {by_width}")
    print(f"no run, k = {SLOPE}: {np.median(np.abs(none / losses - 1)):.1%}\n")


def forecast_others(bound: Curve, sets: dict[str, pd.DataFrame], from_widths: list[int]) -> None:
    """Print the errors for all other sets, forecast from two runs of the first set."""
    first, *others = sets
    for n_steps, runs in sets[first].groupby("n_steps"):
        seen = runs[runs["width"].isin(from_widths)]
        law = LossForecaster(AboveBottleneck(bound)).fit(seen["width"], seen["floor"])
        for name in others:
            new = sets[name].query("n_steps == @n_steps and width < @bound.critical_width_")
            if not len(new):
                continue
            errors = law.predict(new["width"]) / new["floor"] - 1.0
            by_width = ", ".join(f"{width}: {error:+.1%}" for width, error in zip(new["width"], errors, strict=True))
            print(f"{name}, {n_steps} steps, from widths {from_widths} of {first}: {by_width}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with the token blocks of distilled_floors.py")
    parser.add_argument("--teacher", type=Path, default=load_teacher().path, help="folder, such as train_teacher makes")
    parser.add_argument("--floors", type=Path, nargs="+", default=[RESULTS / "distilled_floors_principal.json"])
    parser.add_argument(
        "--from-widths", type=int, nargs=2, help="two widths of the first set, to forecast the other sets from"
    )
    options = parser.parse_args()
    sets = {}
    for path in options.floors:
        found = json.loads((path if path.exists() else RESULTS / path).read_text(encoding="utf-8"))
        principal = found["settings"].get("init") == "principal"
        sets[path.name] = pd.DataFrame(found["runs"]).query("seed == 0"), principal
    every = sorted({int(width) for runs, _ in sets.values() for width in runs["width"]})
    bound = measured(options.teacher, options.work, every)
    own_width = AutoConfig.from_pretrained(options.teacher).hidden_size
    for name, (runs, principal) in sets.items():
        for n_steps, of_budget in runs.query("width < @bound.critical_width_").groupby("n_steps"):
            if len(of_budget) < 4:
                continue
            for chosen in (of_budget, of_budget[:-1]):
                title = f"{name}, {n_steps} steps, widths {chosen['width'].min()} to {chosen['width'].max()}"
                show(title, bound, own_width, chosen, principal=principal)
    if options.from_widths:
        principal_sets = {name: runs for name, (runs, principal) in sets.items() if principal}
        forecast_others(bound, principal_sets, options.from_widths)


if __name__ == "__main__":
    main()
