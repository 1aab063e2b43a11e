"""
The job
=======

Run the steps in order: ``python examples/reproduce_pythia``.
"""

# %%
# The steps
# ---------
# Each step is called with the output folder and the options in its function's signature. It reads the results of the
# steps ``after``.
import inspect
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import costs
import torch
from options import make_plan, parse_arguments, teacher_config
from results import Record
from step1_tokens import write_tokens
from step2_autoencoders import train_autoencoders
from step3_statistics import measure_features
from step4_bottleneck import fit_bottleneck
from step5_students import distill_longer, distill_students
from step6_calibration import calibrate
from step7_probes import probe_concepts


class Step(NamedTuple):
    run: Callable[..., None]
    after: tuple[str, ...] = ()
    in_all_processes: bool = False


STEPS = {
    "tokens": Step(write_tokens),
    "sae": Step(train_autoencoders, after=("tokens",), in_all_processes=True),
    "statistics": Step(measure_features, after=("sae",)),
    "bottleneck": Step(fit_bottleneck, after=("tokens",)),
    "students": Step(distill_students, after=("tokens",), in_all_processes=True),
    "longer": Step(distill_longer, after=("tokens", "students"), in_all_processes=True),
    "calibration": Step(calibrate, after=("statistics", "students")),
    "probes": Step(probe_concepts, after=("students",)),
}
INCIDENTAL = {"device", "checkpoint_every", "sae_checkpoint_every", "is_main"}  # arguments that change no result


def arguments_of(step, options):
    """Select the options in the signature of the step's function."""
    names = list(inspect.signature(step.run).parameters)[1:]  # the first is the folder
    return {name: options[name] for name in names}


def check(record, chosen, arguments):
    """Refuse to start with missing inputs, or beside results of other arguments."""
    read = set(chosen)
    for name in reversed(STEPS):
        if name in read:
            read.update(STEPS[name].after)
    for name in STEPS:
        if name in read:
            record.check(name, arguments[name])
    for name in chosen:
        missing = [each for each in STEPS[name].after if each not in chosen and not record.finished(each)]
        if missing:
            raise SystemExit(f"The step {name!r} needs {', '.join(missing)}; add them to --steps.")


# %%
# The run
# -------
# Under ``accelerate launch`` all processes train the autoencoders and the students. The first one does everything else
# while the others wait, for days if need be.


def join_processes():
    """Return the state of processes launched together; None for a process alone."""
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))


def main(arguments=None):
    options = parse_arguments(arguments, STEPS)
    config = teacher_config(options.model)
    plan = make_plan(options, config)
    chosen = [name for name in STEPS if name in options.steps]
    processes = None if options.dry_run else join_processes()
    is_main = processes is None or processes.is_main_process
    if is_main:
        by_step = costs.costs(options, config, plan)
        print(costs.table({name: by_step[name] for name in chosen}, options), flush=True)
    if options.dry_run:
        return
    if options.precision != "fp32" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")

    options.output.mkdir(parents=True, exist_ok=True)
    given = {**vars(options), "n_blocks": plan.n_blocks, "is_main": is_main}
    passed = {name: arguments_of(step, given) for name, step in STEPS.items()}
    recorded = {name: {k: v for k, v in each.items() if k not in INCIDENTAL} for name, each in passed.items()}
    record = Record(options.output)
    check(record, chosen, recorded)
    wait(processes)  # until all have read the record
    for name in chosen:
        if record.finished(name):
            if is_main:
                print(f"{name}: finished before", flush=True)
            continue
        if is_main:
            record.note(name, recorded[name], finished=False)
            print(f"{name} …", flush=True)
        started = time.perf_counter()
        if is_main or STEPS[name].in_all_processes:
            STEPS[name].run(options.output, **passed[name])
        if is_main:
            record.note(name, recorded[name], finished=True)
            hours, assumed = (time.perf_counter() - started) / 3600, by_step[name].seconds / 3600
            print(f"{name}: {hours:.2f} h since this command began it; {assumed:.2f} h were assumed", flush=True)
        wait(processes)
    if processes is not None:
        processes.destroy_process_group()  # else threads of gloo may abort a process at exit


def wait(processes):
    """Wait until all processes are here."""
    if processes is not None:
        processes.wait_for_everyone()


if __name__ == "__main__":
    main()
