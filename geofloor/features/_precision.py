"""Precision of the encoder's product in training."""

from __future__ import annotations

import torch

PRECISIONS = ("float32", "bf16")
_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # torch.cpu's names for x86 and ARM


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not have in hardware.

    Raises
    ------
    ValueError
        If the device would emulate it, which is slower than float32.
    """
    if precision == "bf16" and not has_bf16(device):
        raise ValueError(
            f"precision='bf16' needs a device with bfloat16 in hardware, and device='{device}' has none; use "
            "precision='float32' or another device."
        )


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type == "cpu":
        return any(torch.cpu.get_capabilities().get(name, False) for name in _CPU_INSTRUCTIONS)
    return False


def rounded(precision: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as the encoder's product takes it: in bfloat16 for ``"bf16"``, and as it is otherwise."""
    return tensor.bfloat16() if precision == "bf16" else tensor
