"""Figures: one Display class each, in scikit-learn's manner.

The constructor stores, ``from_*`` computes and draws, and ``plot`` draws on given axes, or in a given
figure where there are several panels, or on new ones.
"""

from geofloor.displays._distillation import (
    DistillationDisplay,
    DistillationSummaryDisplay,
    DistilledFloorsDisplay,
)
from geofloor.displays._floors import CalibrationDisplay, CapacityDisplay, FloorDisplay, SpectrumDisplay
from geofloor.displays._forecasts import ForecastDisplay
from geofloor.displays._probes import FeatureStaircaseDisplay, ProbeHeatmapDisplay
from geofloor.displays._sweeps import (
    AccuracyDisplay,
    CollapseDisplay,
    ErrorDisplay,
    FloorGridDisplay,
    PredictionDisplay,
    SparsityDisplay,
    TrainingCurvesDisplay,
)

__all__ = [
    "AccuracyDisplay",
    "CalibrationDisplay",
    "CapacityDisplay",
    "CollapseDisplay",
    "DistillationDisplay",
    "DistillationSummaryDisplay",
    "DistilledFloorsDisplay",
    "ErrorDisplay",
    "FeatureStaircaseDisplay",
    "FloorDisplay",
    "FloorGridDisplay",
    "ForecastDisplay",
    "PredictionDisplay",
    "ProbeHeatmapDisplay",
    "SparsityDisplay",
    "SpectrumDisplay",
    "TrainingCurvesDisplay",
]
