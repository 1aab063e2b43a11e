"""Imports point one way, and public things are documented."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import geofloor

ROOT = Path(geofloor.__file__).parent
# Each module may import those on its own level's left and all levels above this line of it.
LEVELS = [
    ["_validation", "_runs", "_short_repr", "_streams", "_columns", "capacity", "allocation", "distortion"],
    ["_widths", "statistics", "floor", "calibration", "agreement", "uncertainty", "probing", "forecasting", "planning"],
    ["_training", "_files", "_sparse_step", "_autoencoder_settings", "_divergence", "sparse_autoencoder", "toy"],
    [
        "_token_rows",
        "_causal",
        "_portable",
        "_saved_students",
        "_student_settings",
        "_student_progress",
        "_principal",
        "tokens",
        "language_models",
        "students",
        "_distilling",
        "distillation",
        "ablation",
        "bottleneck",
    ],
    ["datasets", "displays"],
]
RANK = {name: (level, place) for level, names in enumerate(LEVELS) for place, name in enumerate(names)}
THIRD_PARTY_FROM_LEVEL = {
    "torch": 2,
    "safetensors": 2,
    "accelerate": 2,
    "transformers": 3,
    "datasets": 3,
    "tokenizers": 4,
    "matplotlib": 4,
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


def test_every_module_has_a_level():
    assert {top(path) for path in MODULES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_downwards_only(path):
    rank = RANK[top(path)]
    for name in imported(path):
        package, *rest = name.split(".")
        if package == "geofloor":
            assert rest, f"{path} imports from the package root"
            assert rest[0] == top(path) or RANK[rest[0]] < rank, f"{path} imports {name}"
        elif package in THIRD_PARTY_FROM_LEVEL:
            assert rank[0] >= THIRD_PARTY_FROM_LEVEL[package], f"{path} imports {name}"


def public_objects():
    for module_info in pkgutil.walk_packages(geofloor.__path__, "geofloor."):
        if any(part.startswith("_") for part in module_info.name.split(".")[1:]) or "train_teacher" in module_info.name:
            continue
        module = importlib.import_module(module_info.name)
        for name, value in vars(module).items():
            defined_here = getattr(value, "__module__", "").startswith(module_info.name)
            if defined_here and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                yield f"{module_info.name}.{name}", value


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
    with pytest.raises(AttributeError, match="no attribute 'FloorPredicter'"):
        geofloor.FloorPredicter  # noqa: B018
