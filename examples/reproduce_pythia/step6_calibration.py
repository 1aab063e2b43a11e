"""
Step 6: floors and students → calibration and forecasts
=======================================================

Fit Eq. 3 with a free baseline, and with the widest student's loss as the baseline, as the paper does (Tables 4 and 5).
Fit Eq. 4. Forecast each width from the others, by these equations, by laws of the width, and by the floors in nats.
Last, forecast the other widths from two students, the narrowest and the widest, with intervals. All fits use the first
seed of each width.
"""

import numpy as np
import pandas as pd
from results import write_json, write_table
from safetensors.numpy import load_file
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from step3_statistics import features_path

from geofloor import AffineCalibrator, FloorPredictor, LossForecaster, PowerLawCalibrator
from geofloor.forecasting import Anchored, Calibrated, forecast_table


class TabulatedFloors:
    """Look floors up by width, as a predictor."""

    def __init__(self, floors):
        self.floors = floors

    def predict(self, widths):
        return self.floors.loc[widths].to_numpy()


def calibrate(folder, *, layers, seed):
    """Write ``calibration.json``, ``decomposition.csv``, ``forecasts.csv`` and ``from-two-students.csv``."""
    students = pd.read_csv(folder / "students.csv")
    first = students[students["seed"] == seed].sort_values("width")
    widths, observed = first["width"].to_numpy(), first["kl"].to_numpy()
    power_law = PowerLawCalibrator().fit(widths, observed)
    result = {
        "eq_4": {name: getattr(power_law, f"{name}_") for name in ("scale", "exponent", "offset", "r2")},
        "seeds": {
            str(width): float(np.ptp(group["kl"]) / group["kl"].mean())
            for width, group in students.groupby("width")
            if len(group) > 1
        },
        "layers": {},
    }
    rivals = width_laws(observed, float(students["zero_width_kl"].iloc[0]))
    predicted = pd.read_csv(folder / "predicted.csv").set_index(["layer", "width"])
    decomposed = []
    for layer in layers:
        floor = FloorPredictor().fit(load_file(features_path(folder, layer))["table"])
        floors = floor.predict(widths)
        fits = {"free": AffineCalibrator(), "fixed": AffineCalibrator(baseline=float(observed[-1]))}
        for fit in fits.values():
            fit.fit(floors, observed)
        result["layers"][str(layer)] = {
            name: {"slope": fit.slope_, "baseline": fit.baseline_, "r2": fit.r2_} for name, fit in fits.items()
        }
        split = fits["fixed"].decompose(floors, observed)
        decomposed.append(split.assign(layer=layer, width=widths))
        rivals[f"Eq. 3, layer {layer}"] = make_pipeline(FrozenEstimator(floor), AffineCalibrator())
        rivals[f"without features, layer {layer}"] = LossForecaster(
            Calibrated(TabulatedFloors(predicted.loc[layer]["nats"]))
        )
    write_json(folder / "calibration.json", result)
    write_table(folder / "decomposition.csv", pd.concat(decomposed))
    forecasts = forecast_table(rivals, widths.astype(float), observed)
    write_table(folder / "forecasts.csv", forecasts.rename_axis("predictor").reset_index())
    write_table(folder / "from-two-students.csv", forecast_from_two(rivals, widths, observed))


def width_laws(observed, zero_width):
    """Return the rivals among laws of the width."""
    laws = {
        "Eq. 4": PowerLawCalibrator(),
        "a + b/d": make_pipeline(FunctionTransformer(np.reciprocal), AffineCalibrator()),
        "a exp(-b d)": LossForecaster("exponential"),
    }
    if observed.max() < zero_width:  # else some student has learned no more than a student of width 0
        laws["L0 (1 + d)^-c exp(-b d)"] = LossForecaster(Anchored(zero_width))
    return laws


def forecast_from_two(rivals, widths, observed):
    """Tabulate the forecasts, with intervals, of all widths between the narrowest and the widest."""
    tables = []
    for name, rival in rivals.items():
        if isinstance(rival, LossForecaster):
            rival.fit(widths[[0, -1]], observed[[0, -1]])
            loss, interval = rival.predict(widths[1:-1], return_interval=True)
            low, high = interval.T
            columns = {"width": widths[1:-1], "observed": observed[1:-1], "forecast": loss, "low": low, "high": high}
            tables.append(pd.DataFrame({"predictor": name, **columns}))
    return pd.concat(tables)
