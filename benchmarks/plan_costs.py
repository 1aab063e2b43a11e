"""Compare the estimated cost of a plan with what its stages take.

    python benchmarks/plan_costs.py
    python benchmarks/plan_costs.py --model FOLDER --gguf-file FILE --tokens 20000 --budgets 30

Print for each stage the estimated seconds, those that it took, and their ratio: once in wall time and once in CPU
time, which other processes on the machine disturb less. Memory is the estimate beside the highest resident memory of
the stage, less what the process held before it beside the teacher. Each ratio of times has the target of a factor of
1.5. On a shared machine, judge by CPU time: others may take more of it during the estimate than during the stage.

``--keep FILE`` writes what the stages took, and ``--took FILE`` compares a new estimate with that and runs no stage. It
compares CPU time alone, because the machine may have been loaded otherwise then.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _timing import machine

from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.planning import _distillation
from geofloor.planning._cost import StageCost, estimate_cost
from geofloor.planning._distillation import plan_distillation

FACTOR = 1.5
_SETTINGS = "tokens", "length", "budgets", "batch_size", "widths", "run_widths"
CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}
STATUS = Path("/proc/self/status")


def resident(name: str) -> int:
    """Read VmRSS, or VmHWM for the highest since `forget_peak`, in bytes; 0 where there is no such file."""
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def forget_peak() -> None:
    """Return freed memory to the system, and let it measure the highest resident memory from now on."""
    if STATUS.exists():
        ctypes.CDLL(None).malloc_trim(0)
        STATUS.with_name("clear_refs").write_text("5", encoding="utf-8")


def plan(options: argparse.Namespace, *, dry_run: bool) -> tuple[dict[str, Any], dict[str, list[StageCost]]]:
    """Make a plan; return what each stage took, and the estimates, by clock."""
    took: dict[str, dict[str, float]] = {}
    estimates: dict[str, list[StageCost]] = {}
    whole: Callable[..., None] = _distillation._Making._stage

    def measured(making: Any, name: str, run: Any) -> None:
        forget_peak()
        before, began = resident("VmRSS"), (time.perf_counter(), time.process_time())
        whole(making, name, run)
        took[name] = {
            "wall": time.perf_counter() - began[0],
            "CPU": time.process_time() - began[1],
            "memory": resident("VmHWM") - before + sum(each.nbytes for each in making.module.parameters()),
        }
        print(f"{name} took {took[name]['wall']:.0f} s, {took[name]['CPU']:.0f} s of CPU", flush=True)

    def estimated(*given: Any, **options: Any) -> list[StageCost]:
        for clock in ["CPU"] if dry_run else CLOCKS:
            began = time.perf_counter(), time.process_time()
            estimates[clock] = estimate_cost(*given, **options, clock=CLOCKS[clock])
            wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
            print(f"the estimate of {clock} time took {wall:.1f} s, {cpu:.1f} s of CPU", flush=True)
        return next(iter(estimates.values()))

    _distillation._Making._stage, _distillation.estimate_cost = measured, estimated
    texts = (document.text for document in load_local_corpus("test"))
    with tempfile.TemporaryDirectory() as folder:
        plan_distillation(
            options.model,
            texts,
            widths=options.widths,
            run_widths=options.run_widths,
            budgets=options.budgets,
            batch_size=options.batch_size,
            n_tokens=options.tokens,
            length=options.length,
            model_kwargs={"gguf_file": options.gguf_file} if options.gguf_file else None,
            features=not options.no_features,
            checkpoint_dir=folder,
            dry_run=dry_run,
        )
    return took, estimates


def compare(took: dict[str, dict[str, float]], estimates: dict[str, list[StageCost]]) -> None:
    """Print estimates beside what the stages took, by clock."""
    for name, costs in estimates.items():
        print(f"\n{name + ' time':<12}  estimate       took  ratio   memory: estimate       peak  ratio")
        for each in costs:
            if each.stage not in took:
                continue
            seconds, memory = took[each.stage][name], took[each.stage]["memory"]
            ratio = each.seconds / seconds
            print(
                f"{each.stage:<12} {each.seconds:7.0f} s {seconds:8.0f} s {ratio:6.2f} {each.memory / 2**20:14.0f} MiB "
                f"{memory / 2**20:6.0f} MiB {each.memory / max(memory, 1.0):6.2f}   "
                f"{'meets' if abs(math.log(ratio)) <= math.log(FACTOR) else 'MISSES'} a factor of {FACTOR}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=load_teacher().path, help="teacher (default: the embedded one)")
    parser.add_argument("--gguf-file", help="file in the teacher's folder")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens to measure on (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence (default: %(default)s)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[150, 300, 600], help="steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per step (default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", help="rows of the table (default: those of a plan)")
    parser.add_argument("--run-widths", type=int, nargs="+", help="students to train (default: those of a plan)")
    parser.add_argument("--no-features", action="store_true", help="leave that stage out")
    parser.add_argument("--keep", type=Path, help="file for what the stages took")
    parser.add_argument("--took", type=Path, help="file of --keep to compare with")
    options = parser.parse_args()
    print(machine())
    settings = {name: value for name, value in vars(options).items() if name in _SETTINGS and value is not None}
    print(f"{'embedded teacher' if options.gguf_file is None else options.gguf_file}: {settings}")
    took, estimates = plan(options, dry_run=options.took is not None)
    if options.took is not None:
        took = json.loads(options.took.read_text(encoding="utf-8"))
    if options.keep is not None:
        options.keep.write_text(json.dumps(took, indent=1), encoding="utf-8")
    compare(took, estimates)


if __name__ == "__main__":
    main()
