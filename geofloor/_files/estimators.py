"""Save small fitted estimators in one file each, and read them without running code of the file.

A class lists its fitted attributes with the check of each, as for other files: see `geofloor._files.schema`. A file is
JSON if its arrays are small. Otherwise it is safetensors, with the same JSON in the header.
"""

from __future__ import annotations

import dataclasses
import importlib
import numbers
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from geofloor._files.schema import Field, fields, mapping, plain, refusing, text
from geofloor._files.tables import read_table_file, write_table_file
from geofloor._validation import check_number, plain_array, shown

_PACKAGES = ("theory", "features", "language_models", "forecasting")
_DEEPEST = 4  # estimators and laws inside each other; the library needs 3
_LONGEST_NAME = 100


class LeftOut:
    """Stand-in for a parameter that a file could not hold, such as a dictionary of another library.

    Parameters
    ----------
    kind : str
        Name of the class of the parameter.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"LeftOut({self.kind!r})"


def check_not_left_out(estimator: Any, *names: str) -> None:
    """Refuse to fit with parameters that a file left out.

    Raises
    ------
    ValueError
        Names the parameter, and says how to give it.
    """
    for name in names:
        if isinstance(value := getattr(estimator, name), LeftOut):
            raise ValueError(
                f"{name} was a {value.kind}, which the file of this {type(estimator).__name__} leaves out; give it by "
                f"set_params({name}=...) before fit, or set_params({name}=None)."
            )


class SaveMixin:
    """Save a fitted estimator with `save`, and read it with `load`.

    Put it before `sklearn.base.BaseEstimator`. A class lists the fitted attributes of its files in ``_saved``, with the
    check of each. If predictions need more, `_restore` computes it.
    """

    _saved: ClassVar[Mapping[str, Field]] = {}
    _not_saved: ClassVar[frozenset[str]] = frozenset()  # parameters that no file holds; after `load`, the defaults

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to one file, with its parameters.

        Parameters
        ----------
        path : str or path
            File to write, atomically, under any name. It is JSON, or safetensors if there are more than 4,096 numbers
            in arrays. `load` tells them apart. All numbers keep their bits.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError
            If no file can hold a parameter, such as a function, or a law or allocation of your own class.
        """
        write_table_file(path, type(self).__name__, _describe(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an estimator written by `save`, without running code of the file.

        Parameters
        ----------
        path : str or path
            The file.

        Returns
        -------
        estimator : estimator
            The fitted estimator. Its predictions have the bits of those of the saved one.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If the file is truncated or altered, was written by a newer version of geofloor, or holds something else.
        """
        document = read_table_file(path, cls.__name__)
        with refusing(path):
            try:
                return _build(cls, document)
            except ValueError:
                raise
            except Exception as error:  # odd values in a file raise errors of any kind
                raise ValueError(f"{type(error).__name__}: {error}") from error

    def _parameters_to_save(self) -> dict[str, Any]:
        """Return the parameters for a file."""
        parameters: dict[str, Any] = self.get_params(deep=False)  # type: ignore[attr-defined]
        if not isinstance(parameters.get("random_state", 0), numbers.Integral):
            parameters["random_state"] = None  # the state of a generator is no parameter
        return {name: value for name, value in parameters.items() if name not in self._not_saved}

    def _state_to_save(self) -> dict[str, Any]:
        """Return the values behind the names of ``_saved``: numbers, texts, arrays, DataFrames, lists or None."""
        return {name: getattr(self, name) for name in self._saved}

    def _restore(self, state: dict[str, Any]) -> None:
        """Take the checked values of a file; raise any error if they do not belong together."""
        for name, value in state.items():
            setattr(self, name, value)


# Writing


def _describe(estimator: Any) -> dict[str, Any]:
    check_is_fitted(estimator)
    parameters = estimator._parameters_to_save()
    return {
        "parameters": {name: _plain(name, value) for name, value in parameters.items()},
        "fitted": {name: _columns(value) for name, value in estimator._state_to_save().items()},
    }


def _columns(value: Any) -> Any:
    """Turn a DataFrame into a mapping of arrays."""
    if hasattr(value, "columns"):
        return {name: value[name].to_numpy() for name in value.columns}
    return value.item() if isinstance(value, np.generic) else value


def _plain(name: str, value: Any, *, inside: bool = False) -> Any:
    """Turn a parameter into a value of JSON."""
    if hasattr(value, "__array__") or hasattr(value, "item"):  # arrays, tensors and their numbers
        array = np.asarray(plain_array(value, name))
        value = array.item() if array.ndim == 0 else array.tolist()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return check_number(name, value, whole=isinstance(value, int))
    if isinstance(value, list | tuple | range) and not inside:
        return [_plain(name, each, inside=True) for each in value]
    if isinstance(value, LeftOut):
        return {"left out": value.kind}
    kind = type(value)
    if not inside and _find(kind.__name__) is kind:
        if isinstance(value, SaveMixin):
            return {"class": kind.__name__, **_describe(value)}
        return {
            "class": kind.__name__,
            "fields": {each.name: _plain(name, getattr(value, each.name)) for each in dataclasses.fields(value)},
        }
    raise ValueError(
        f"{name}={shown(value)} is a {kind.__name__}, which no file can hold; give a number, a text, or a fitted "
        "predictor, law or allocation of geofloor."
    )


def _find(name: str) -> type | None:
    """Find a public class of geofloor that files may name: one with `save`, or a frozen dataclass."""
    for package in _PACKAGES:
        module = importlib.import_module(f"geofloor.{package}")
        if name in module.__all__:
            found: Any = getattr(module, name)
            frozen = dataclasses.is_dataclass(found) and getattr(found, "__dataclass_params__").frozen  # noqa: B009
            return found if isinstance(found, type) and (issubclass(found, SaveMixin) or frozen) else None
    return None


# Reading


def _build(kind: Any, document: Any, depth: int = 0) -> Any:
    """Build an estimator from its parameters and its fitted state."""
    content = fields(parameters=mapping, fitted=fields(**kind._saved))(kind.__name__, document)
    names = [name for name in kind._get_param_names() if name not in kind._not_saved]
    unknown = sorted(content["parameters"].keys() - set(names))
    if unknown:
        raise ValueError(f"its {kind.__name__} has the unknown parameters {unknown!r:.80}")
    # Parameters that a later version adds are missing in earlier files, and get their defaults.
    estimator = kind(**{name: _rebuilt(name, value, depth) for name, value in content["parameters"].items()})
    estimator._restore(content["fitted"])
    return estimator


def _rebuilt(name: str, value: Any, depth: int) -> Any:
    """Turn a value of JSON into a parameter."""
    if not isinstance(value, dict):
        return plain(name, value)
    if value.keys() == {"left out"}:
        return LeftOut(text(name, value["left out"])[:_LONGEST_NAME])
    if depth >= _DEEPEST:
        raise ValueError(f"{name} holds more than {_DEEPEST} objects inside each other")
    rest = dict(value)
    kind = _find(text(f"{name}.class", rest.pop("class", None)))
    if kind is None:
        raise ValueError(f"{name} is of the class {value['class']!r:.60}, which this geofloor does not read")
    if issubclass(kind, SaveMixin):
        return _build(kind, rest, depth + 1)
    expected = {each.name: _parameter(depth + 1) for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**fields(fields=fields(**expected))(name, rest)["fields"])


def _parameter(depth: int) -> Field:
    """Allow a parameter that is plain, or an object at a depth inside others."""
    return lambda name, value: _rebuilt(name, value, depth)
