"""Random states of scikit-learn for torch, without global seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch.utils._python_dispatch import TorchDispatchMode

from geofloor._validation import shown


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Draw one integer seed from a scikit-learn ``random_state``."""
    return int(read_random_state(random_state).randint(np.iinfo(np.int32).max))


def read_random_state(random_state: Any) -> np.random.RandomState:
    """Turn a scikit-learn ``random_state`` into a generator.

    Raises
    ------
    ValueError
        If it is neither a seed nor a generator; unlike scikit-learn's, the message names the argument.
    """
    try:
        return check_random_state(random_state)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"random_state={shown(random_state)} must be an integer from 0 to {2**32 - 1}, a RandomState or None."
        ) from error


def torch_generator(seed: int) -> torch.Generator:
    """Make a CPU generator, so that draws are the same whatever the device."""
    return torch.Generator(device="cpu").manual_seed(seed)


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Return the random generator of one step, so that a resumed loop needs no history."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(step,)))


class OwnDraws(TorchDispatchMode):
    """Take random draws of this thread, such as initial weights, from a local generator.

    The draws equal those after ``torch.manual_seed(seed)``; torch's global generators are neither used nor changed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            drawn_into = args[0].device if args and isinstance(args[0], torch.Tensor) else kwargs.get("device")
            device = torch.device(drawn_into or "cpu")
            if device.type != "meta":
                func, kwargs = _with_generator(func), {**kwargs, "generator": self._generator(device)}
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _with_generator(func: Any) -> Any:
    """Find the overload with a generator of a torch function."""
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func
    own = func._overloadname
    return getattr(func.overloadpacket, "generator" if own == "default" else f"{own}_generator")
