"""Show how observed floors fall with more steps, and how well shorter runs forecast this.

    python benchmarks/training_budgets.py --floors distilled_floors_principal.json distilled_floors_principal_4000.json

The files are those of distilled_floors.py, in results/ or elsewhere. They must be of one teacher with equal settings,
except for the steps: each number of steps must be twice the previous one. Each budget with two shorter ones is forecast
from the last two or three of these. There are three laws of the number of steps N: a power, L = M + A / N^p, from three
budgets; the same fall with each doubling, L = a - b log N; and the same ratio.

    python benchmarks/training_budgets.py --held-out

prints the errors of `BudgetForecaster` and `LossForecaster` on all sets of results/ with runs of several budgets: three
teachers with principal starts, two of these with random starts. Each forecast is of runs that were not fitted. The
standard deviation of the falls between widths, `fall_error`, is also chosen on the sets of the other teachers.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
from distilled_floors import RESULTS
from scipy.stats import norm

from geofloor import LossForecaster
from geofloor.forecasting import Anchored, AnchoredBothEnds, BudgetForecaster

EMBEDDED = "distilled_floors_principal"
# Teacher, its width, the loss at width 0 (printed by forecasts.py), files, and whether the starts are random.
SETS = {
    "embedded": (
        "embedded",
        128,
        1.3803,
        [f"{EMBEDDED}{end}" for end in ("", "_4000", "_8000", "_16000", "_16000_48_96")],
    ),
    "embedded, other widths": ("embedded", 128, 1.3803, [f"{EMBEDDED}_other_widths", f"{EMBEDDED}_added_widths"]),
    "second": ("second", 64, 1.0797, ["second_teacher_floors_principal"]),
    "third": ("third", 96, 1.0931, ["third_teacher_floors_principal"]),
    "embedded, random, AdamW": ("embedded", 128, 1.3803, ["distilled_floors"]),
    "embedded, random, Muon": ("embedded", 128, 1.3803, ["distilled_floors_muon"]),
    "second, random, AdamW": ("second", 64, 1.0797, ["second_teacher_floors"]),
}
RANDOM = {"fall_error": 1.0, "run_error": 0.03}  # as the docstring of BudgetForecaster advises
FALL_ERRORS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)


def read(paths: list[Path]) -> pd.DataFrame:
    """Read the floors of seed 0, one row per width and one column per number of steps."""
    found = [json.loads((path if path.exists() else RESULTS / path).read_text(encoding="utf-8")) for path in paths]
    kinds = {json.dumps(each["settings"], sort_keys=True) for each in found}
    if len(kinds) > 1:
        raise SystemExit("The files were made with different settings; their steps can't be compared.")
    runs = pd.concat([pd.DataFrame(each["runs"]) for each in found]).query("seed == 0")
    return runs.pivot_table(index="width", columns="n_steps", values="floor")


def power_of_steps(a: float, b: float, c: float) -> tuple[float, float]:
    """Extrapolate three losses at doubling steps to the next loss and the limit, by a constant ratio of falls, 2^-p."""
    ratio = (b - c) / (a - b)
    return c - (b - c) * ratio, c - (b - c) * ratio / (1.0 - ratio) if 0.0 < ratio < 1.0 else np.nan


def steps_until_settled(losses: np.ndarray, n_steps: int, share: float = 0.03) -> float:
    """Return the steps at which the last doubling lowers the loss by at most a share, measured or extrapolated."""
    for place in range(1, len(losses)):
        if losses[place] >= (1.0 - share) * losses[place - 1]:
            return n_steps / 2 ** (len(losses) - 1 - place)
    before, last = losses[-2:]
    ratio = (before - last) / (losses[-3] - before)
    while 0.0 < ratio < 1.0 and last < (1.0 - share) * before:
        before, last, n_steps = last, last - (before - last) * ratio, 2 * n_steps
    return n_steps if ratio < 1.0 else np.nan


class Score:
    """Errors of forecasts and of their 90% intervals."""

    def __init__(self) -> None:
        self.medians, self.errors, self.held, self.z = [], [], [], []

    def add(self, found: tuple[np.ndarray, np.ndarray], truth: np.ndarray) -> None:
        losses, ends = found
        errors = np.abs(losses / truth - 1.0)
        self.medians.append(np.median(errors))
        self.errors.extend(errors)
        self.held.extend((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
        self.z.extend(np.log(truth / losses) / (np.log(ends[:, 1] / losses) / norm.ppf(0.95)))

    def row(self) -> dict[str, str]:
        return {
            "median": f"{np.median(self.medians):.1%}",
            "worst choice": f"{max(self.medians):.1%}",
            "largest": f"{max(self.errors):.1%}",
            "held": f"{np.mean(self.held):.0%}",
            "rms z": f"{np.sqrt(np.mean(np.square(self.z))):.2f}",
        }


def held_out_pairs(floors: pd.DataFrame, n_long: int) -> list[tuple[int, int, pd.DataFrame]]:
    """List pairs of budgets with at least one width beyond `n_long`, and the floors of both."""
    pairs = [(*pair, floors[list(pair)].dropna()) for pair in itertools.combinations(floors.columns, 2)]
    return [pair for pair in pairs if len(pair[2]) > n_long + 1]


def score_long_runs(pairs: list, zero: float, n_long: int, **settings: float) -> Score:
    """Forecast long runs from short runs of all widths and long ones of `n_long` widths, over all choices of these."""
    score = Score()
    for short, long, known in pairs:
        for chosen in itertools.combinations(known.index, n_long):
            fitted = BudgetForecaster(zero, **settings).fit(
                [*known.index, *chosen],
                [*known[short], *known[long][list(chosen)]],
                [short] * len(known) + [long] * n_long,
            )
            others = known.index.difference(chosen)
            score.add(fitted.predict(others, long, return_interval=True), known[long][others].to_numpy())
    return score


def as_runs(floors: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return widths, losses and steps of all floors."""
    return tuple(
        floors.reset_index().melt("width", var_name="n_steps").dropna()[["width", "value", "n_steps"]].to_numpy(float).T
    )


