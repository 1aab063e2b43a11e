"""Working calls of every display and of its class methods, for the tests of arguments and for fuzzing."""

import numpy as np
import pandas as pd

from geofloor import AffineCalibrator, FeatureStatistics, FloorPredictor, LossForecaster, displays
from geofloor.forecasting import Calibrated
from geofloor.language_models import DictionaryReport, FloorBand

FLOOR = FloorPredictor(alpha=0.9).fit(1 / np.arange(1, 101))
POINTS = pd.DataFrame(
    {
        "n_features": 10,
        "alpha": [0.8, 0.8, 0.9, 0.9],
        "teacher_width": 5,
        "width": [1, 2, 1, 2],
        "floor": [0.09, 0.07, 0.05, 0.03],
        "floor_std": 0.001,
        "Eq. 2": [0.07, 0.03, 0.03, 0.01],
        "naive": [0.08, 0.06, 0.06, 0.05],
        "total": 0.1,
        "relative_width": [0.1, 0.2, 0.1, 0.2],
        "relative_floor": [0.9, 0.7, 0.5, 0.3],
    }
)
HISTORY = pd.DataFrame({"width": 8, "seed": [0, 0, 1, 1], "step": [0, 100] * 2, "eval_kl": [1.9, 0.3, 1.8, 0.4]})
FLOORS = pd.DataFrame({"width": 8, "seed": [0, 1], "floor": [0.25, 0.24], "floor_error": 0.01})
STEPS = pd.DataFrame({"n_features": 10, "alpha": 0.9, "width": 1, "step": [1, 10], "loss": [0.09, 0.05]})
PROBES = pd.DataFrame(
    {"concept": "a", "model": ["teacher", "student"], "accuracy": [0.9, 0.8], "p_value": [np.nan, 0.01]}
)
FEATURES = pd.DataFrame({"width": 16, "rank": np.arange(1, 21), "r2": np.linspace(0.9, 0.1, 20)})
CURVES = pd.DataFrame({"model": "a", "width": 16, "rank": [1.0, 2.0], "r2": [0.9, 0.1], "low": 0.0, "high": 1.0})
STATISTICS = FeatureStatistics().fit(np.maximum(np.random.default_rng(0).normal(size=(300, 20)) - 1.5, 0))
RUNS = {"floors": [0.08, 0.04, 0.01], "observed": [1.3, 1.0, 0.7]}
FORECASTER = LossForecaster(Calibrated(FLOOR)).fit([2, 8], [1.0, 0.4])
REPORT = DictionaryReport(
    kl_div_with_sae=0.3,
    kl_div_with_sae_error=0.02,
    kl_div_with_ablation=5.0,
    kl_div_with_mean_ablation=3.0,
    kl_div_score=0.94,
    kl_div_score_error=0.01,
    kl_div_score_above_mean=0.9,
    kl_div_score_above_mean_error=0.01,
    ce_loss_without_sae=2.5,
    ce_loss_with_sae=2.8,
    ce_loss_with_ablation=7.5,
    ce_loss_with_mean_ablation=5.4,
    ce_loss_score=0.94,
    ce_loss_score_error=0.01,
    explained_variance=0.7,
    l2_ratio=0.9,
    relative_reconstruction_bias=1.0,
    centered_reconstruction_bias=0.95,
    l0=32.0,
    frac_alive=0.8,
    freq_over_1_percent=0.2,
    freq_over_10_percent=0.01,
    max_decoder_cosine_sim=0.7,
    average_max_decoder_cosine_sim=0.3,
    closest_latents=(3, 8),
    n_latents=1024,
    n_tokens=5000,
    n_sequences=40,
    layer=2,
)

BAND = FloorBand(
    widths=np.array([2.0, 4.0, 8.0]),
    autoencoders=(),
    statistics=(STATISTICS, STATISTICS),
    predictors=(FLOOR, FloorPredictor(alpha=0.8).fit(1 / np.arange(1, 41))),
    l0=np.array([4.0, 8.0]),
    explained_variance=np.array([0.8, 0.9]),
    variance=2.0,
)

