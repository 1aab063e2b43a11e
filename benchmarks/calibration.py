"""Judge the laws of the width and the automatic choice on all sets at hand, and fit the priors of that choice.

    python benchmarks/calibration.py                # the tables, with priors refitted without the teacher tested
    python benchmarks/calibration.py --fit-priors   # write geofloor/forecasting/priors.json from all sets

Sets are the published ones of `geofloor.datasets.load_published_losses` and the floors in results/. Losses of each set
are forecast from two runs, the widest and one more. An error is the median over the other widths, and then over the
choice of the second run, as "two_runs" of `geofloor.forecasting.forecast_table`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from loss_sets import LossSet, all_sets

import geofloor
from geofloor import LossForecaster
from geofloor.forecasting import AboveBottleneck, Anchored, AnchoredBothEnds, EndsAtTeacher, forecast_table
from geofloor.forecasting._auto import Auto
from geofloor.forecasting._candidates import CANDIDATES
from geofloor.forecasting._mixture import Evidence, Mixture
from geofloor.forecasting._priors import FORM_ERRORS, RUN_ERRORS, STUDENTS, Priors, load_priors

LEVEL = 0.9
N_STEPS = 20  # of expectation and maximization
# Before any set is seen: mean and deviation of the coordinates of each law, logarithms but for the exponent m.
FIRST = {
    "power": [[np.log(0.4), 0.6]],
    "power above baseline": [[np.log(0.7), 0.6]],
    "exponential": [[np.log(2.0), 0.7]],
    "ends at teacher": [[np.log(1.2), 0.5]],
    "anchored": [[np.log(0.15), 0.9], [np.log(1.5), 0.9]],
    "anchored at both ends": [[np.log(0.8), 0.6], [np.log(0.7), 0.9]],
    "above bottleneck": [[1.2, 0.12]],
}
# How many sets these first values count for; likewise equal odds, equal run errors, and form errors in proportion to
# their size. The fewer teachers inform a law, the more sets its first form errors count for: three alone have a loss at
# width 0 and a bound, and three say little about others.
N_FIRST = 2.0
N_FIRST_RUN_ERRORS = 1.0
N_FIRST_FORM_ERRORS = {
    "power": 0.1,
    "power above baseline": 0.1,
    "exponential": 0.3,
    "ends at teacher": 0.3,
    "anchored": 4.5,
    "anchored at both ends": 4.5,
    "above bottleneck": 4.5,
}


class Item(NamedTuple):
    """A set with what is known besides its runs."""

    of: LossSet
    context: str
    auto: Auto
    runs: LossSet  # the runs below a known end
    kind: str  # of start, for the fit of the priors

    def evidence(self, chosen: np.ndarray | None = None) -> Evidence:
        chosen = np.ones(len(self.runs.widths), dtype=bool) if chosen is None else chosen
        return Evidence(self.runs.widths[chosen], self.runs.losses[chosen], self.auto.knowledge())


def contexts(each: LossSet) -> Iterator[Item]:
    """Yield a set with nothing known, and with more."""
    known, kind = each.known, each.students or "principal"  # slices start as principal students do
    several: dict[str, dict[str, Any]] = {"nothing": {}}
    if "bound" in known:
        zero = {"zero_width_loss": known["zero_width_loss"]}
        several["start"] = {"students": kind}
        several["start, loss at 0"] = zero | {"students": kind}
        several["start, own width"] = {"teacher_width": known["teacher_width"], "students": kind}
        several["bound"] = {"bound": known["bound"]}
        several["start, bound"] = {"bound": known["bound"], "students": kind}
    elif "teacher_width" in known:
        several["start, own width"] = {"teacher_width": known["teacher_width"], "students": kind}
    for name, knowledge in several.items():
        auto = Auto(**knowledge)
        yield Item(each, name, auto, each.below(auto.end_width), kind)


def fit_priors(items: list[tuple[Item, Evidence]], n_steps: int = N_STEPS) -> Priors:
    """Fit the priors by expectation and maximization. Items of one teacher count for the root of their number."""
    counts = Counter(item.of.teacher for item, _ in items)
    priors = Priors(
        {kind: dict.fromkeys(CANDIDATES, 1.0) for kind in STUDENTS},
        dict.fromkeys(STUDENTS, FIRST),
        dict.fromkeys(STUDENTS, [1.0 / len(RUN_ERRORS)] * len(RUN_ERRORS)),
        dict.fromkeys(CANDIDATES, [1.0 / len(FORM_ERRORS)] * len(FORM_ERRORS)),
    )
    sizes = np.array(FORM_ERRORS) / np.sum(FORM_ERRORS)
    for _ in range(n_steps):
        forms = {name: N_FIRST_FORM_ERRORS[name] * sizes for name in CANDIDATES}
        runs = {kind: np.full(len(RUN_ERRORS), N_FIRST_RUN_ERRORS / len(RUN_ERRORS)) for kind in STUDENTS}
        taken, offered = ({kind: dict.fromkeys(CANDIDATES, 0.5 * N_FIRST) for kind in STUDENTS} for _ in range(2))
        moments = {kind: {name: _first_moments(name) for name in CANDIDATES} for kind in STUDENTS}
        for item, evidence in items:
            weight = counts[item.of.teacher] ** -0.5
            odds = priors.odds[item.kind]
            total = sum(odds[name] for name in evidence.laws)
            for name, posterior in Mixture(evidence, priors, item.kind).weights.items():
                counted = weight * posterior
                forms[name] += counted.sum(axis=(1, 2))
                runs[item.kind] += counted.sum(axis=(0, 2))
                taken[item.kind][name] += counted.sum()
                offered[item.kind][name] += weight / total
                points, of_points = evidence.laws[name].coordinates, counted.sum(axis=(0, 1))
                moments[item.kind][name] += np.stack(
                    [np.full(points.shape[1], of_points.sum()), of_points @ points, of_points @ points**2]
                )
        odds = {kind: {name: taken[kind][name] / offered[kind][name] for name in CANDIDATES} for kind in STUDENTS}
        priors = Priors(
            {
                kind: {name: value / np.mean([*each.values()]) for name, value in each.items()}
                for kind, each in odds.items()
            },
            {kind: {name: _spread(moments[kind][name]) for name in CANDIDATES} for kind in STUDENTS},
            {kind: (each / each.sum()).tolist() for kind, each in runs.items()},
            {name: (each / each.sum()).tolist() for name, each in forms.items()},
        )
    return priors


def _first_moments(name: str) -> np.ndarray:
    mean, deviation = np.transpose(FIRST[name])
    return N_FIRST * np.stack([np.ones(len(mean)), mean, mean**2 + deviation**2])


def _spread(moments: np.ndarray) -> list[list[float]]:
    number, first, second = moments
    mean = first / number
    return np.column_stack([mean, np.sqrt(second / number - mean**2)]).tolist()


def rounded(priors: Priors) -> Priors:
    """Round to four digits, as they are written."""
    return Priors(**json.loads(json.dumps(priors._asdict()), parse_float=lambda text: float(f"{float(text):.4g}")))


def fitted_items(items: list[Item]) -> list[tuple[Item, Evidence]]:
    """List the cases that the priors are fitted to, with each kind of knowledge but the start alone."""
    used = "nothing", "start, loss at 0", "start, own width", "start, bound"
    return [(item, item.evidence()) for item in items if item.of.origin != "held out" and item.context in used]


class Case(NamedTuple):
    """Two runs of a set, and what they are to forecast."""

    evidence: Evidence
    widths: np.ndarray
    losses: np.ndarray


def two_runs(item: Item) -> list[Case]:
    """Return the widest run with each other one."""
    widths, losses = item.runs.widths, item.runs.losses
    number = np.arange(len(widths))
    cases = []
    for second in number[:-1]:
        seen = np.isin(number, [second, number[-1]])
        cases.append(Case(item.evidence(seen), widths[~seen], losses[~seen]))
    return cases


def judge(item: Item, cases: list[Case], priors: Priors) -> dict[str, float]:
    """Return error and calibration of the forecasts from two runs."""
    errors, inside, scores, half = [], [], [], []
    for evidence, widths, losses in cases:
        mixture = Mixture(evidence, priors, item.auto.students)
        low, middle, high = np.exp(mixture.quantiles(widths, [0.5 - LEVEL / 2, 0.5, 0.5 + LEVEL / 2]))
        least = item.auto.least(widths)
        if least is not None:
            low, middle, high = (np.maximum(each, least) for each in (low, middle, high))
        weights, means, deviations = mixture.components(widths)
        center = weights @ means
        spread = np.sqrt(weights @ (deviations**2 + (means - center) ** 2))
        errors.append(np.median(np.abs(middle / losses - 1.0)))
        inside += list((low <= losses) & (losses <= high))
        scores += list((np.log(losses) - center) / spread)
        half += list(0.5 * np.log(high / low))
    return {
        "two runs": float(np.median(errors)),
        "worst": float(np.max(errors)),
        "held": float(np.mean(inside)),
        "rms z": float(np.sqrt(np.mean(np.square(scores)))),
        "half width": float(np.median(half)),
        "checks": len(inside),
    }


def laws(each: LossSet) -> dict[str, LossForecaster]:
    """Return the laws that can be tried on a set."""
    found = {"power": LossForecaster("power"), "exponential": LossForecaster("exponential")}
    known = each.known
    if "teacher_width" in known:
        found["ends at teacher"] = LossForecaster(EndsAtTeacher(known["teacher_width"]))
    if "bound" in known:
        found["anchored"] = LossForecaster(Anchored(known["zero_width_loss"]))
        found["both ends"] = LossForecaster(AnchoredBothEnds(known["zero_width_loss"], known["teacher_width"]))
        found["above bottleneck"] = LossForecaster(AboveBottleneck(known["bound"]))
    found["auto, nothing known"] = LossForecaster()
    if known:
        kind = each.students or "principal"
        knowledge = {name: known[name] for name in ("bound", "teacher_width") if name in known}
        found["auto, all known"] = LossForecaster(students=kind, **knowledge)
    return found


def table_of_laws(sets: list[LossSet]) -> pd.DataFrame:
    """Return median errors from two runs, by set and law."""
    rows = {}
    for each in sets:
        below = each.below(each.known.get("teacher_width", np.inf))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The loss rises with width")
            rows[each.name] = forecast_table(laws(each), below.widths, below.losses)["two_runs"]
    return pd.DataFrame(rows).T


def calibration(items: list[Item]) -> pd.DataFrame:
    """Return errors and calibration by set and knowledge, with priors refitted without the set's teacher."""
    fitted = fitted_items(items)
    without = {
        teacher: fit_priors([pair for pair in fitted if pair[0].of.teacher != teacher])
        for teacher in {item.of.teacher for item in items if item.of.origin != "held out"}
    }
    everything = load_priors()
    rows = []
    for item in items:
        cases = two_runs(item)
        found = judge(item, cases, without.get(item.of.teacher, everything))
        rows.append({"set": item.of.name, "origin": item.of.origin, "known": item.context} | found)
        rows[-1]["held, all sets"] = judge(item, cases, everything)["held"]
    return pd.DataFrame(rows)


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of losses held, over all checks and least over the sets, by knowledge."""

    def of(rows: pd.DataFrame) -> pd.Series:
        checks = rows["checks"]
        return pd.Series(
            {
                "sets": len(rows),
                "checks": checks.sum(),
                "held": np.average(rows["held"], weights=checks),
                "least": rows["held"].min(),
                "rms z": np.sqrt(np.average(rows["rms z"] ** 2, weights=checks)),
                "held, all sets": np.average(rows["held, all sets"], weights=checks),
                "least, all sets": rows["held, all sets"].min(),
            }
        )

    found = {known: of(rows) for known, rows in table.groupby("known", sort=False)}
    richest = table.drop_duplicates("set", keep="last")
    return pd.DataFrame(found | {"nothing and all": of(pd.concat([table[table["known"] == "nothing"], richest]))}).T


def show(table: pd.DataFrame, plain: tuple[str, ...] = ("rms z",)) -> str:
    def written(name: str) -> Any:
        if name in ("checks", "sets"):
            return "{:.0f}".format
        return ("{:.2f}" if name in plain else "{:.1%}").format

    numbers = table.select_dtypes("number").columns
    return table.to_string(formatters={name: written(name) for name in numbers}, na_rep="", index_names=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit-priors", action="store_true", help="fit the priors to all sets and write them")
    options = parser.parse_args()
    sets = all_sets()
    items = [item for each in sets for item in contexts(each)]
    if options.fit_priors:
        priors = rounded(fit_priors(fitted_items(items)))
        path = Path(geofloor.__file__).parent / "forecasting" / "priors.json"
        path.write_text(json.dumps(priors._asdict(), indent=1) + "\n", encoding="utf-8")
        print(json.dumps(priors._asdict(), indent=1))
        return
    print("=== median error from two runs, by set and law; priors fitted to all sets but those held out")
    print(show(table_of_laws(sets)))
    table = calibration(items)
    print("\n=== the automatic choice from two runs, priors fitted without the teacher that is tested")
    print(show(table.set_index(["origin", "set", "known"])))
    print("\n=== pooled")
    print(show(pooled(table)))


if __name__ == "__main__":
    main()
