"""Evaluation mode and forward hooks for modules shared by threads."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

_LOCK = threading.Lock()
# Number of `evaluating` contexts open on each module that was in training mode before the first of them.
_N_OPEN: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Keep a module in evaluation mode, and restore the mode of each submodule afterwards.

    Threads may share the module: the last of them to leave restores the modes.
    """
    with _LOCK:
        trained = [each for each in module.modules() if each.training or each in _N_OPEN]
        for each in trained:
            _N_OPEN[each] = _N_OPEN.get(each, 0) + 1
    try:
        if trained:
            module.eval()
        yield
    finally:
        with _LOCK:
            for each in trained:
                _N_OPEN[each] -= 1
                if not _N_OPEN[each]:
                    del _N_OPEN[each]
                    each.training = True


@contextlib.contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """Set a hook on a module's forward passes in this thread only.

    Other threads that share the module run it without the hook.

    Parameters
    ----------
    module : torch.nn.Module
        The module.
    hook : callable
        Argument for ``register_forward_hook``, or for ``register_forward_pre_hook`` if `before`.
    before : bool, default=False
        Whether the hook runs before the forward pass.
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
