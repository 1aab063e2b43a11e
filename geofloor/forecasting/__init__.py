"""Forecast the loss of students of any width from runs of a few.

`LossForecaster` fits one of the laws of this package to runs, with intervals and a decision. Calibrators turn floors
into losses, and tables compare forecasts with each other and with measurements.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
