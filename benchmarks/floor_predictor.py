"""Compare FloorPredictor on ten million importances with a sort of them, and count the libraries it loads.

python benchmarks/floor_predictor.py
"""

import subprocess
import sys

import numpy as np
from _timing import report, side_by_side

from geofloor import FloorPredictor

importances = np.random.default_rng(0).random(10_000_000)
predictor = FloorPredictor(alpha=0.992)
times = side_by_side({"sort": lambda: np.sort(importances), "fit": lambda: predictor.fit(importances)}, repeats=9)
report("fit of 10,000,000 importances / np.sort of them", times["fit"] / times["sort"], 1.5)

widths = np.arange(10_000)
times = side_by_side({"predict": lambda: predictor.predict(widths)}, repeats=25)
report("predict of 10,000 widths, milliseconds", 1e3 * times["predict"], 5)

# A feature table like that of an autoencoder: each feature has its own firing rate, mean and curve.
rng = np.random.default_rng(0)


def feature_table(n_features):
    rates = np.exp(rng.normal(np.log(0.008), 1.0, n_features)).clip(1e-5, 0.9)
    means = rng.gamma(2.0, 1.0, n_features)
    return np.column_stack([1.3 * rates * means**2, rates, rates * means])


table, widths = feature_table(10_000_000), np.linspace(1, 1e5, 1000)
shared = FloorPredictor(allocation="waterfilling")
times = side_by_side(
    {"sort": lambda: np.sort(table[:, 0]), "both": lambda: shared.fit(table).predict(widths)}, repeats=5
)
ratio = times["both"] / times["sort"]
report("water-filling with per-feature curves, 10,000,000 features, 1,000 widths / np.sort", ratio, 10)
table, widths = feature_table(28_700), [128, 256, 512, 768, 1024]
shared = FloorPredictor(allocation="auto")
times = side_by_side({"both": lambda: shared.fit(table).predict(widths)}, repeats=25)
report("the same with 28,700 features and 5 widths, milliseconds", 1e3 * times["both"], 20)

script = (
    "import sys, geofloor; geofloor.FloorPredictor(alpha=0.9).fit([2.0, 1.0]).predict([1]);"
    "print(*[name for name in ('torch', 'transformers') if name in sys.modules])"
)
loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
report("of torch and transformers, loaded by import, fit and predict", len(loaded), 0)
