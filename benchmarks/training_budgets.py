"""Show how observed floors fall with more steps, and how well shorter runs forecast this.

    python benchmarks/training_budgets.py --floors distilled_floors_principal.json distilled_floors_principal_4000.json

The files are those of distilled_floors.py, in results/ or elsewhere. They must be of one teacher with equal settings,
except for the steps: each number of steps must be twice the previous one. Each budget with two shorter ones is forecast
from the last two or three of these. There are three laws of the number of steps N: a power, L = M + A / N^p, from three
budgets; the same fall with each doubling, L = a - b log N; and the same ratio.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from distilled_floors import RESULTS


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--floors", type=Path, nargs="+", required=True)
    floors = read(parser.parse_args().floors)
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
