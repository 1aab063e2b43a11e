"""geofloor: how low a distilled student of a given width can get.

Estimators are imported from here, functions from the module that names them
(``from geofloor.capacity import capacity``). Everything loads on first use, so that the theory
(`FloorPredictor` and what it stands on) loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geofloor.ablation import AblationPredictor
    from geofloor.bottleneck import BottleneckPredictor
    from geofloor.calibration import AffineCalibrator, PowerLawCalibrator
    from geofloor.distillation import DistilledStudent
    from geofloor.floor import FloorPredictor
    from geofloor.language_models import ActivationExtractor, ActivationStore
    from geofloor.planning import LossForecaster
    from geofloor.probing import ConceptProbe
    from geofloor.sparse_autoencoder import SparseAutoencoder
    from geofloor.statistics import FeatureStatistics
    from geofloor.toy import ToyModel

__version__ = "0.1.0.dev0"
__all__ = [
    "AblationPredictor",
    "ActivationExtractor",
    "ActivationStore",
    "AffineCalibrator",
    "BottleneckPredictor",
    "ConceptProbe",
    "DistilledStudent",
    "FeatureStatistics",
    "FloorPredictor",
    "LossForecaster",
    "PowerLawCalibrator",
    "SparseAutoencoder",
    "ToyModel",
    "__version__",
]

_MODULE_OF = {
    "AblationPredictor": "ablation",
    "ActivationExtractor": "language_models",
    "ActivationStore": "language_models",
    "AffineCalibrator": "calibration",
    "BottleneckPredictor": "bottleneck",
    "ConceptProbe": "probing",
    "DistilledStudent": "distillation",
    "FeatureStatistics": "statistics",
    "FloorPredictor": "floor",
    "LossForecaster": "planning",
    "PowerLawCalibrator": "calibration",
    "SparseAutoencoder": "sparse_autoencoder",
    "ToyModel": "toy",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"geofloor.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'geofloor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
