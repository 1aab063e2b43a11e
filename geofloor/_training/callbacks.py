"""Tell scikit-learn's callbacks and trackers how a fit proceeds.

`sklearn.callback` is experimental. Without it, estimators have no `set_callbacks`, and `FitTasks` tells trackers only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from geofloor._training.processes import ALONE, Processes
from geofloor._training.reports import Reports

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks

    HAS_CALLBACKS = hasattr(CallbackSupportMixin, "_init_callback_context")
except ImportError:
    HAS_CALLBACKS = False

if not HAS_CALLBACKS:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Add nothing, because this scikit-learn has no callbacks."""


def attributes_set(
    estimator: Any, publish: Callable[[Any], object], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """Return the attributes that a function sets on an estimator, and leave the estimator as it is.

    Parameters
    ----------
    estimator : estimator
        Estimator that is being fitted.
    publish : callable
        Function that sets attributes on a shallow copy of it.
    without : collection of str, default=()
        Attributes to leave out.

    Returns
    -------
    attributes : dict
        New and changed attributes.
    """
    shell = copy.copy(estimator)
    publish(shell)
    own, missing = vars(estimator), object()
    return {
        name: value
        for name, value in vars(shell).items()
        if own.get(name, missing) is not value and name not in without
    }


class FitTasks:
    """Tasks of one fit, as callbacks and trackers see them. Without either, every method does nothing.

    Use it as a context, so that callbacks are torn down even if the fit fails. The fit is one task, and its parts are
    tasks inside it, one after the other. Of several processes the main one calls the callbacks, and all take part in
    every call of a method.

    Parameters
    ----------
    estimator : estimator or None, default=None
        Estimator with `CallbackSupportMixin`; None for a fit without callbacks.
    X : object, default=None
        Data of the fit, passed on to the callbacks.
    processes : Processes, default=ALONE
        Processes that train together.
    attributes_at : callable or None, default=None
        Function of the state of training that returns the attributes of the estimator fitted so far. It is called if a
        callback asks for the estimator.
    reports : Reports or None, default=None
        Open reports to trackers, of the main process. They get the measurements of each part.
    label : str, default=""
        Label of this fit in `reports`.
    """

    def __init__(
        self,
        estimator: Any = None,
        X: Any = None,
        processes: Processes = ALONE,
        attributes_at: Callable[[Any], dict[str, Any]] | None = None,
        reports: Reports | None = None,
        label: str = "",
    ) -> None:
        self._estimator, self._X, self._processes, self._attributes_at = estimator, X, processes, attributes_at
        self._reports, self._label = reports, label
        self._root: Any = None
        self._part: Any = None
        self._name = ""
        self._is_open = False
        self._has_callbacks = HAS_CALLBACKS and bool(getattr(estimator, "_skl_callbacks", None))
        is_watched = self._has_callbacks or bool(reports)
        self.is_watched: bool = estimator is not None and processes.everyone(is_watched)[0]

    def __enter__(self) -> FitTasks:
        return self

    def __exit__(self, *error: object) -> None:
        if self._root is not None:
            # The decorator tears the callbacks down when the function that it wraps returns.
            with_callbacks(lambda estimator: None)(self._estimator)
            self._root = None

    def begin(self, n_tasks: int | None, name: str) -> None:
        """Begin the fit.

        Parameters
        ----------
        n_tasks : int or None
            Number of its parts; None if unknown.
        name : str
            Name of each part.
        """
        if self.is_watched:
            self._name = name
            self._processes.on_main(self._begin, n_tasks)

    def begin_task(self) -> None:
        """Begin the next part, unless one is open."""
        if self.is_watched and not self._is_open:
            self._is_open = True
            self._processes.on_main(self._begin_part)

    def end_task(self, measured: Mapping[str, Any], state: Any = None) -> bool:
        """End the open part, if one is open.

        Parameters
        ----------
        measured : mapping
            Measurements at this point, which callbacks receive as `metadata`.
        state : object, default=None
            State of training, for `attributes_at`.

        Returns
        -------
        stops : bool
            Whether a callback asks to end the fit.
        """
        if not (self.is_watched and self._is_open):
            return False
        self._is_open = False
        return bool(self._processes.on_main(self._end_part, measured, state))

    def end(self) -> None:
        """End the fit, after the estimator has its fitted attributes."""
        if self.is_watched:
            self._processes.on_main(self._end)

    def _begin(self, n_tasks: int | None) -> None:
        if not self._has_callbacks:
            return
        self._root = True  # so that callbacks are torn down if the setup of one fails
        self._root = self._estimator._init_callback_context(max_subtasks=n_tasks)
        self._root.call_on_fit_task_begin(estimator=self._estimator, X=self._X)

    def _begin_part(self) -> None:
        if self._root is None:
            return
        self._part = self._root.subcontext(task_name=self._name)
        self._part.call_on_fit_task_begin(estimator=self._estimator, X=self._X)

    def _end_part(self, measured: Mapping[str, Any], state: Any) -> bool:
        if self._reports:
            self._reports.log(measured, self._label)
        if self._root is None:
            return False
        return bool(
            self._part.call_on_fit_task_end(
                estimator=self._estimator,
                X=self._X,
                metadata=dict(measured),
                reconstruction_attributes=self._attributes_at and partial(self._attributes_at, state),
            )
        )

    def _end(self) -> None:
        if self._root is None:
            return
        self._root.call_on_fit_task_end(estimator=self._estimator, X=self._X, reconstruction_attributes={})
