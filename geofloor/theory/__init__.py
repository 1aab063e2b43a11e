"""Theory of the floor: capacity of a width, allocation of its dimensions, remaining loss."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
