"""Checkpoints of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from geofloor._files.schema import number, optional, refusing, table, texts
from geofloor._training.checkpoints import (
    Shape,
    check_optimizer_tensors,
    check_tensors,
    expected_optimizer_tensors,
    load_optimizer_tensors,
    optimizer_tensors,
    write_tensors,
)
from geofloor._training.settings import read_checkpoint
from geofloor.students._run import Run
from geofloor.students._settings import ResolvedSettings, StudentSpec

CHECKPOINT = "geofloor distillation checkpoint"
STOPPED = "stopped"  # tensor of runs that a callback has stopped
HISTORY = table(step=number(0, whole=True), train_kl=optional(number()), eval_kl=number(), learning_rate=number(0))


def write_run(run: Run, digests: Mapping[str, str]) -> None:
    """Write the checkpoint of a run.

    Parameters
    ----------
    run : Run
        The run.
    digests : mapping of str to str
        Checksums of ``tokens`` and ``teacher``.
    """
    if run.spec.checkpoint_path is None:
        return
    tensors = {f"model.{name}": value for name, value in run.model.module.state_dict().items()}
    if run.projection is not None:
        tensors |= {f"projection.{name}": value for name, value in run.projection.state_dict().items()}
    for index, optimizer in enumerate(run.optimizers):
        tensors |= optimizer_tensors(optimizer, f"optimizer-{index}")
    tensors |= {"kl_sum": run.kl_sum, "final_sums": torch.from_numpy(run.final_sums)}
    if run.is_stopped:
        tensors[STOPPED] = torch.tensor(True)
    metadata = {
        # Parameters without a gradient so far have no optimizer state.
        "unused": sorted(_expected_tensors(run).keys() - tensors.keys()),
        "settings": run.spec.recorded,
        **digests,
        **{name: getattr(run, name) for name in ("seed", "step", "kl_steps", "history")},
    }
    write_tensors(run.spec.checkpoint_path, tensors, kind=CHECKPOINT, metadata=metadata)


def read_run(
    spec: StudentSpec, settings: ResolvedSettings, digests: Mapping[str, str], build: Callable[[int], Run]
) -> Run | None:
    """Read the checkpoint of a student, if it exists.

    Parameters
    ----------
    spec : StudentSpec
        The student.
    settings : ResolvedSettings
        Tells at which steps evaluations are due.
    digests : mapping of str to str
        Checksums of ``tokens`` and ``teacher``.
    build : callable
        Makes a run at step 0 from a seed. The checkpoint then replaces its state.

    Raises
    ------
    ValueError
        If the checkpoint belongs to other settings, text or teacher, or is damaged.
    """
    path, n_steps, every = spec.checkpoint_path, settings.n_steps, settings.eval_every
    found = read_checkpoint(
        path,
        kind=CHECKPOINT,
        settings=spec.recorded,
        random_state=spec.random_state,
        made_with=digests,
        state={
            "unused": texts,
            "step": number(1, n_steps, whole=True),
            "kl_steps": number(0, whole=True),
            "history": HISTORY,
        },
    )
    if found is None or path is None:
        return None
    tensors, metadata = found
    step, history, unused = metadata["step"], metadata["history"], metadata["unused"]
    run = build(metadata["seed"])
    with refusing(path):
        if not all(name.startswith("optimizer-") for name in unused):
            raise ValueError(f"it lacks {unused!r:.80}")
        expected = {name: each for name, each in _expected_tensors(run).items() if name not in unused}
        check_tensors(tensors, expected | ({STOPPED: (torch.bool, ())} if STOPPED in tensors else {}))
        for index in range(len(run.optimizers)):
            check_optimizer_tensors(tensors, step, f"optimizer-{index}")
        due = [at for at in range(step + 1) if at % every == 0 or at == n_steps]
        if [row["step"] for row in history] != due or metadata["kl_steps"] != step - due[-1]:
            raise ValueError(f"its history is not that of {step} steps")
        run.is_stopped = bool(tensors.get(STOPPED, False))
        if run.is_stopped and (metadata["kl_steps"] or step == n_steps):
            raise ValueError(f"it was stopped at step {step}, which is not an evaluation before the last")
    run.model.module.load_state_dict(_without_prefix(tensors, "model."))
    if run.projection is not None:
        run.projection.load_state_dict(_without_prefix(tensors, "projection."))
    for index, optimizer in enumerate(run.optimizers):
        load_optimizer_tensors(optimizer, tensors, f"optimizer-{index}")
    run.kl_sum += tensors["kl_sum"].to(run.kl_sum.device)
    run.final_sums += tensors["final_sums"].numpy()
    run.step = run.saved_step = step
    run.kl_steps, run.history = metadata["kl_steps"], history
    return run


def _expected_tensors(run: Run) -> dict[str, tuple[torch.dtype, Shape]]:
    """List the types and shapes of a checkpoint's tensors."""
    parts = {"model.": run.model.module, "projection.": run.projection}
    states: dict[str, tuple[torch.dtype, Shape]] = {
        f"{prefix}{name}": (tensor.dtype, tuple(tensor.shape))
        for prefix, part in parts.items()
        if part is not None
        for name, tensor in part.state_dict().items()
    }
    for index, optimizer in enumerate(run.optimizers):
        states |= expected_optimizer_tensors(optimizer, f"optimizer-{index}")
    return {**states, "kl_sum": (torch.float32, ()), "final_sums": (torch.float64, run.final_sums.shape)}


def _without_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Select tensors by a prefix of their names, and remove the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
