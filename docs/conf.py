"""Sphinx configuration: ``sphinx-build -W --keep-going docs docs/_build/html``."""

import inspect
import os
import re

from sphinx.ext import autosummary
from sphinx.util.nodes import make_refnode

import geofloor

os.environ.setdefault("TQDM_DISABLE", "1")  # bars of examples are no output

project = "geofloor"
author = "The geofloor developers"
copyright = author
release = geofloor.__version__
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",  # a copy of MathJax: formulas are readable without a network
]
nitpicky = True
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
else:
    nitpick_ignore_regex = [("py:.*", r"(numpy|scipy|sklearn|torch|transformers)\..*")]  # these are in the inventories
nitpick_ignore = [("py:obj", "LogisticRegression")]  # of scikit-learn, named so in a docstring
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
    "default_thumb_file": os.path.join(os.path.dirname(__file__), "_static", "forecast.png"),  # of the plan
}

html_theme = "pydata_sphinx_theme"
html_title = "geofloor"
html_static_path = ["_static"]
html_css_files = ["geofloor.css"]
html_show_sourcelink = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_theme_options = {
    "logo": {"text": "geofloor"},
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "navbar_end": ["theme-switcher"],
    "show_prev_next": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "faq": [], "cite": []}


def _skip_generated(app, what, name, obj, skip, options):
    """Skip what others wrote or generated: scikit-learn's methods and request setters, fields of named tuples."""
    is_request = name.startswith("set_") and name.endswith("_request")
    module = getattr(getattr(obj, "fget", obj), "__module__", None) or ""
    is_foreign = what == "class" and callable(obj) and not module.startswith("geofloor")
    return True if is_request or is_foreign or type(obj).__name__ == "_tuplegetter" else None


_LITERAL_OR_FITTED = re.compile(r"(``.+?``|`.+?`)|(?<![\w.])([A-Za-z]\w*)_(?=[\s,.;:)\]]|$)")
_ENUMERATOR = re.compile(r"^(\s*)([A-Za-z]|[ivxlcdm]+|[IVXLCDM]+)\.(?=\s|$)")
_NAME = re.compile(r"(?<![`:])`([a-z]\w*|X)`(?!`)")
_FUNCTIONS = {name for package in geofloor.__all__ for name in getattr(getattr(geofloor, package), "__all__", ())}


def _parameters(obj):
    try:
        return inspect.signature(obj).parameters
    except (TypeError, ValueError):  # a module, a property
        return {}


def _mend_line(line, mark, functions):
    line = _NAME.sub(lambda found: found[0] if found[1] in functions else f"{mark}{found[1]}{mark}", line)
    line = _LITERAL_OR_FITTED.sub(lambda found: found[1] or found[2] + r"\_", line)
    return _ENUMERATOR.sub(r"\1\\\2.", line)


def _mend_docstring(app, what, name, obj, options, lines):
    """Mark parameters and attributes as literals, and keep ``n_features_`` from being a link and ``T.`` a list."""
    functions = _FUNCTIONS - {*_parameters(obj), *_parameters(getattr(geofloor, name.split(".")[1], None))}
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            # Two more characters would not fit in the heading of a table.
            is_heading = "".join(lines[index + 1 : index + 2]).lstrip().startswith("==")
            lines[index] = _mend_line(line, "*" if is_heading else "``", functions)


def _find_by_last_names(app, env, node, contnode):
    """Resolve ``LossForecaster`` or ``LossForecaster.fit`` from any module, if only one object has that name."""
    if node.get("refdomain") != "py" or node["reftarget"].startswith("."):
        return None
    suffix = "." + node["reftarget"]
    kinds = ("class", "exception", "function") if suffix.count(".") == 1 else ("method", "property", "attribute")
    objects = env.domains["py"].objects
    found = [
        (name, entry)
        for name, entry in objects.items()
        if name.endswith(suffix) and entry.objtype in kinds and not entry.aliased
    ]
    if len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def setup(app):
    app.connect("autodoc-process-docstring", _mend_docstring, priority=900)  # after numpydoc
    app.connect("autodoc-skip-member", _skip_generated)
    app.connect("missing-reference", _find_by_last_names, priority=600)
