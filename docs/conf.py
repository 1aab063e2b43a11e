"""Sphinx configuration: ``sphinx-build -W --keep-going docs docs/_build/html``."""

import os
import re

from sphinx.ext import autosummary

import geofloor

project = "geofloor"
author = "The geofloor developers"
copyright = author
release = geofloor.__version__
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
# Inventories come from the network, which a build must not need: set GEOFLOOR_INTERSPHINX=1 to link to these projects.
if os.environ.get("GEOFLOOR_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "transformers": ("https://huggingface.co/docs/transformers/main/en", None),
    }
templates_path = ["_templates"]
exclude_patterns = ["_build", "auto_examples/*.ipynb", "auto_examples/*.py"]
default_role = "py:obj"
smartquotes = False  # default="auto" is code

autosummary_generate = True
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.",)  # no end of a summary sentence
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the docstrings
numpydoc_show_class_members = False  # the class template lists a class's own methods
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # Other scripts, and those with "slow" in their name, are listed without being run.
    "filename_pattern": r"[\\/]plot_(?!\w*slow)\w*\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "doc_module": ("geofloor",),
    "backreferences_dir": "api/generated/backreferences",
    "reference_url": {"geofloor": None},
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "thumbnail_size": (400, 280),
}

html_theme = "pydata_sphinx_theme"
html_title = "geofloor"
html_static_path = ["_static"]
html_css_files = ["geofloor.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "geofloor"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_prev_next": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "get_started": []}


def _skip_generated(app, what, name, obj, skip, options):
    """Skip generated members: scikit-learn's request setters and the fields of named tuples."""
    is_request = name.startswith("set_") and name.endswith("_request")
    return True if is_request or type(obj).__name__ == "_tuplegetter" else None


_LITERAL_OR_FITTED = re.compile(r"(``.+?``|`.+?`)|(?<![\w.])([A-Za-z]\w*)_(?=[\s,.;:)\]]|$)")


def _escape_fitted(app, what, name, obj, options, lines):
    """Escape the underscore of ``n_features_`` in the plain text of docstrings: unescaped it makes a link."""
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[index] = _LITERAL_OR_FITTED.sub(lambda found: found[1] or found[2] + r"\_", line)


def setup(app):
    app.connect("autodoc-process-docstring", _escape_fitted, priority=900)  # after numpydoc
    app.connect("autodoc-skip-member", _skip_generated)