def score_short_as_they_are(pairs: list) -> dict[str, str]:
    """Take the short runs for the long ones."""
    errors = [np.abs(known[short] / known[long] - 1.0) for short, long, known in pairs]
    return {"short as they are": f"{np.median(np.concatenate(errors)):.1%}"}


def print_held_out() -> None:
    sets = {name: (*known, read([Path(f"{file}.json") for file in files])) for name, (*known, files) in SETS.items()}
    for n_long in (1, 2):
        rows = {}
        for name, (_, _, zero, floors) in sets.items():
            settings = RANDOM if "random" in name else {}
            for short, long, known in held_out_pairs(floors, n_long):
                pair = [(short, long, known)]
                score = score_long_runs(pair, zero, n_long, **settings)
                rows[f"{name}: {short} -> {long}"] = score.row() | score_short_as_they_are(pair)
        print(f"=== short runs of all widths and {n_long} long: the other long runs, over all choices of the long")
        print(pd.DataFrame.from_dict(rows, orient="index").to_string(), end="\n\n")

    principal = {name: each for name, each in sets.items() if "random" not in name}
    rows = {}
    for name, (teacher, _, zero, floors) in principal.items():
        away = {}
        for error in FALL_ERRORS:
            others = [each for each in principal.values() if each[0] != teacher]
            z = [score_long_runs(held_out_pairs(each[3], 1), each[2], 1, fall_error=error).z for each in others]
            away[error] = abs(np.log(np.sqrt(np.mean(np.square(np.concatenate(z))))))
        chosen = min(away, key=away.get)
        score = score_long_runs(held_out_pairs(floors, 1), zero, 1, fall_error=chosen)
        rows[name] = {"fall_error": chosen} | score.row()
    print("=== one long run, all pairs of budgets, with the fall_error that makes rms z one on the other teachers")
    print(pd.DataFrame.from_dict(rows, orient="index").to_string(), end="\n\n")

    _, own, zero, floors = sets["embedded"]
    rows = {}
    for n_used, ahead in itertools.product((2, 3, 4), (1, 2, 3)):
        used = floors.columns[:n_used]
        if n_used + ahead > len(floors.columns):
            continue
        target = floors.columns[n_used + ahead - 1]
        fitted = BudgetForecaster(zero).fit(*as_runs(floors[used].dropna()))
        truth = floors[target].dropna()
        score = Score()
        score.add(fitted.predict(truth.index, target, return_interval=True), truth.to_numpy())
        signed = fitted.predict(truth.index, target) / truth - 1.0
        rows[f"{', '.join(map(str, used))} -> {target}"] = {
            **{str(width): f"{error:+.1%}" for width, error in signed.items()},
            **{name: score.row()[name] for name in ("median", "held", "rms z")},
        }
    print("=== embedded, further budgets from all widths after fewer steps: errors by width")
    print(pd.DataFrame.from_dict(rows, orient="index").fillna("").to_string(), end="\n\n")

    rows = {}
    for name, law in {"anchored law": Anchored(zero), "law with both ends": AnchoredBothEnds(zero, own)}.items():
        for used, target in (([1000, 2000], 4000), ([1000, 2000], 8000), ([1000, 2000, 4000], 8000)):
            score, alone = Score(), Score()
            for narrow in floors.index[:-1]:
                widths, losses, steps = as_runs(floors.loc[[narrow, floors.index[-1]], used])
                fitted = LossForecaster(law).fit(widths, losses, n_steps=steps)
                others = floors.index.difference(widths)
                truth = floors[target][others].to_numpy()
                known = LossForecaster(law).fit([narrow, floors.index[-1]], floors[target][[narrow, floors.index[-1]]])
                alone.add(known.predict(others, return_interval=True), truth)
                score.add(fitted.predict(others, n_steps=target, return_interval=True), truth)
            from_long = {"from the same two after more steps": alone.row()["median"]}
            rows[f"{name}, {', '.join(map(str, used))} -> {target}"] = score.row() | from_long
    print("=== embedded, LossForecaster: other widths after more steps, from runs of the widest and one more")
    print(pd.DataFrame.from_dict(rows, orient="index").to_string(), end="\n\n")
    for used in ([1000, 2000], [1000, 2000, 4000]):
        widths, losses, steps = as_runs(floors.loc[[32, 96], used])
        fitted = LossForecaster(AnchoredBothEnds(zero, own)).fit(widths, losses, n_steps=steps, n_tokens=2048)
        print(fitted.decide(48, 0.2))
    print("(measured at width 48: 0.2070 after 4,000 steps, 0.1979 after 8,000, 0.1911 after 16,000)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--floors", type=Path, nargs="+")
    chosen.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    if options.held_out:
        print_held_out()
        return
    floors = read(options.floors)
    steps = floors.columns.to_numpy()
    if not (steps[1:] == 2 * steps[:-1]).all():
        raise SystemExit(f"steps {steps.tolist()} must double from one to the next.")
    falls = -floors.diff(axis=1)
    print(f"floors, nats per token\n{floors.to_string(float_format='{:.4f}'.format, na_rep='')}\n")
    changes = -(falls / floors.shift(axis=1)).dropna(axis=1, how="all")
    print(f"change from half the steps\n{changes.to_string(float_format='{:+.1%}'.format, na_rep='')}\n")
    ratios = (falls / falls.shift(axis=1)).dropna(axis=1, how="all")
    print(f"fall over the fall before\n{ratios.to_string(float_format='{:.2f}'.format, na_rep='')}\n")
    for place in range(2, len(steps)):
        known = floors[steps[: place + 1]].dropna()
        *earlier, before, last, observed = known.to_numpy().T
        forecasts = {"same fall": 2 * last - before, "same ratio": last**2 / before}
        if earlier:
            triples = zip(earlier[-1], before, last, strict=True)
            forecasts["power"] = np.array([power_of_steps(*triple)[0] for triple in triples])
        errors = pd.DataFrame(forecasts, index=known.index).div(observed, axis=0) - 1.0
        print(f"errors of {steps[place]} steps, forecast from fewer")
        print(errors.to_string(float_format="{:+.1%}".format), end="\n\n")
    limits = pd.Series({width: power_of_steps(*row.dropna()[-3:])[1] for width, row in floors.iterrows()})
    known = {width: row.dropna() for width, row in floors.iterrows()}
    settled = pd.Series({width: steps_until_settled(row.to_numpy(), row.index[-1]) for width, row in known.items()})
    print("limit of the power through the last three budgets; none if falls don't shrink")
    limits = pd.DataFrame({"limit": limits, "of the last": limits / floors.ffill(axis=1)[steps[-1]]}).round(4)
    print(limits.to_string(), end="\n\n")
    print("steps at which the last doubling lowers the loss by at most 3%, measured or by that power")
    print(settled.to_string(float_format="{:,.0f}".format))


if __name__ == "__main__":
    main()
