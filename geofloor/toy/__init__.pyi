from ._features import SparseFeatures as SparseFeatures
from ._model import ToyModel as ToyModel
from ._runner import SweepError as SweepError
from ._sweep import toy_sweep as toy_sweep
from ._tables import predict_sweep as predict_sweep
from ._tables import summarize_sweep as summarize_sweep
