"""Toy models of superposition: the ground truth for predictions of the floor.

`ToyModel` trains one model on `SparseFeatures`, and `toy_sweep` thousands at once over a grid. `summarize_sweep` and
`predict_sweep` make its tables.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