# Calls that draw: a display, a class method (None for the constructor and `plot`), and arguments.
CALLS = [
    (
        displays.FloorBandDisplay,
        None,
        {
            "widths": [2, 4],
            "floors": [[3.0, 1.0], [2.0, 0.5]],
            "critical_widths": [8.0, 3.0],
            "l0": [4.0, 2.0],
            "explained_variance": [0.9, 0.8],
            "unit": "shares",
        },
    ),
    (displays.FloorBandDisplay, "from_band", {"band": BAND, "widths": [1, 2, 3], "relative": False, "scale": "linear"}),
    (
        displays.FloorDisplay,
        None,
        {"widths": [1, 2], "floors": [2, 1], "critical_widths": 3.0, "observed_widths": [1], "observed": [1]},
    ),
    (displays.FloorDisplay, "from_predictor", {"predictor": FLOOR, "widths": [1, 2]}),
    (displays.SpectrumDisplay, None, {"importances": [3, 2, 1], "kept": {4: 2}}),
    (displays.SpectrumDisplay, "from_importances", {"importances": 1 / np.arange(1, 101), "widths": [2], "alpha": 0.9}),
    (displays.SpectrumDisplay, "from_statistics", {"statistics": STATISTICS, "widths": [2]}),
    (displays.DictionaryDisplay, None, {"table": pd.DataFrame([REPORT]).assign(dictionary="a")}),
    (displays.DictionaryDisplay, "from_reports", {"reports": {"a": REPORT}}),
    (displays.CapacityDisplay, None, {"alphas": [0.5, 0.9], "capacities": {"a": [2, 4]}}),
    (displays.CapacityDisplay, "from_methods", {"methods": ("asymptotic",), "alphas": [0.5, 0.9]}),
    (
        displays.CalibrationDisplay,
        None,
        RUNS
        | {
            "grid": [0, 0.1],
            "line": [0.5, 1.5],
            "interval": [[0, 1], [1, 2]],
            "level": 0.9,
            "observed_widths": [8, 16, 32],
        },
    ),
    (
        displays.CalibrationDisplay,
        "from_calibrator",
        RUNS | {"calibrator": AffineCalibrator().fit(*RUNS.values()), "level": 0.9},
    ),
    (
        displays.ForecastDisplay,
        None,
        {
            "widths": [1, 2],
            "losses": [2, 1],
            "interval": [[1, 2], [0, 1]],
            "observed_widths": [1],
            "observed": [2],
            "least": [1, 0],
            "target": 1.0,
            "level": 0.9,
        },
    ),
    (
        displays.ForecastDisplay,
        "from_forecaster",
        {"forecaster": FORECASTER, "widths": [2, 4], "target": 0.5, "level": 0.9},
    ),
    (
        displays.ProbeHeatmapDisplay,
        None,
        {
            "accuracies": PROBES.pivot_table(index="concept", columns="model", values="accuracy"),
            "changes": PROBES.pivot_table(index="concept", columns="model", values="accuracy") - 0.9,
            "p_values": PROBES.assign(p_value=[1.0, 0.01]).pivot_table(
                index="concept", columns="model", values="p_value"
            ),
            "significance": 0.05,
            "colors": "accuracy",
        },
    ),
    (displays.ProbeHeatmapDisplay, "from_table", {"table": PROBES, "significance": 0.05, "colors": "accuracy"}),
    (displays.FeatureStaircaseDisplay, None, {"curves": CURVES, "score": "r2", "kept": {16: 2}}),
    (
        displays.FeatureStaircaseDisplay,
        "from_table",
        {"table": FEATURES, "score": "r2", "kept": {16: 10}, "n_bins": 5, "statistic": "mean"},
    ),
    (displays.FeatureStaircaseDisplay, "from_table", {"table": FEATURES, "predictor": FLOOR}),
    (displays.DistillationDisplay, None, {"history": HISTORY, "floors": FLOORS, "loss": "eval_kl"}),
    (displays.DistillationDisplay, "from_students", {"students": []}),
    (
        displays.DistilledFloorsDisplay,
        None,
        {"floors": FLOORS, "predicted": {"a": [0.2]}, "critical_widths": 9.0, "normalized": False},
    ),
    (displays.DistilledFloorsDisplay, "from_predictor", {"floors": FLOORS, "predictor": FLOOR, "scale": "log"}),
    (displays.DistillationSummaryDisplay, None, {"history": HISTORY, "floors": FLOORS, "predicted": [0.2]}),
    (
        displays.DistillationSummaryDisplay,
        "from_predictor",
        {"history": HISTORY, "floors": FLOORS, "predictor": FLOOR, "scale": "log"},
    ),
    (
        displays.FloorGridDisplay,
        None,
        {"points": POINTS, "measured": "floor", "spread": "floor_std", "predicted": "Eq. 2"},
    ),
    (
        displays.FloorGridDisplay,
        "from_summary",
        {"summary": POINTS, "measured": "floor", "spread": "floor_std", "predicted": "Eq. 2", "capacity": "minimax"},
    ),
    (
        displays.SparsityDisplay,
        None,
        {"points": POINTS, "measured": "floor", "spread": "floor_std", "predicted": "Eq. 2"},
    ),
    (displays.SparsityDisplay, "from_summary", {"summary": POINTS, "teacher_width": 5, "predicted": "Eq. 2"}),
    (displays.PredictionDisplay, None, {"measured": [0.1, 0.2], "predicted": {"a": [0.1, 0.2]}, "alphas": [0.8, 0.9]}),
    (displays.PredictionDisplay, "from_summary", {"summary": POINTS, "predicted": ("Eq. 2",), "measured": "floor"}),
    (displays.ErrorDisplay, None, {"errors": {"a": [-10, 10]}, "alphas": [0.8, 0.9]}),
    (displays.ErrorDisplay, "from_summary", {"summary": POINTS, "predicted": ("Eq. 2",), "measured": "floor"}),
    (displays.AccuracyDisplay, None, {"accuracies": {10: pd.DataFrame({3: [50.0]}, index=[0.9])}}),
    (displays.AccuracyDisplay, "from_summary", {"summary": POINTS, "predicted": "Eq. 2", "measured": "floor"}),
    (displays.CollapseDisplay, None, {"points": POINTS}),
    (displays.CollapseDisplay, "from_summary", {"summary": POINTS, "total": "total", "measured": "floor"}),
    (displays.TrainingCurvesDisplay, None, {"history": STEPS, "n_columns": 2}),
]
