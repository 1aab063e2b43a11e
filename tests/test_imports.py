"""Imports point one way, and public things are documented."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import geofloor

ROOT = Path(geofloor.__file__).parent
# Each package may import those before it, and third-party libraries where it is listed.
PACKAGES = [
    "_validation",
    "_files",
    "_estimators",
    "theory",
    "_training",
    "features",
    "language_models",
    "students",
    "forecasting",
    "probing",
    "toy",
    "datasets",
    "displays",
    "planning",
    "__main__",
]
THIRD_PARTY = {
    "torch": {"_training", "features", "language_models", "students", "planning", "toy", "datasets"},
    "safetensors": {"_files", "_training", "features"},
    "accelerate": {"_training"},
    "transformers": {"_training", "language_models", "students", "planning", "datasets"},
    "datasets": {"language_models", "students", "planning"},
    "tokenizers": {"datasets"},
    "matplotlib": {"displays", "planning"},
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module


def top(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_package_has_a_place():
    assert {top(path) for path in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_downwards_only(path):
    for name in imported(path):
        library, *rest = name.split(".")
        if library == "geofloor":
            assert rest, f"{path} imports from the package root"
            assert PACKAGES.index(rest[0]) <= PACKAGES.index(top(path)), f"{path} imports {name}"
        elif library in THIRD_PARTY:
            assert top(path) in THIRD_PARTY[library], f"{path} imports {name}"


@pytest.mark.parametrize(
    "use",
    [
        "geofloor.FloorPredictor",
        "geofloor.theory.capacity",
        "geofloor.FeatureStatistics",
        "geofloor.language_models.token_blocks",
        "geofloor.forecasting.forecast_table",
        "geofloor.datasets.load_paper_tables",
    ],
)
def test_what_needs_no_torch_loads_none(use):
    code = f"import sys, geofloor; {use}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def public_objects():
    for module in [geofloor, *(importlib.import_module(f"geofloor.{name}") for name in PACKAGES if name[0] != "_")]:
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value


@pytest.mark.parametrize(
    ("name", "value"), sorted(set(public_objects())), ids=lambda v: v if isinstance(v, str) else ""
)
def test_public_docstrings_tell_parameters_results_and_errors(name, value):
    documentation = inspect.getdoc(value)
    assert documentation, name
    if inspect.isclass(value) and not issubclass(value, tuple | Warning):
        for method_name, method in inspect.getmembers(value, inspect.isfunction):
            if not method_name.startswith("_") and method.__module__.startswith("geofloor"):
                text = inspect.getdoc(method) or ""
                takes = [p for p in inspect.signature(method).parameters if p != "self"]
                assert not takes or "Parameters\n----------" in text, f"{name}.{method_name}"
    elif inspect.isfunction(value) and inspect.signature(value).parameters:
        assert "Parameters\n----------" in documentation, name
        assert "Examples\n--------" in documentation, name


def test_every_public_name_can_be_imported_and_an_unknown_one_cannot():
    for name in geofloor.__all__:
        assert getattr(geofloor, name) is not None
    assert set(geofloor.__all__) <= set(dir(geofloor))
    with pytest.raises(AttributeError, match="No geofloor attribute FloorPredicter"):
        geofloor.FloorPredicter  # noqa: B018
