"""Mixins for estimators of several stages."""

from __future__ import annotations

import copy
import sys
from typing import Any, ClassVar

from sklearn.utils import Tags

from geofloor._validation import shown

# Functions of scikit-learn that read parameters in order to show them.
_SHOWING = {
    ("sklearn.utils._pprint", "_changed_params"),
    ("sklearn.utils._pprint", "_safe_repr"),
    ("sklearn.utils._pprint", "_pprint_estimator"),
    ("sklearn.base", "_get_params_html"),
}


class _Shown:
    """Stand-in for a model or tokenizer, with a repr of one word."""

    def __init__(self, value: Any) -> None:
        self._name = type(value).__name__

    def __repr__(self) -> str:
        return f"{self._name}(...)"


class ShortReprMixin:
    """Print parameters that are models or tokenizers as ``GPTNeoXForCausalLM(...)``.

    Put it before `sklearn.base.BaseEstimator`. It acts on text and HTML, also inside a pipeline or a search: these
    print an estimator by its parameters and never call its ``__repr__``, so that `get_params` has to know who asks.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get the parameters of this estimator.

        Parameters
        ----------
        deep : bool, default=True
            Whether to add the parameters of estimators among them.

        Returns
        -------
        params : dict
            Parameter names and values.
        """
        params: dict[str, Any] = super().get_params(deep)  # type: ignore[misc]
        caller = sys._getframe(1)
        if (caller.f_globals.get("__name__"), caller.f_code.co_name) in _SHOWING:
            return {name: _Shown(value) if _is_long(value) else value for name, value in params.items()}
        return params


def _is_long(value: Any) -> bool:
    torch, transformers = sys.modules.get("torch"), sys.modules.get("transformers")
    return (torch is not None and isinstance(value, torch.nn.Module)) or (
        transformers is not None and isinstance(value, transformers.PreTrainedTokenizerBase)
    )


class SharedParametersMixin:
    """Share fitted or large parameters between clones, and never change them.

    Put it before `sklearn.base.BaseEstimator`, after `ShortReprMixin`. A class lists the parameters in
    ``_shared_parameters``. Clones hold the same objects, and parameters of these objects are neither listed nor set.
    """

    _shared_parameters: ClassVar[tuple[str, ...]] = ()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get the parameters of this estimator.

        Parameters
        ----------
        deep : bool, default=True
            Whether to add the parameters of estimators among them, except of those that clones share.

        Returns
        -------
        params : dict
            Parameter names and values.
        """
        params: dict[str, Any] = super().get_params(deep)  # type: ignore[misc]
        return {name: value for name, value in params.items() if not self._is_inside_shared(name)}

    def set_params(self, **params: Any) -> Any:
        """Set the parameters of this estimator.

        Parameters
        ----------
        **params : object
            Parameters by name, for those of a nested estimator ``<component>__<parameter>``.

        Returns
        -------
        self : estimator
            This estimator.

        Raises
        ------
        ValueError
            If a name is unknown, or lies inside an object that clones share.
        """
        for name, value in params.items():
            if self._is_inside_shared(name):
                outer = name.partition("__")[0]
                raise ValueError(
                    f"{name}={shown(value)} would change {outer}, which clones share; set {outer} to another object."
                )
        return super().set_params(**params)  # type: ignore[misc]

    def _is_inside_shared(self, name: str) -> bool:
        outer, inside, _ = name.partition("__")
        return bool(inside) and outer in self._shared_parameters

    def __sklearn_clone__(self) -> Any:
        shared = {name: getattr(self, name) for name in self._shared_parameters}
        shell = copy.copy(self)
        vars(shell).update(dict.fromkeys(shared))
        return super(SharedParametersMixin, shell).__sklearn_clone__().set_params(**shared)  # type: ignore[misc]


class WidthInputMixin:
    """Declare widths, in dimensions, as the input of an estimator: one dimension, none below zero."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.positive_only = True
        return tags
