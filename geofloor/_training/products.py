"""Matrix products, and a switch that takes those in float32 on a CPU from oneDNN where torch takes them from MKL.

Set the environment variable ``GEOFLOOR_ONEDNN=1`` before geofloor is imported to turn it on; by default every product
is torch's own. On an AMD CPU of Zen 5, MKL takes 1.3 to 3.4 times as long as oneDNN (measured:
``benchmarks/products.py``); on Intel's CPUs, MKL is faster for most products. torch has no public switch for this, so
that the code below calls a private function of it. Products on accelerators, in other precisions, of few numbers, or
under ``torch.backends.mkldnn.flags(enabled=False)`` stay torch's own.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_SWITCH = "GEOFLOOR_ONEDNN"
_WORTH = 2**24  # multiplications; with fewer, oneDNN's own overhead is no less than what it saves
_CACHED = 2**22  # numbers of a sum that still fits a cache
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # and no subclass, which may be anything
_LINEAR: Any = None  # oneDNN's function, once it is turned on


def turn_on() -> None:
    """Take products from oneDNN from now on.

    Raises
    ------
    RuntimeError
        If this torch is built without MKL or without oneDNN, so that there is nothing to choose.
    """
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    global _LINEAR  # noqa: PLW0603 - the switch
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if found is None or not torch.backends.mkl.is_available():
        raise RuntimeError(f"{_SWITCH}=1 needs a torch with both MKL and oneDNN; unset it.")
    if found not in flop_registry:  # so that torch's counter of operations knows this function
        register_flop_formula(found)(lambda rows, weight, *_, **__: 2 * math.prod(rows) * weight[0])
    _LINEAR = found


def read_switch() -> None:
    """Turn oneDNN on if the environment asks for it.

    Raises
    ------
    ValueError
        If the variable is neither 0 nor 1.
    """
    value = os.environ.get(_SWITCH, "0")
    if value not in {"0", "1"}:
        raise ValueError(f"{_SWITCH}={value!r} must be 0 or 1.")
    if value == "1":
        turn_on()


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute rows (..., d) @ weight.T (d, n) + bias."""
    if _by_onednn(rows, weight, bias) and not _is_recorded(rows, weight, bias):
        return _onednn(rows, weight, bias)
    return torch.nn.functional.linear(rows, weight, bias)


def product(left: torch.Tensor, right: torch.Tensor, spare: torch.Tensor | None = None) -> torch.Tensor:
    """Compute left (m, k) @ right (k, n); a spare tensor (m, n) may serve as memory for it."""
    if _by_onednn(left, right.T) and not _is_recorded(left, right):
        return _onednn(left, right.T)
    return torch.mm(left, right, out=spare)


def zero_sum(like: torch.Tensor) -> torch.Tensor:
    """Make zeros (m, n) for `add_product`: tall ones by columns under oneDNN, because it writes wide results faster."""
    m, n = like.shape
    if _LINEAR is not None and like.device.type == "cpu" and n < m and m * n <= _CACHED:
        return torch.zeros((n, m), dtype=like.dtype).T
    return torch.zeros_like(like)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left.T (m, k) @ right (k, n) to a total (m, n), in place."""
    if total.dtype != left.dtype:
        total += left.T @ right
    elif total.T.is_contiguous() and total.numel() <= _CACHED and _by_onednn(right.T, left.T):
        total.T.add_(_onednn(right.T, left.T))
    else:
        total.addmm_(left.T, right)


def largest_matrix(module: torch.nn.Module) -> int:
    """Count the numbers in the largest matrix of a module, embeddings aside: its multiplications per row."""
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    sizes = (each.numel() for each in module.parameters() if each.ndim == 2 and id(each) not in embeddings)
    return max(sizes, default=0)


def faster_linear(n_rows: int, largest: int, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that computes linear layers as `linear` does, forward and backward.

    It does nothing unless oneDNN is on, the device is a CPU and the largest layer is worth it for that many rows:
    looking at every function takes time, too.
    """
    worth_it = _LINEAR is not None and device.type == "cpu" and n_rows * largest >= _WORTH
    return _FasterLinear() if worth_it else nullcontext()


class _FasterLinear(TorchFunctionMode):
    """Replace torch's linear layers by `_Linear` where oneDNN takes them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs:
            if func is torch.nn.functional.linear and _by_onednn(*args):
                return _Linear.apply(*args, *(None,) * (3 - len(args)))
            if func is torch.addmm and args[0].ndim == 1 and _by_onednn(args[1], args[2].T, args[0]):  # as in GPT-2
                return _Linear.apply(args[1], args[2].T, args[0])
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """A linear layer by oneDNN, with its gradients."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return _onednn(rows, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        on_rows = on_weight = on_bias = None
        flat = gradient.reshape(-1, weight.shape[0])
        if ctx.needs_input_grad[0]:
            on_rows = _onednn(flat, weight.T).view_as(rows)
        if ctx.needs_input_grad[1]:
            inputs = rows.reshape(-1, weight.shape[1])
            wide = weight.shape[0] < weight.shape[1]
            on_weight = _onednn(flat.T, inputs.T) if wide else _onednn(inputs.T, flat.T).T
        if ctx.needs_input_grad[2]:
            on_bias = flat.sum(dim=0)
        return on_rows, on_weight, on_bias


def _onednn(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return _LINEAR(rows, weight, bias, "none", [], "")


def _is_recorded(*tensors: torch.Tensor | None) -> bool:
    """Return whether autograd records these tensors; oneDNN's function has no gradient of its own."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _by_onednn(*tensors: torch.Tensor | None) -> bool:
    """Return whether oneDNN multiplies rows (..., d) by a weight (n, d), with or without a bias."""
    if _LINEAR is None or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    rows, weight = present[:2]
    return (
        weight.ndim == 2
        and math.prod(rows.shape) * weight.shape[0] >= _WORTH
        and all(each.dtype == torch.float32 and each.device.type == "cpu" for each in present)
        and all(each.layout == torch.strided and type(each) in _PLAIN for each in present)
        and not torch.compiler.is_compiling()
    )


read_switch()
