"""Pickle estimators with models on an accelerator, to be read on a machine without one."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch

from geofloor.language_models._loading import on_device


class PortablePickleMixin:
    """Pickle an estimator's models as copies on the CPU. Copies in memory stay on their device.

    Put it before `sklearn.base.BaseEstimator`.
    """

    def __getstate__(self) -> dict[str, Any]:
        found: Any = super().__getstate__()
        left_out = self._not_pickled()
        state = {name: value for name, value in found.items() if name not in left_out}
        moved: dict[int, torch.nn.Module] = {}  # two attributes may hold one model
        for name, value in state.items():
            if isinstance(value, torch.nn.Module):
                if id(value) not in moved:
                    moved[id(value)] = on_device(value, torch.device("cpu"))
                state[name] = moved[id(value)]
        if state.get("model_") is not self.__dict__.get("model_") and "device_" in state:
            state["device_"] = "cpu"
        return state

    def _not_pickled(self) -> Collection[str]:
        """Return the names of attributes left out of pickles and copies, to be computed again."""
        return ()

    def __copy__(self) -> Any:
        shell = type(self).__new__(type(self))
        shell.__dict__.update(self.__dict__)
        return shell

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        shell = self.__copy__()
        memo[id(self)] = shell
        left_out = self._not_pickled()
        shell.__dict__ = {
            name: copy.deepcopy(value, memo) for name, value in self.__dict__.items() if name not in left_out
        }
        return shell
