"""Random state as scikit-learn means it, handed to torch without touching global seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch.utils._python_dispatch import TorchDispatchMode

from geofloor._validation import shown


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """One integer seed out of a scikit-learn ``random_state``."""
    return int(read_random_state(random_state).randint(np.iinfo(np.int32).max))


def read_random_state(random_state: Any) -> np.random.RandomState:
    """Turn a scikit-learn ``random_state`` into a generator.

    Raises
    ------
    ValueError
        If it is no seed and no generator; the message names the argument, which scikit-learn's does not.
    """
    try:
        return check_random_state(random_state)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"random_state={shown(random_state)} must be an integer from 0 to {2**32 - 1}, a RandomState or None."
        ) from error


def torch_generator(seed: int) -> torch.Generator:
    """A CPU generator of its own; draws made on the CPU are the same on every device."""
    return torch.Generator(device="cpu").manual_seed(seed)


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The random stream of one step: a resumed loop needs to know the step, and no history."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(step,)))


class OwnDraws(TorchDispatchMode):
    """Let random draws of this thread, such as those that initialize layers, come from a generator of its own.

    They are those that ``torch.manual_seed(seed)`` would give, and neither use nor change torch's global generators.
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
    """The overload of a function of torch that takes a generator."""
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func
    own = func._overloadname
    return getattr(func.overloadpacket, "generator" if own == "default" else f"{own}_generator")
