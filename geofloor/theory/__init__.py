"""Theory of the floor: capacity of a width, allocation of its dimensions, remaining loss.

`FloorPredictor` predicts floors from importances. An `Allocation` divides the dimensions of a student among features;
`capacity` counts the features per dimension, and distortion curves give the loss of a feature by its share.
Nothing here loads torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
