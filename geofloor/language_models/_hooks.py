"""Modes and hooks of modules that threads share."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

_MODES = threading.Lock()


_EVALUATED: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Keep a module in evaluation mode; afterwards put back in training mode what was.

    Threads may share the module: of several at once, the last to leave puts back.
    """
    with _MODES:
        parts = [part for part in module.modules() if part.training or part in _EVALUATED]
        for part in parts:
            _EVALUATED[part] = _EVALUATED.get(part, 0) + 1
    try:
        if parts:
            module.eval()
        yield
    finally:
        with _MODES:
            for part in parts:
                _EVALUATED[part] -= 1
                if not _EVALUATED[part]:
                    del _EVALUATED[part]
                    part.training = True


@contextlib.contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """Hook a module's forward passes in this thread; those of other threads that share the module stay untouched.

    Parameters
    ----------
    module : torch.nn.Module
    hook : callable
        What ``register_forward_hook`` takes, or ``register_forward_pre_hook`` if `before`.
    before : bool, default=False
    """
    owner = threading.get_ident()

    def in_this_thread(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == owner else None

    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(in_this_thread)
    try:
        yield
    finally:
        handle.remove()
