"""Decide which width to distill: a plan, its cost, and its report.

`plan_distillation` goes from a teacher and text to a `Plan`. The command ``geofloor`` does the same from the console.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
