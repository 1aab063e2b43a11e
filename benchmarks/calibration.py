"""Judge the laws of the width and the automatic choice on all sets at hand, and fit the priors of that choice.

    python benchmarks/calibration.py                # the tables, with priors refitted without the teacher tested
    python benchmarks/calibration.py --fit-priors   # write geofloor/forecasting/priors.json from all sets
    python benchmarks/calibration.py --scale        # one factor of all intervals, fitted to other teachers
    python benchmarks/calibration.py --slices       # whether slices' losses end at their model's width

Sets are the published ones of `geofloor.datasets.load_published_losses` and the floors in results/. Losses of each set
are forecast from two runs, the widest and one more. An error is the median over the other widths, and then over the
choice of the second run, as "two_runs" of `geofloor.forecasting.forecast_table`. "From others" stands for forecasts of
each run from all others. The rounding of published perplexities counts as an error of each loss.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
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
DOUBT = 0.005  # nats, of the loss at which a difference of cross-entropies vanishes
AIM = 0.92  # of the coverage that a factor of the intervals is fitted to
SCALES = np.round(np.arange(0.5, 1.501, 0.01), 2)  # factors that are tried
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
        errors = np.broadcast_to(self.runs.errors, chosen.shape)[chosen]
        return Evidence(self.runs.widths[chosen], self.runs.losses[chosen], self.auto.knowledge(), errors)


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


def all_others(item: Item) -> list[Case]:
    """Return all runs but one, for each one."""
    number = np.arange(len(item.runs.widths))
    return [Case(item.evidence(number != i), item.runs.widths[[i]], item.runs.losses[[i]]) for i in number]


def interval(item: Item, case: Case, priors: Priors) -> tuple[Mixture, np.ndarray]:
    """Return the mixture, and low, middle and high, (3, n_widths), of the forecast of a case."""
    mixture = Mixture(case.evidence, priors, item.auto.students)
    ends = np.exp(mixture.quantiles(case.widths, [0.5 - LEVEL / 2, 0.5, 0.5 + LEVEL / 2]))
    least = item.auto.least(case.widths)
    return mixture, ends if least is None else np.maximum(ends, least)


def factors(item: Item, cases: list[Case], priors: Priors) -> np.ndarray:
    """Return the factor of each interval, in the logarithm and around the median, at which it just holds the loss."""
    found: list[float] = []
    for case in cases:
        low, middle, high = np.log(interval(item, case, priors)[1])
        off = np.log(case.losses) - middle
        half = np.where(off > 0.0, high - middle, middle - low)
        found += list(np.abs(off) / np.maximum(half, np.finfo(float).tiny))
    return np.array(found)


def judge(item: Item, cases: list[Case], priors: Priors) -> dict[str, float]:
    """Return error and calibration of forecasts."""
    errors, inside, scores, half = [], [], [], []
    for case in cases:
        mixture, (low, middle, high) = interval(item, case, priors)
        losses = case.losses
        weights, means, deviations = mixture.components(case.widths)
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


def priors_without(items: list[Item]) -> dict[str, Priors]:
    """Return priors refitted without each teacher that the priors are fitted to."""
    fitted = fitted_items(items)
    return {
        teacher: fit_priors([pair for pair in fitted if pair[0].of.teacher != teacher])
        for teacher in dict.fromkeys(item.of.teacher for item, _ in fitted)
    }


def calibration(items: list[Item]) -> pd.DataFrame:
    """Return errors and calibration by set and knowledge, with priors refitted without the set's teacher."""
    without, everything = priors_without(items), load_priors()
    rows = []
    for item in items:
        cases, priors = two_runs(item), without.get(item.of.teacher, everything)
        found = judge(item, cases, priors)
        rows.append({"set": item.of.name, "origin": item.of.origin, "known": item.context} | found)
        rows[-1]["held, all sets"] = judge(item, cases, everything)["held"]
        others = all_others(item)
        rows[-1]["held, from others"] = judge(item, others, priors)["held"]
        rows[-1]["others"] = len(others)
    return pd.DataFrame(rows)


