"""Linear probes of hidden states, for concepts and for single features.

`ConceptProbe` tests one concept, `probe_table` compares students with their teacher over concepts, and
`feature_probes` does so for the latents of an autoencoder.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
