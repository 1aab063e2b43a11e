"""geofloor: how low a distilled student of a given width can get.

Estimators are imported from here, functions from the module that names them
(``from geofloor.capacity import capacity``). Everything loads on first use, so that the theory
(`FloorPredictor` and what it stands on) loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_ESTIMATORS = {
    "FeatureStatistics": "statistics",
    "FloorPredictor": "floor",
    "AffineCalibrator": "calibration",
    "PowerLawCalibrator": "calibration",
    "SparseAutoencoder": "sparse_autoencoder",
    "ActivationExtractor": "language_models",
    "ActivationStore": "language_models",
}

__all__ = ["__version__", *_ESTIMATORS]  # noqa: PLE0604 - the names are strings

if TYPE_CHECKING:
    from geofloor.calibration import AffineCalibrator, PowerLawCalibrator
    from geofloor.floor import FloorPredictor
    from geofloor.language_models import ActivationExtractor, ActivationStore
    from geofloor.sparse_autoencoder import SparseAutoencoder
    from geofloor.statistics import FeatureStatistics


def __getattr__(name: str) -> Any:
    if name in _ESTIMATORS:
        return getattr(importlib.import_module(f"geofloor.{_ESTIMATORS[name]}"), name)
    raise AttributeError(f"module 'geofloor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ESTIMATORS])
