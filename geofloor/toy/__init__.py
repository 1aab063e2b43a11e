"""Toy models of superposition: the ground truth that predictions of the floor are tested on."""

from geofloor.toy._features import SparseFeatures
from geofloor.toy._model import ToyModel
from geofloor.toy._sweep import SweepError, predict_sweep, summarize_sweep, toy_sweep

__all__ = ["SparseFeatures", "SweepError", "ToyModel", "predict_sweep", "summarize_sweep", "toy_sweep"]
