"""Devices, threads and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from geofloor._validation import shown

# Devices raise RuntimeErrors: CUDA's and MPS', cuBLAS', the CPU allocator's.
_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "you tried to allocate")
_LARGEST_BLOCK = 2**25 - 2**12  # bytes: the largest that raises glibc's thresholds, its own header included


def resolve_device(device: str = "auto") -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"`` into a device that exists.

    Raises
    ------
    ValueError
        If the name is no device, or this machine has no such device.
    """
    if not isinstance(device, str | torch.device):
        raise ValueError(f"device={shown(device)} must be 'auto', 'cpu', 'cuda', 'cuda:<index>' or 'mps'.")
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not a device; use 'auto', 'cpu', 'cuda', 'cuda:<index>' or 'mps'."
        ) from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r} is not on this machine, which has {torch.cuda.device_count()} CUDA "
            "devices; use device='auto'."
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r} is not on this machine; use device='auto'.")
    return resolved


def to_device(batch: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a batch to a device; to a GPU through pinned memory, so that the copy overlaps with computing."""
    tensor = torch.from_numpy(batch if batch.flags.writeable else batch.copy())  # torch warns of read-only memory
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def keep_freed_memory(device: torch.device) -> None:
    """Let glibc keep up to 64 MiB of freed memory, for the whole process, so that the next step reuses it.

    By default glibc returns freed memory to the system, and the next step faults it in again page by page. Freeing
    one block of its largest threshold raises the threshold, unless the environment sets it
    (``MALLOC_TRIM_THRESHOLD_``). The pages of the block are never touched; other C libraries ignore it.
    """
    if device.type == "cpu":
        torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)


@contextlib.contextmanager
def memory_advice(remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error of torch or NumPy, on any device, into a `MemoryError` with a remedy.

    Parameters
    ----------
    remedy : str
        The change to make, such as ``f"lower batch_size={self.batch_size}"``. An inner context's advice comes through.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        advised = isinstance(error, MemoryError) and error.__cause__ is not None
        if advised or not (isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)):
            raise
        what = text.partition("\n")[0].rstrip(". ")
        raise MemoryError(f"Out of memory{f' ({what})' if what else ''}; {remedy}.") from error


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in this process, because on small arrays more threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
