"""What the teacher alone tells of its students' floors: nothing is distilled for it and nothing fitted.

    python benchmarks/no_runs.py --work distilled-work --floors distilled_floors.json distilled_floors_principal.json

The prediction is what the teacher loses without the features that a student of width d drops, less what it loses
without those that one of the teacher's own width drops, which can be the teacher. `--work` is that of forecasts.py,
with what was measured of each layer; floors are those of distilled_floors.py, in results/ or elsewhere.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from forecasts import RESULTS, measured
from transformers import AutoConfig

from geofloor.datasets import load_teacher


def errors(losses: np.ndarray, own_width: int, runs: pd.DataFrame) -> dict[str, float]:
    """Relative errors at the widths below the teacher's own."""
    widths = runs["width"].to_numpy()
    share = (losses[widths] - losses[own_width]) / runs["floor"].to_numpy() - 1.0
    return {"median": np.median(np.abs(share))} | dict(zip(widths.tolist(), share, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of forecasts.py")
    parser.add_argument("--teacher", type=Path, default=load_teacher().path, help="folder, such as train_teacher makes")
    parser.add_argument("--floors", type=Path, nargs="+", default=[RESULTS / "distilled_floors.json"])
    options = parser.parse_args()
    config = AutoConfig.from_pretrained(options.teacher)
    own = config.hidden_size
    layers = [measured(options.teacher, options.work, layer)["latents"] for layer in range(config.num_hidden_layers)]
    at_own = ", ".join(f"{losses[own]:.3f}" for losses in layers)
    print(f"nats that the teacher loses without what a student of its own width drops, by block: {at_own}\n")
    for path in options.floors:
        found = json.loads((path if path.exists() else RESULTS / path).read_text(encoding="utf-8"))
        runs = pd.DataFrame(found["runs"]).query("seed == 0 and width < @own")
        for n_steps, of_budget in runs.groupby("n_steps"):
            table = pd.DataFrame({f"block {i}": errors(losses, own, of_budget) for i, losses in enumerate(layers)})
            print(f"{path.name}, {n_steps} steps: prediction over floor, less one, by width, and its median size")
            print(table.T.to_string(float_format="{:+.1%}".format), end="\n\n")


if __name__ == "__main__":
    main()
