"""A teacher, from text to activations, and measurements without students.

`token_blocks` turns text into tokens, and `ActivationExtractor` tokens into activations. `dictionary_report` measures a
dictionary by the teacher's loss with reconstructed activations. `AblationPredictor`, `BottleneckPredictor` and
`zero_width_kl` predict losses of students from the teacher's logits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
