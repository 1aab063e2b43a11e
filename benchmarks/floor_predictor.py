"""FloorPredictor on ten million importances beside sorting them, and what importing it loads.

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

script = (
    "import sys, geofloor; geofloor.FloorPredictor(alpha=0.9).fit([2.0, 1.0]).predict([1]);"
    "print(*[name for name in ('torch', 'transformers') if name in sys.modules])"
)
loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
report("of torch and transformers, loaded by import, fit and predict", len(loaded), 0)
