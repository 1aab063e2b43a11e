"""Processes that work together, started by ``accelerate launch`` or ``torchrun``; most often there is one.

Every method is collective: all processes call the same methods in the same order.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from geofloor._training.devices import resolve_device

_BUFFER_NUMBERS = 2**24  # numbers per sum: few messages, and little extra memory


class Processes:
    """A process among those of one training, and their collective operations.

    Parameters
    ----------
    state : accelerate.PartialState or None
        The state of several processes; None for one.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    n : int
        Number of processes.
    device : torch.device or None
        Device of this process; None for one process.
    """

    def __init__(self, state: Any = None) -> None:
        self.rank: int = 0 if state is None else state.process_index
        self.n: int = 1 if state is None else state.num_processes
        self.device: torch.device | None = None if state is None else _plain(state.device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, n_rows: int) -> slice:
        """Return the slice of the rows of this process.

        The slices of all processes partition the rows in order; some may be empty.
        """
        return slice(self.rank * n_rows // self.n, (self.rank + 1) * n_rows // self.n)

    @torch.no_grad()
    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum tensors over the processes, in place, to the same bits in each."""
        if self.n == 1:
            return
        from accelerate.utils import reduce

        for buffer in _buffers(tensors):
            summed = reduce(torch.cat([tensor.reshape(-1) for tensor in buffer]), reduction="sum")
            pieces = summed.split([tensor.numel() for tensor in buffer])
            for tensor, piece in zip(buffer, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))

    @torch.no_grad()
    def join(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate a tensor, of the same shape in each process, along its first dimension in order of rank."""
        if self.n == 1:
            return tensor
        from accelerate.utils import gather

        return gather(tensor)

    def everyone(self, value: Any) -> list[Any]:
        """Gather a picklable value from each process, in order of rank."""
        if self.n == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    @torch.no_grad()
    def copy_from_main(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy tensors from the main process, in place."""
        if self.n == 1:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.copy_(broadcast(tensor.contiguous()))

    def agree(self, **given: Any) -> None:
        """Raise a ValueError if the processes were given different values, because their sums would mean nothing."""
        everyone = self.everyone(given)
        other = [name for name in given if any(one[name] != everyone[0][name] for one in everyone)]
        if other:
            raise ValueError(
                f"The {self.n} processes have different {', '.join(other)}; give all of them the same, and a "
                "file system that all of them see."
            )

    def on_main(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the main process while the others wait, and return its result in all; an error too."""
        if self.n == 1:
            return act(*arguments)
        result = error = None
        if self.is_main:
            try:
                result = act(*arguments)
            except Exception as caught:
                error = caught
        message, result = self.everyone((None if error is None else _describe(error), result))[0]
        if error is not None:
            raise error
        if message is not None:
            raise RuntimeError(f"The main process failed: {message}")
        return result

    def together(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in each process, wait for all, and return its own result; if it fails in one, all raise.

        The function must not wait for other processes.
        """
        if self.n == 1:
            return act(*arguments)
        result = error = None
        try:
            result = act(*arguments)
        except Exception as caught:
            error = caught
        messages = self.everyone(None if error is None else _describe(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise RuntimeError(f"Process {rank} of {self.n}, counted from 0, failed: {message}")
        return result


ALONE = Processes()


def join_processes(device: str) -> Processes:
    """Join the processes started together; return `ALONE` if the environment names no others.

    Parameters
    ----------
    device : str
        The device asked for by the user.

    Raises
    ------
    ImportError
        If there are several, and accelerate is not installed.
    ValueError
        If they can't find each other, if `device` is not the device of this process, or in a worker of a search with
        ``n_jobs``, which would wait for the others forever.
    """
    n = int(os.environ.get("WORLD_SIZE") or 1)
    if n == 1:
        return ALONE
    if multiprocessing.current_process().name.startswith("LokyProcess"):
        raise ValueError(
            f"A worker of joblib can't work with {n} processes together (WORLD_SIZE={n}); set n_jobs=None under "
            "accelerate launch or torchrun, or search with n_jobs without them."
        )
    # The default arguments of its functions would hold a group that exists at its import, and keep threads of the group
    # beyond the end of the interpreter. Making an Adam imports it.
    import torch.distributed.nn.functional

    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise ImportError(
            f"WORLD_SIZE={n} says that {n} processes work together, for which accelerate is needed; install "
            "geofloor[accelerate], or start one process without WORLD_SIZE."
        ) from error
    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    joined_before = torch.distributed.is_available() and torch.distributed.is_initialized()
    state = PartialState(cpu=on_cpu)
    processes = Processes(state)
    if not joined_before and on_cpu:
        # Threads of gloo that outlive the interpreter sometimes abort the process (pytorch#179291).
        atexit.register(state.destroy_process_group)
    if processes.n != n:
        raise ValueError(
            f"WORLD_SIZE={n}, but accelerate finds {processes.n} process(es); start them with accelerate launch or "
            "torchrun, or start one without WORLD_SIZE."
        )
    own = str(processes.device)
    if device != "auto" and str(resolve_device(device)) not in (own, own.split(":", maxsplit=1)[0]):
        raise ValueError(f"device={device!r} is not '{own}', which this one of {n} processes has; use device='auto'.")
    return processes


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _plain(device: torch.device) -> torch.device:
    """Drop the index from a CPU device, because CPU tensors have none."""
    return torch.device("cpu") if device.type == "cpu" else device


def _buffers(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Group tensors by dtype and size, in the same way on every process."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        buffer: list[torch.Tensor] = []
        held = 0
        for tensor in tensors:
            if tensor.dtype != dtype:
                continue
            if buffer and held + tensor.numel() > _BUFFER_NUMBERS:
                yield buffer
                buffer, held = [], 0
            buffer.append(tensor)
            held += tensor.numel()
        yield buffer
