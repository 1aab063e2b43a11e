"""Estimators that hold a language model and print its class, not its tree of modules."""

from __future__ import annotations

import sys
from typing import Any

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
