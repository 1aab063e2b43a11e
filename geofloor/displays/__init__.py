"""Figures: one Display class per file, in scikit-learn's manner.

The constructor stores its arguments. ``from_*`` computes and draws. ``plot`` checks the arguments and draws on given
axes, or in a given figure for several panels, or on new ones; it sets ``ax_`` or ``axes_`` and ``figure_``, and returns
the display. ``frame`` returns the data behind the figure as a DataFrame.

To add a display, write ``_name.py`` with one class and a ``_checked`` that ``plot`` and ``frame`` share; name it in one
line of ``__init__.pyi`` and one of ``docs/api/displays.rst``; test it in ``tests/displays/test_name.py``, with one call
in ``tests/display_calls.py``. Checks of tables are in ``_tables.py``, shared artists in ``_drawing.py``, and colors and
labels in ``_style.py``. Import matplotlib only inside functions.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
