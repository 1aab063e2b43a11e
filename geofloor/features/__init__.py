"""Features of a teacher, from its activations.

`SparseAutoencoder` learns a dictionary and turns activations into codes; `fit_autoencoders` fits several at once.
`FeatureStatistics` turns codes into a table of features: importance, firing rate and mean. `bootstrap_floors` gives
floors their sampling error.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
