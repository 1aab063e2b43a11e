"""Sets of losses by width: published ones, and students of our three teachers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from geofloor.datasets import load_published_losses

RESULTS = Path(__file__).parent / "results"
N_POSITIONS = 4096  # of softmax_bottleneck.py, for the standard error that its text lacks
PERPLEXITY_STEP = 0.01  # of SliceGPT's Table 1, which prints two decimals
OWN_WIDTHS = {"embedded": 128, "second": 64, "third": 96}


class Bound(BaseEstimator):
    """Bottleneck at the widths in the output of softmax_bottleneck.py."""

    def __init__(self, curve: pd.DataFrame, rank: int) -> None:
        self.curve, self.rank = curve, rank
        self.curve_, self.rank_, self.critical_width_ = curve, rank, float(rank)
        self.zero_width_loss_ = float(np.sqrt(curve["low"].iloc[0] * curve["high"].iloc[0]))
        self.temperature = 2.0

    def fit(self, tokens: Any = None, y: Any = None) -> Bound:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, widths: np.ndarray, *, return_bounds: bool = False) -> Any:
        at, known = np.ravel(widths).astype(float), self.curve["width"].to_numpy(dtype=float)
        ends = np.stack(
            [np.exp(np.interp(np.sqrt(at), np.sqrt(known), np.log(self.curve[end]))) for end in ("low", "high")], axis=1
        )
        ends[at >= self.rank] = 0.0
        losses = np.sqrt(ends.prod(axis=1))
        return (losses, ends) if return_bounds else losses

    def min_width(self, loss: float) -> int:
        return int(np.argmax(self.predict(np.arange(self.rank + 1), return_bounds=True)[1][:, 0] <= loss))


@dataclass(frozen=True)
class LossSet:
    """Losses of students that differ in their width."""

    name: str
    teacher: str  # sets of one teacher are left out together
    students: str | None  # "principal", "random", or None where neither fits
    widths: np.ndarray
    losses: np.ndarray
    origin: str  # "ours", "published", or "held out" of the priors
    known: dict[str, Any] = field(default_factory=dict)  # arguments of LossForecaster that hold what is known besides
    errors: np.ndarray | float = 0.0  # of rounding, as shares of the losses

    def below(self, width: float) -> LossSet:
        kept = self.widths < width
        errors = np.broadcast_to(self.errors, self.widths.shape)[kept]
        return replace(self, widths=self.widths[kept], losses=self.losses[kept], errors=errors)


def bounds() -> dict[str, Bound]:
    """Read the bound of each teacher from the results of softmax_bottleneck.py, and the loss at width 0."""
    text = (RESULTS / "softmax_bottleneck.txt").read_text(encoding="utf-8")
    zero_files = {
        "embedded": "forecasts_principal.txt",
        "second": "second_teacher_forecasts_principal.txt",
        "third": "third_teacher_forecasts_principal.txt",
    }
    ends: dict[str, dict[float, tuple[float, float]]] = {name: {} for name in OWN_WIDTHS}
    for part in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("low", "high"))}
        if rows:
            teacher = {"second": "second", "third_": "third"}.get(lines[0][:6], "embedded")
            found = zip(lines[1].split(), rows["low"], rows["high"], strict=True)
            ends[teacher] |= {float(width): (float(low), float(high)) for width, low, high in found}
    made = {}
    for teacher, name in zero_files.items():
        zero = float(re.search(r"width 0, by the teacher alone: ([\d.]+)", (RESULTS / name).read_text())[1])
        table = sorted((ends[teacher] | {0.0: (zero, zero)}).items())
        curve = pd.DataFrame(
            {"width": [w for w, _ in table], "low": [e[0] for _, e in table], "high": [e[1] for _, e in table]}
        )
        curve["standard_error"] = curve["high_standard_error"] = 0.02 * curve["low"]
        made[teacher] = Bound(curve, OWN_WIDTHS[teacher])
    return made


def our_sets() -> list[LossSet]:
    """Floors of distilled_floors.py of four widths or more, seed 0, one set per budget."""
    found, bound = [], bounds()
    for path in sorted(RESULTS.glob("*floors*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        teacher = (
            "second" if path.name.startswith("second") else "third" if path.name.startswith("third") else "embedded"
        )
        students = "principal" if content["settings"].get("init") == "principal" else "random"
        known = {
            "bound": bound[teacher],
            "zero_width_loss": bound[teacher].zero_width_loss_,
            "teacher_width": OWN_WIDTHS[teacher],
        }
        runs = pd.DataFrame(content["runs"]).query("seed == 0")
        for n_steps, of_budget in runs.sort_values("width").groupby("n_steps"):
            if len(of_budget) >= 4:
                short = path.stem.replace("_floors", "").replace("distilled", teacher).replace("_", " ")
                short = short.replace("second teacher", "second").replace("third teacher", "third")
                found.append(
                    LossSet(
                        f"{re.sub(r' (4000|8000)$', '', short)}, {n_steps} steps",
                        teacher,
                        students,
                        of_budget["width"].to_numpy(dtype=float),
                        of_budget["floor"].to_numpy(),
                        "ours",
                        known,
                    )
                )
    return found


def published_sets() -> list[LossSet]:
    """Published series of the width; the suites of models are held out of the priors."""
    table = load_published_losses()
    students = table.query("source == 'geometric limits'")
    found = [_set("paper, Table 3", "Pythia-410M", "random", students)]
    grid = table.query("source == 'open_lm grid' and variant == 'best of the grid'")
    # Below width 512 the batch size changes, and the loss rises between some widths. Priors are fitted above.
    for title, part, origin in (
        ("all widths", grid, "held out"),
        ("512 to 1,024", grid.query("width >= 512"), "published"),
    ):
        for depth, rows in part.groupby("series", sort=False):
            found.append(_set(f"open_lm, {depth}, {title}", "open_lm", "random", rows, origin))
    for model, rows in table.query("source == 'SliceGPT'").groupby("series", sort=False):
        sliced = rows.query("kind == 'sliced, untrained'")
        excess = sliced.assign(loss=sliced["loss"] - sliced["teacher_loss"])
        own = float(rows["width"].max())
        of_set = _set(f"SliceGPT, {model}, excess", "SliceGPT", None, excess, teacher_width=own)
        found.append(replace(of_set, errors=_rounding(excess)))
    suites = table.query("source == 'Cerebras-GPT'").drop_duplicates(["series", "width"], keep="last")
    found += [_set(name, name, "random", rows, "held out") for name, rows in suites.groupby("series", sort=False)]
    dense = table.query("source == 'SliceGPT' and variant == 'dense' and series.str.startswith('OPT')")
    found.append(_set("OPT, WikiText-2", "OPT", "random", dense, "held out"))
    return found


def all_sets() -> list[LossSet]:
    return published_sets() + our_sets()


def _rounding(excess: pd.DataFrame) -> np.ndarray:
    """Return the standard error of log(a / b) from the rounding of perplexities a and b, as a share of it, by width.

    Each is off by at most half a step, and any such error is equally probable. Errors of b, which are common to all
    widths, count as independent.
    """
    rows = excess.sort_values("width")
    relative = np.hypot(1.0 / rows["printed"], 1.0 / np.exp(rows["teacher_loss"]))
    return (PERPLEXITY_STEP / 12.0**0.5 * relative / rows["loss"]).to_numpy(dtype=float)


def _set(
    name: str, teacher: str, students: str | None, rows: pd.DataFrame, origin: str = "published", **known: Any
) -> LossSet:
    rows = rows.sort_values("width")
    widths, losses = rows["width"].to_numpy(dtype=float), rows["loss"].to_numpy(dtype=float)
    return LossSet(name, teacher, students, widths, losses, origin, known)
