"""The paper's tables, losses that others published, the embedded teacher, text corpora and concepts.

All of it comes with the library or is read from the local Python installation; `pile_concepts` alone reads rows of
The Pile.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
