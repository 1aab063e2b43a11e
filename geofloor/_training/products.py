"""Matrix products in float32 on a CPU of AMD: by oneDNN where torch itself would take MKL.

On an AMD CPU of Zen 5 MKL takes 1.3 to 3.4 times as long as oneDNN (``benchmarks/products.py``), which torch has as
well but takes for float32 only in compiled models; on Intel's, MKL is the faster one for most products. There, on
accelerators, in other precisions and for small products all is as torch does it, as it is with
``torch.backends.mkldnn.flags(enabled=False)``.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

_WORTH = 2**24  # multiplications; with fewer, oneDNN's own overhead is no less than what it saves
_CACHED = 2**22  # numbers of a sum that still fits a cache
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # and no subclass, which may be anything
# It has no public name. Without it, or MKL, products are torch's own.
_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkl.is_available() else None


def _is_amd() -> bool:
    """By the CPU's name, where torch tells it, and not by a trial: one machine is to give the same bits each time."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "AMD" in capabilities.get("cpu_name", "")


_TAKEN = _LINEAR is not None and _is_amd()

if _LINEAR is not None and _LINEAR not in flop_registry:

    @register_flop_formula(_LINEAR)
    def _operations(rows: Any, weight: Any, *others: Any, **keywords: Any) -> int:
        """Floating-point operations, for torch's own counter, which does not know this function."""
        return 2 * math.prod(rows) * weight[0]


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
    """Zeros (m, n) to which `add_product` adds fastest: tall ones by columns, since oneDNN writes wide results well."""
    m, n = like.shape
    if _TAKEN and like.device.type == "cpu" and n < m and m * n <= _CACHED:
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
    """Numbers in the largest matrix of a module but for its embeddings: multiplications a row."""
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    sizes = (each.numel() for each in module.parameters() if each.ndim == 2 and id(each) not in embeddings)
    return max(sizes, default=0)


def faster_linear(n_rows: int, largest: int, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which linear layers are computed as `linear` is, forward and backward.

    Nothing happens on other devices than CPUs, nor where none of them is worth it for that many rows: looking at
    every function takes time, too.
    """
    worth_it = _TAKEN and device.type == "cpu" and n_rows * largest >= _WORTH
    return _FasterLinear() if worth_it else nullcontext()


class _FasterLinear(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs:
            if func is torch.nn.functional.linear and _by_onednn(*args):
                return _Linear.apply(*args, *(None,) * (3 - len(args)))
            if func is torch.addmm and args[0].ndim == 1 and _by_onednn(args[1], args[2].T, args[0]):  # as in GPT-2
                return _Linear.apply(args[1], args[2].T, args[0])
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
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
    """Whether a gradient is to flow, of which oneDNN's function knows nothing."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _by_onednn(*tensors: torch.Tensor | None) -> bool:
    """Whether oneDNN is to multiply rows (..., d) by a weight (n, d), with or without a bias."""
    if not (_TAKEN and torch.backends.mkldnn.enabled) or torch.is_autocast_enabled("cpu"):
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
