"""Measure functions against each other on a shared machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def machine() -> str:
    """Describe the software and hardware behind a measurement on the CPU."""
    capabilities = torch.cpu.get_capabilities()
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "all")
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {capabilities['cpu_name']}, "
        f"instructions that oneDNN may use: {allowed}"
    )


def side_by_side(functions: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Return the median seconds of each function; repetitions alternate, to share slow moments between them."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()  # let imports, caches and the memory allocator settle
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(name: str, ratio: float, target: float, at_most: bool = True) -> None:
    """Print a measured ratio, its target, and whether the ratio meets the target."""
    met = ratio <= target if at_most else ratio >= target
    bound = f"at {'most' if at_most else 'least'} {target:g}"
    print(f"{name}: {ratio:.3g} (target: {bound}), {'meets' if met else 'MISSES'}")
