"""Toy models of superposition: the ground truth for predictions of the floor."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
