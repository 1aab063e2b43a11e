"""Threads that share the work of compiled kernels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_WORTH_THREADS = 2**19  # multiplications of a kernel; with fewer, waking threads takes longer
_TASKS_PER_THREAD = 4  # so that a thread that is held up leaves work to the others


class KernelThreads:
    """As many threads as torch has, started when a kernel first has enough work for them.

    They belong to this object, so that a fit in a forked process has its own.
    """

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Stop the threads."""
        if self._threads is not None:
            self._threads.shutdown()

    def divide(self, kernel: Callable[..., None], arguments: tuple[Any, ...], n: int, work: int) -> None:
        """Call a kernel on the range from 0 to n, divided between threads if it has enough work for them.

        Parameters
        ----------
        kernel : callable
            Kernel with the arguments `start` and `stop` of a range last.
        arguments : tuple
            Its other arguments.
        n : int
            End of the range.
        work : int
            About the number of its multiplications.
        """
        n_threads = min(torch.get_num_threads(), n)
        if n_threads < 2 or work < _WORTH_THREADS:
            kernel(*arguments, 0, n)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(torch.get_num_threads() - 1, thread_name_prefix="geofloor")
        size = -(-n // (_TASKS_PER_THREAD * n_threads))
        tasks = deque((start, min(start + size, n)) for start in range(0, n, size))

        def run() -> None:
            while True:
                try:
                    start, stop = tasks.popleft()
                except IndexError:
                    return
                kernel(*arguments, start, stop)

        others = [self._threads.submit(run) for _ in range(n_threads - 1)]
        run()
        for other in others:
            other.result()
