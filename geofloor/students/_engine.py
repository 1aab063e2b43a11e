"""Train several students of one teacher in one pass over the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from geofloor._training.callbacks import FitTasks
from geofloor._training.devices import keep_freed_memory
from geofloor._training.processes import ALONE, Processes
from geofloor._training.progress import progress_bar
from geofloor._training.sampling import epoch_rows
from geofloor._training.schedules import warmup_cosine
from geofloor._training.seeds import draw_seed
from geofloor._training.settings import plain_seed
from geofloor.language_models._divergence import LossTerms, Targets
from geofloor.language_models._token_rows import Batch
from geofloor.students._checkpoints import read_run, write_run
from geofloor.students._run import Run, build_run, is_final
from geofloor.students._settings import ResolvedSettings, StudentSpec
from geofloor.students._teacher import Teacher
from geofloor.students._text import TextSplit

_CHECK_EVERY = 50  # steps between checks that losses are finite; each waits for the device
_MEASURED_SEQUENCES = 64  # at most, to find the teacher's principal directions


class Distillation:
    """Training of several students with one forward pass of the teacher per batch.

    The students differ in width, seed and number of steps, and in what follows from the steps: warm-up, decay and the
    steps of evaluations. Batches are the same for all. Each of several processes computes its share of every batch, and
    all else is the same in every process.

    Parameters
    ----------
    teacher : Teacher
        The teacher.
    settings : sequence of ResolvedSettings
        Settings of each student. Only `n_steps`, `warmup_steps` and `eval_every` may differ.
    text : TextSplit
        Sequences to train on and to evaluate on.
    specs : sequence of StudentSpec
        The students.
    processes : Processes
        Processes that train together.
    tasks : sequence of FitTasks or None, default=None
        Fit of each student, as its callbacks see it; None for students without callbacks.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: Sequence[ResolvedSettings],
        text: TextSplit,
        specs: Sequence[StudentSpec],
        processes: Processes = ALONE,
        tasks: Sequence[FitTasks] | None = None,
    ) -> None:
        self.teacher, self.settings, self.text = teacher, settings[0], text
        self.specs, self.settings_of, self.processes = specs, settings, processes
        self.tasks = [FitTasks() for _ in specs] if tasks is None else tasks
        self.device = teacher.device
        self._digests = {"tokens": "", "teacher": ""}
        self._hidden_scale: torch.Tensor | None = None

    def train(self) -> list[Run]:
        """Train all students to the end, each from its checkpoint if it has one.

        Returns
        -------
        runs : list of Run
            Final states, in the order of the students.

        Raises
        ------
        ValueError
            If a checkpoint does not fit, processes were given different data or parameters, or a loss or the
            teacher's logits become non-finite.
        """
        keep_freed_memory(self.device)
        self._compute_digests()
        self._check_processes_agree()
        self._hidden_scale = self._compute_hidden_scale()
        students = list(zip(self.specs, self.settings_of, strict=True))
        found = [read_run(*each, self._digests, partial(self._build_run, *each)) for each in students]
        self.processes.agree(checkpoints=[run and (run.seed, run.step) for run in found])
        runs = [run or self._new_run(*each) for run, each in zip(found, students, strict=True)]
        for run, tasks in zip(runs, self.tasks, strict=True):
            run.tasks = tasks
            tasks.begin(run.count_evaluations_left(), "evaluation")
        n_steps = max(run.settings.n_steps for run in runs)
        first = min((run.step for run in runs if not run.is_done), default=n_steps)
        settings = self.settings
        new = [run for run in runs if not run.history]
        if new:
            self.evaluate(new)
        description = "distillation" if len(runs) == 1 else f"distillation of {len(runs)} students"
        verbose = settings.verbose if self.processes.is_main else 0
        with progress_bar(description, total=n_steps, initial=first, verbose=verbose) as bar:
            for step in range(first, n_steps):
                # Runs whose checkpoints are further on wait for the others.
                active = [run for run in runs if run.step == step and not run.is_done]
                if not active:  # callbacks have stopped all runs, or all that are not further on
                    bar.update()
                    continue
                for run in active:
                    run.tasks.begin_task()
                self.train_step(active, step)
                done = step + 1
                due = [run for run in active if done % run.settings.eval_every == 0 or run.is_done]
                if due:
                    self.evaluate(due)
                    bar.set_postfix({str(run.spec.width): f"{run.history[-1]['eval_kl']:.4f}" for run in runs})
                if done % _CHECK_EVERY == 0 and len(due) < len(active):
                    self._check_finite(active)
                if done < n_steps:
                    self.save_checkpoints(
                        [run for run in active if done % settings.checkpoint_every == 0 or run.is_done]
                    )
                bar.update()
        return runs

    # Preparation

    def _compute_digests(self) -> None:
        """Compute checksums of all tokens and weights, if a checkpoint or another process needs them."""
        if self.processes.n > 1 or any(spec.checkpoint_path is not None for spec in self.specs):
            self._digests = {"tokens": self.text.fingerprint(), "teacher": self.teacher.model.digest()}

    def _check_processes_agree(self) -> None:
        """Raise an error if processes were given different parameters, tokens or teachers."""
        parameters = [
            (spec.recorded, plain_seed(spec.random_state), spec.checkpoint_path is None, self.settings.checkpoint_every)
            for spec in self.specs
        ]
        self.processes.agree(parameters=parameters, **self._digests)

    def _compute_hidden_scale(self) -> torch.Tensor | None:
        """Compute the weight of the hidden-state loss, as a share of the teacher's variance.

        The variance is measured on the first held-out sequences.
        """
        settings = self.settings
        if not settings.hidden_weight:
            return None
        if self.teacher.model.head is None:
            raise ValueError(
                f"hidden_weight={settings.hidden_weight!r} needs a teacher whose hidden states are known, such as "
                "a transformers model with a linear unembedding; use hidden_weight=0."
            )
        ids = self.teacher.to_device(self.text.held_out.take(self.text.eval_rows[: settings.batch_size]).ids)
        rows = self.teacher.compute_targets(ids, keep=False).source.rows.float()
        return settings.hidden_weight / rows.var(dim=0).mean()

    def _build_run(
        self,
        spec: StudentSpec,
        settings: ResolvedSettings,
        seed: int,
        *,
        init: str = "random",
        tokens: np.ndarray | None = None,
    ) -> Run:
        return build_run(
            spec,
            self.teacher.model,
            settings,
            seed=seed,
            n_evaluated=len(self.text.eval_rows),
            device=self.device,
            init=init,
            tokens=tokens,
        )

    def _new_run(self, spec: StudentSpec, settings: ResolvedSettings) -> Run:
        """Make a run at step 0, with the same weights in all processes."""
        seed = self.processes.everyone(draw_seed(spec.random_state))[0]
        sample = None
        if settings.init == "principal":
            sample = self.text.train.take(np.arange(min(self.text.n_train, _MEASURED_SEQUENCES))).ids
        run = self._build_run(spec, settings, seed, init=settings.init, tokens=sample)
        self.processes.copy_from_main([*run.model.module.state_dict().values(), *run.parameters()])
        return run

    # Steps

    def train_step(self, runs: list[Run], step: int) -> None:
        """Train every run on one batch.

        Parameters
        ----------
        runs : list of Run
            Runs at this step.
        step : int
            Number of the step, from 0.
        """
        settings = self.settings
        batch = self.text.train.take(epoch_rows(self.text.n_train, settings.batch_size, step, settings.data_seed))
        share = batch.share(self.processes.share(len(batch.ids)))
        if not self.processes.is_main:
            for run in runs:
                run.kl_sum.zero_()  # the main process holds the sum over earlier steps
        for part in share.split(settings.gradient_accumulation):
            ids = self.teacher.to_device(part.ids)
            targets = self.teacher.compute_targets(ids, keep=len(runs) > 1)
            terms = self._weigh_positions(targets, part, batch)
            for run in runs:
                with self.teacher.autocast():
                    student = run.model.logits(ids)
                run.loss(student, targets.source, terms, self._hidden_scale).backward()
        self._sum_over_processes(runs)
        for run in runs:
            factor = warmup_cosine(step, n_steps=run.settings.n_steps, warmup_steps=run.settings.warmup_steps)
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(run.parameters(), settings.clip_norm)
            for optimizer in run.optimizers:
                optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            run.step += 1
            run.kl_steps += 1

    def _weigh_positions(self, targets: Targets, part: Batch, batch: Batch) -> LossTerms:
        """Compute loss weights for one micro-batch; all micro-batches then sum to the batch mean."""
        weights = None if part.mask is None else self.teacher.to_device(part.mask.reshape(-1), targets.dtype)
        labels = None
        if self.settings.cross_entropy_weight:
            following = np.roll(part.ids, -1, axis=1)
            counted = np.ones(part.ids.shape) if part.mask is None else np.roll(part.mask, -1, axis=1).astype(float)
            counted[:, -1] = 0.0
            counted *= self.settings.cross_entropy_weight / max(batch.n_labels, 1)
            labels = (
                self.teacher.to_device(following.reshape(-1)),
                self.teacher.to_device(counted.reshape(-1), targets.dtype),
            )
        return LossTerms(targets, weights, 1.0 / batch.n_positions, self.settings.temperature**2, labels)

    def _sum_over_processes(self, runs: list[Run]) -> None:
        """Sum gradients and KLs over the processes."""
        if self.processes.n == 1:
            return
        parameters = [parameter for run in runs for parameter in run.parameters()]
        n_used = torch.ones(len(parameters), device=self.device)
        unused = [index for index, parameter in enumerate(parameters) if parameter.grad is None]
        for index in unused:
            n_used[index] = 0.0
            parameters[index].grad = torch.zeros_like(parameters[index])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.processes.sum([n_used, *(run.kl_sum for run in runs), *gradients])
        if unused:  # optimizers skip parameters without a gradient, as with one process
            for parameter, n_processes in zip(parameters, n_used.tolist(), strict=True):
                if n_processes == 0:
                    parameter.grad = None

    # Evaluation

    def evaluate(self, runs: list[Run]) -> None:
        """Evaluate runs on the held-out text, add a row to each history, and let callbacks stop runs."""
        self._check_finite(runs)
        for run in runs:
            run.tasks.begin_task()
        settings = self.settings
        sums, counts = self.teacher.sequence_kls(
            [run.model for run in runs], self.text.held_out, self.text.eval_rows, batch_size=settings.eval_batch_size
        )
        for run, row in zip(runs, sums, strict=True):
            eval_kl = float(row.sum() / counts.sum())
            if not np.isfinite(eval_kl):
                raise self._not_finite(run, eval_kl)
            n_steps, warmup_steps = run.settings.n_steps, run.settings.warmup_steps
            factor = warmup_cosine(max(run.step - 1, 0), n_steps=n_steps, warmup_steps=warmup_steps)
            train_kl = float(run.kl_sum) / run.kl_steps if run.kl_steps else None
            run.history.append(
                {
                    "step": run.step,
                    "train_kl": train_kl,
                    "eval_kl": eval_kl,
                    "learning_rate": float(settings.learning_rate * factor) if run.step else 0.0,
                }
            )
            run.kl_sum.zero_()
            run.kl_steps = 0
            stops = run.tasks.end_task(run.history[-1], run)
            run.is_stopped = stops and 0 < run.step < n_steps
            if is_final(run.step, n_steps) or run.is_stopped:
                run.final_sums += row

    def zero_width_loss(self) -> float:
        """Compute the loss of a student of width 0 on the held-out text, in nats per token."""
        return self.teacher.zero_width_loss(
            self.text.held_out, self.text.eval_rows, batch_size=self.settings.eval_batch_size
        )

    def _check_finite(self, runs: list[Run]) -> None:
        """Raise an error if a training loss is not finite."""
        for run, kl in zip(runs, torch.stack([run.kl_sum for run in runs]).tolist(), strict=True):
            if not np.isfinite(kl):
                raise self._not_finite(run, kl)

    def _not_finite(self, run: Run, value: float) -> ValueError:
        """Make the error about a non-finite loss."""
        if not self.teacher.was_finite():
            return ValueError(
                f"The teacher's logits are not finite, by step {run.step} at the latest; check its weights, or load "
                "it in a dtype with more range, such as model_kwargs={'dtype': 'float32'}."
            )
        name, settings = f"The KL of the student of width {run.spec.width}", run.settings
        if run.step == 0:
            return ValueError(f"{name} is {value} before the first step: init={settings.init!r} gives no finite start.")
        clip = f"lower clip_norm={settings.clip_norm:g}" if settings.clip_norm else "set clip_norm=1.0"
        return ValueError(
            f"{name} became {value} by step {run.step}; lower learning_rate={settings.learning_rate:g}, lengthen "
            f"warmup_steps={settings.warmup_steps}, or {clip}."
        )

    # Checkpoints

    def save_checkpoints(self, runs: list[Run]) -> None:
        """Write the checkpoints of all runs with new steps."""
        runs = [run for run in runs if run.step > run.saved_step and run.spec.checkpoint_path is not None]
        if runs:
            self._check_finite(runs)
        for run in runs:
            self.processes.on_main(write_run, run, self._digests)
            run.saved_step = run.step