def scales(items: list[Item]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Try one factor of all intervals, fitted to all teachers but the one that is tested, as registered.

    Returns
    -------
    fitted : DataFrame
        The factor without each teacher, and the coverage of the other teachers' sets with it and without a factor.
    tested : DataFrame
        Share held by set and knowledge without the factor and with it, from two runs and from all others.
    """
    without, everything = priors_without(items), load_priors()
    runs = {(item.of.name, item.context): two_runs(item) for item in items}
    used = [item for item, _ in fitted_items(items)]
    found = {}
    for teacher in [*without, None]:
        priors = everything if teacher is None else without[teacher]
        others = [item for item in used if item.of.teacher != teacher]
        counts = Counter(item.of.teacher for item in others)
        weights = [counts[item.of.teacher] ** -0.5 for item in others]
        needed = [factors(item, runs[item.of.name, item.context], priors) for item in others]
        held = np.array([np.average([np.mean(each <= s) for each in needed], weights=weights) for s in SCALES])
        best = int(np.argmin(np.abs(held - AIM)))
        found["no" if teacher is None else teacher] = {
            "factor": SCALES[best],
            "held with it": held[best],
            "held without": held[np.argmin(np.abs(SCALES - 1.0))],
        }
    fitted = pd.DataFrame(found).T
    rows = []
    for item in items:
        teacher = item.of.teacher if item.of.teacher in without else "no"
        priors, factor = without.get(teacher, everything), fitted.loc[teacher, "factor"]
        row = {"set": item.of.name, "known": item.context}
        for kind, cases in (("two runs", runs[item.of.name, item.context]), ("others", all_others(item))):
            needed = factors(item, cases, priors)
            row |= {f"{kind}, 1": np.mean(needed <= 1.0), f"{kind}, factor": np.mean(needed <= factor)}
            row |= {f"{kind}, checks": len(needed)}
        rows.append(row)
    return fitted, pd.DataFrame(rows)


def slices(items: list[Item]) -> pd.DataFrame:
    """Return exponents toward the model's width, and the constant with which one exponent fits all widths.

    The law is loss + constant = A · x^p with x = 1 − log(1 + d) / log(1 + D). Its three parameters are fitted to four
    losses by least squares of the logarithm.
    """
    rows = {}
    for item in items:
        if item.of.teacher != "SliceGPT" or item.context == "nothing":
            continue
        widths, losses = item.runs.widths, item.runs.losses
        left = np.log1p(-np.log1p(widths) / np.log1p(item.auto.teacher_width))
        steps = np.diff(np.log(losses)) / np.diff(left)
        fits = []
        for constant in np.linspace(-0.9 * losses.min(), 0.03, 2001):
            logs = np.log(losses + constant)
            exponent, scale = np.polyfit(left, logs, 1)
            fits.append((np.sqrt(np.mean((logs - exponent * left - scale) ** 2)), constant, exponent))
        rms, constant, exponent = min(fits)
        cases = two_runs(item)
        law = [Mixture(case.evidence, load_priors(), item.auto.students).probabilities for case in cases]
        doubted = item._replace(runs=replace(item.runs, errors=np.hypot(item.runs.errors, DOUBT / losses)))
        before, after = judge(item, cases, load_priors()), judge(doubted, two_runs(doubted), load_priors())
        rows[item.of.name] = {
            "widest loss": losses[-1],
            "rounding": item.runs.errors[-1],
            **{f"p, step {i + 1}": step for i, step in enumerate(steps)},
            "constant": constant,
            "p with it": exponent,
            "rms with it": rms,
            "least P(ends at teacher)": min(each["ends at teacher"] for each in law),
            **{f"{name}, two runs": before[name] for name in ("held", "half width")},
            **{f"{name}, error of {DOUBT}": after[name] for name in ("held", "half width")},
        }
    return pd.DataFrame(rows).T


def pooled_scales(tested: pd.DataFrame) -> pd.DataFrame:
    """Return shares held by knowledge, pooled over all checks, and the least of any set."""

    def of(rows: pd.DataFrame) -> pd.Series:
        found = {}
        for kind in ("two runs", "others"):
            for way in ("1", "factor"):
                held = rows[f"{kind}, {way}"]
                found[f"{kind}, {way}"] = np.average(held, weights=rows[f"{kind}, checks"])
                found[f"least, {kind}, {way}"] = held.min()
        return pd.Series(found)

    return pd.DataFrame({known: of(rows) for known, rows in tested.groupby("known", sort=False)}).T


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
                "held, from others": np.average(rows["held, from others"], weights=rows["others"]),
            }
        )

    found = {known: of(rows) for known, rows in table.groupby("known", sort=False)}
    richest = table.drop_duplicates("set", keep="last")
    return pd.DataFrame(found | {"nothing and all": of(pd.concat([table[table["known"] == "nothing"], richest]))}).T


def show(table: pd.DataFrame, plain: tuple[str, ...] = ("rms z", "factor")) -> str:
    def written(name: str) -> Any:
        if name in ("checks", "sets", "others") or name.endswith(", checks"):
            return "{:.0f}".format
        return ("{:.2f}" if name in plain else "{:.1%}").format

    numbers = table.select_dtypes("number").columns
    return table.to_string(formatters={name: written(name) for name in numbers}, na_rep="", index_names=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit-priors", action="store_true", help="fit the priors to all sets and write them")
    parser.add_argument("--scale", action="store_true", help="try a factor of all intervals on teachers held out")
    parser.add_argument("--slices", action="store_true", help="fit exponents to slices of published models")
    options = parser.parse_args()
    sets = all_sets()
    items = [item for each in sets for item in contexts(each)]
    if options.fit_priors:
        priors = rounded(fit_priors(fitted_items(items)))
        path = Path(geofloor.__file__).parent / "forecasting" / "priors.json"
        path.write_text(json.dumps(priors._asdict(), indent=1) + "\n", encoding="utf-8")
        print(json.dumps(priors._asdict(), indent=1))
        return
    if options.slices:
        print("=== slices: exponents from run to run toward the model's width, and with a constant added")
        print(slices(items).to_string(float_format="{:.4f}".format))
        return
    if options.scale:
        fitted, tested = scales(items)
        print("=== factor fitted without a teacher, and coverage from two runs of the others")
        print(show(fitted))
        print("\n=== share held by teachers held out, without the factor and with it")
        print(show(tested.set_index(["set", "known"])))
        print("\n=== pooled")
        print(show(pooled_scales(tested)))
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
