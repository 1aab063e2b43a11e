"""geofloor: how low a distilled student of a given width can get.

Import estimators from here, and functions from the package of their stage
(``from geofloor.theory import capacity``). Everything loads on first use: the theory loads neither torch nor
transformers.
"""

import lazy_loader

__version__ = "0.1.0.dev0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
