"""Figures: one Display class each, in scikit-learn's manner.

The constructor stores, ``from_*`` computes and draws, and ``plot`` draws on given axes, or in a given
figure where there are several panels, or on new ones.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
