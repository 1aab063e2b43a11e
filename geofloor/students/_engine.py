"""One pass over text that trains several students of one teacher: steps, evaluations and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
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
from geofloor._training.devices import keep_freed_memory, to_device
from geofloor._training.muon import Muon
from geofloor._training.processes import ALONE, Processes
from geofloor._training.progress import progress_bar
from geofloor._training.sampling import epoch_rows
from geofloor._training.schedules import warmup_cosine
from geofloor._training.seeds import draw_seed, torch_generator
from geofloor._training.settings import plain_parameters, plain_seed, read_checkpoint
from geofloor.language_models._divergence import ChunkedLoss, LazyLogits, LossTerms, Targets, row_kls
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._token_rows import Batch, TokenRows
from geofloor.language_models._zero_width import ZeroWidthLoss
from geofloor.students._architecture import default_init, make_student
from geofloor.students._settings import choose

FINAL_SHARE = 0.1  # of the steps, whose evaluations make the floor
CHECKPOINT = "geofloor distillation checkpoint"
HISTORY = table(step=number(0, whole=True), train_kl=optional(number()), eval_kl=number(), learning_rate=number(0))
_STATE = {"unused": texts, "step": number(1, whole=True), "kl_steps": number(0, whole=True), "history": HISTORY}
_LOOK_EVERY = 50  # steps between looks at the loss, each of which waits for the device
# What does not change the result of a fit, and so may differ when it is resumed.
_INCIDENTAL = frozenset(
    {"teacher", "teacher_kwargs", "device", "verbose", "checkpoint_path", "checkpoint_every", "random_state"}
    | {"layer", "pooling", "convergence_tol"}
)


@dataclass
class Run:
    """All that a training step of one student reads and writes."""

    estimator: Any
    model: LanguageModel
    projection: torch.nn.Linear | None  # onto the teacher's hidden states, where these are in the loss
    optimizers: list[torch.optim.Optimizer]
    seed: int
    kl_sum: torch.Tensor  # of the steps since the last evaluation
    final_sums: np.ndarray  # KL of each held-out sequence, summed over positions and over the final evaluations
    kl_steps: int = 0
    step: int = 0
    kept: int = 0  # steps that its checkpoint has
    history: list[dict[str, Any]] = field(default_factory=list)

    def parameters(self) -> list[torch.nn.Parameter]:
        extra = [] if self.projection is None else list(self.projection.parameters())
        return [*self.model.module.parameters(), *extra]

    def loss(
        self, student: LazyLogits, teacher: LazyLogits, plan: LossTerms, hidden_scale: torch.Tensor | None
    ) -> torch.Tensor:
        """Loss of part of a batch; what it adds to the batch's KL goes into `kl_sum`."""
        loss, kl = ChunkedLoss.apply(*student, plan)
        self.kl_sum += kl
        if self.projection is not None:
            error = (self.projection(student.rows).float() - teacher.rows.float()).square().mean(dim=1)
            error = error.mean() * len(error) if plan.weights is None else error @ plan.weights
            loss = loss + error * plan.kl_scale * hidden_scale
        return loss


class Distillation:
    """One pass over the data that trains several students of one teacher, which differ in width and seed.

    Several processes each take their share of the rows of every batch. All else, they do alike.

    Parameters
    ----------
    estimators : sequence of DistilledStudent
        What to train. Parameters are read; nothing is set.
    settings : SimpleNamespace
        What `plain_settings` made of the parameters that all of them share.
    teacher : torch.nn.Module
        On the device.
    device : torch.device
        Where to train.
    processes : Processes
        Those that train together.
    """

    def __init__(
        self,
        estimators: Sequence[Any],
        settings: SimpleNamespace,
        teacher: torch.nn.Module,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.estimators = estimators
        self.processes = processes
        self.settings = settings
        self.device = device
        self.teacher = LanguageModel(teacher, f"teacher={type(teacher).__name__}")
        head = self.teacher.head
        if head is not None and not bool(torch.isfinite(head.weight).all()):
            raise ValueError("The teacher's unembedding is not finite, nor would its logits be; check its weights.")
        self.matmul_dtype = torch.bfloat16 if settings.precision == "bf16" else None
        self.teacher_finite = torch.ones((), dtype=torch.bool, device=self.device)

    def rows_of(self, tokens: Any, name: str) -> TokenRows:
        return self.teacher.token_rows(tokens, name, self.settings.pad_token_id)

    def open(self, tokens: Any, eval_tokens: Any) -> None:
        """Check the data, divide them, and choose what they decide of the settings."""
        for estimator in self.estimators:
            self.teacher.check_layer(estimator.layer)
        self.tokens = self.rows_of(tokens, "tokens")
        if eval_tokens is not None:
            self.held_out = self.rows_of(eval_tokens, "eval_tokens")
            self.n_train, first = len(self.tokens), 0
        else:
            n_held_out = max(round(self.settings.validation_fraction * len(self.tokens)), 1)
            self.held_out, self.n_train = self.tokens, len(self.tokens) - n_held_out
            first = self.n_train
            if self.n_train < 1:
                raise ValueError(
                    f"tokens has {len(self.tokens)} sequence(s), of which validation_fraction="
                    f"{self.settings.validation_fraction:g} leaves none to train on; give more, or eval_tokens."
                )
        last = min(first + self.settings.eval_sequences, len(self.held_out))
        self.eval_rows = np.arange(first, last)
        principal = default_init(self.teacher.module) == "principal"
        choose(self.settings, n_sequences=self.n_train, length=self.tokens.length, principal=principal)
        self._evaluated = f"{first}:{last}"

    def identify(self) -> None:
        """Read all tokens and weights for checksums, where a checkpoint or another process is compared by them."""
        self.data_fingerprint = self.teacher_digest = ""
        if self.processes.n > 1 or any(estimator.checkpoint_path is not None for estimator in self.estimators):
            held_out = "" if self.held_out is self.tokens else self.held_out.fingerprint(self.eval_rows[-1] + 1)
            self.data_fingerprint = f"{self.tokens.fingerprint()}:{held_out}:{self._evaluated}"
            self.teacher_digest = self.teacher.digest()

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16")

    def to_device(self, array: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = to_device(array, self.device)
        return tensor if dtype is None else tensor.to(dtype)

    @torch.no_grad()
    def targets(self, ids: torch.Tensor, *, keep: bool) -> Targets:
        with self.autocast():
            rows = self.teacher.logits(ids)
        # Of logits some may be −inf, as in a vocabulary that is padded.
        self.teacher_finite &= torch.isfinite(rows.rows if rows.weight is not None else rows.rows.amax(dim=1)).all()
        return Targets(rows, self.settings.temperature, keep=keep, matmul_dtype=self.matmul_dtype)

    def _hidden_scale(self) -> torch.Tensor | None:
        """Factor that makes the hidden-state loss a share of the teacher's variance, by the first held-out rows."""
        if not self.settings.hidden_weight:
            return None
        if self.teacher.head is None:
            raise ValueError(
                f"hidden_weight={self.settings.hidden_weight!r} needs a teacher whose hidden states are known, such as "
                "a transformers model with a linear unembedding; use hidden_weight=0."
            )
        ids = self.to_device(self.held_out.take(self.eval_rows[: self.settings.batch_size]).ids)
        rows = self.targets(ids, keep=False).source.rows.float()
        return self.settings.hidden_weight / rows.var(dim=0).mean()

    # States

    def start(self, estimator: Any) -> Run:
        """A run before its first step."""
        seed = self.processes.everyone(draw_seed(estimator.random_state))[0]
        sample = None
        if self.settings.init == "principal":
            sample = self.tokens.take(np.arange(min(self.n_train, 64))).ids
        module = self.new_module(estimator, init=self.settings.init, random_state=seed, tokens=sample)
        run = self.run(estimator, module, seed)
        self.processes.copy_from_main([*module.state_dict().values(), *run.parameters()])
        return run

    def new_module(self, estimator: Any, **options: Any) -> Any:
        if estimator.n_heads is not None:  # ways to make students that were registered need not know of heads
            options["n_heads"] = int(estimator.n_heads)
        return make_student(self.teacher.module, int(estimator.width), **options)

    def run(self, estimator: Any, module: torch.nn.Module, seed: int) -> Run:
        module = module.to(self.device).eval().requires_grad_()
        model = LanguageModel(module, "the student")
        if model.n_vocabulary != self.teacher.n_vocabulary:
            raise ValueError(
                f"the student has a vocabulary of {model.n_vocabulary} tokens, the teacher one of "
                f"{self.teacher.n_vocabulary}; make students with the teacher's vocabulary."
            )
        projection = None
        if self.settings.hidden_weight:
            if model.head is None or self.teacher.head is None:
                raise ValueError("hidden_weight needs a student whose hidden states are known; use hidden_weight=0.")
            # Not initialized by torch, which would draw from its global generator.
            projection = torch.nn.utils.skip_init(
                torch.nn.Linear, model.head.in_features, self.teacher.head.in_features, device="cpu"
            )
            with torch.no_grad():
                generator = torch_generator(seed)
                for parameter in projection.parameters():
                    parameter.normal_(std=model.head.in_features**-0.5, generator=generator)
            projection = projection.to(self.device)
        parameters = [*module.parameters(), *([] if projection is None else projection.parameters())]
        return Run(
            estimator,
            model,
            projection,
            _optimizers(self.settings, model, parameters),
            seed,
            kl_sum=torch.zeros((), device=self.device),
            final_sums=np.zeros(len(self.eval_rows)),
        )

    # The loop

    def train(self) -> list[Run]:
        """Train to the end, from the checkpoints that are there."""
        keep_freed_memory(self.device)
        self.identify()
        self.agree()
        self.hidden_scale = self._hidden_scale()
        found = [self.resume(estimator) for estimator in self.estimators]
        self.processes.agree(checkpoints=[run and (run.seed, run.step) for run in found])
        runs = [run or self.start(estimator) for run, estimator in zip(found, self.estimators, strict=True)]
        first = min(run.step for run in runs)
        n_steps, settings = self.settings.n_steps, self.settings
        new = [run for run in runs if not run.history]
        if new:
            self.evaluate(new)
        description = "distillation" if len(runs) == 1 else f"distillation of {len(runs)} students"
        verbose = settings.verbose if self.processes.is_main else 0
        with progress_bar(description, total=n_steps, initial=first, verbose=verbose) as bar:
            for step in range(first, n_steps):
                # A run that was checkpointed later than the others waits for them.
                active = [run for run in runs if run.step == step]
                self.train_step(active, step)
                done = step + 1
                last = done == n_steps
                if done % settings.eval_every == 0 or last:
                    self.evaluate(active)
                    bar.set_postfix({str(run.estimator.width): f"{run.history[-1]['eval_kl']:.4f}" for run in runs})
                elif done % _LOOK_EVERY == 0:
                    self.look(active)
                if done % settings.checkpoint_every == 0 and not last:
                    self.checkpoint_all(active)
                bar.update()
        return runs

    def agree(self) -> None:
        """Refuse processes that were told different things."""
        parameters = [
            (
                settings_of(estimator),
                plain_seed(estimator.random_state),
                estimator.checkpoint_path is None,
                estimator.checkpoint_every,
            )
            for estimator in self.estimators
        ]
        self.processes.agree(parameters=parameters, tokens=self.data_fingerprint, teacher=self.teacher_digest)

    def train_step(self, runs: list[Run], step: int) -> None:
        """One step of every run on the same batch, with one forward pass of the teacher."""
        settings = self.settings
        batch = self.tokens.take(epoch_rows(self.n_train, settings.batch_size, step, settings.data_seed))
        share = batch.share(self.processes.share(len(batch.ids)))
        if not self.processes.is_main:
            for run in runs:
                run.kl_sum.zero_()  # what the steps before gave is in the main process's
        for part in share.split(settings.gradient_accumulation):
            ids = self.to_device(part.ids)
            targets = self.targets(ids, keep=len(runs) > 1)
            plan = self.plan(targets, part, batch)
            for run in runs:
                with self.autocast():
                    student = run.model.logits(ids)
                run.loss(student, targets.source, plan, self.hidden_scale).backward()
        self.add_up(runs)
        factor = warmup_cosine(step, n_steps=settings.n_steps, warmup_steps=settings.warmup_steps)
        for run in runs:
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(run.parameters(), settings.clip_norm)
            for optimizer in run.optimizers:
                optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            run.step += 1
            run.kl_steps += 1

    def add_up(self, runs: list[Run]) -> None:
        """Sum gradients and KLs over the processes."""
        if self.processes.n == 1:
            return
        parameters = [parameter for run in runs for parameter in run.parameters()]
        present = torch.ones(len(parameters), device=self.device)
        absent = [index for index, parameter in enumerate(parameters) if parameter.grad is None]
        for index in absent:
            present[index] = 0.0
            parameters[index].grad = torch.zeros_like(parameters[index])
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        self.processes.sum([present, *(run.kl_sum for run in runs), *gradients])
        if absent:  # what no process has used is left alone, as with one process
            for parameter, n_processes in zip(parameters, present.tolist(), strict=True):
                if n_processes == 0:
                    parameter.grad = None

    def plan(self, targets: Targets, part: Batch, batch: Batch) -> LossTerms:
        """Weights of the positions of a part, so that the parts of a batch add up to its mean."""
        weights = None if part.mask is None else self.to_device(part.mask.reshape(-1), targets.dtype)
        labels = None
        if self.settings.cross_entropy_weight:
            following = np.roll(part.ids, -1, axis=1)
            counted = np.ones(part.ids.shape) if part.mask is None else np.roll(part.mask, -1, axis=1).astype(float)
            counted[:, -1] = 0.0
            counted *= self.settings.cross_entropy_weight / max(batch.n_labels, 1)
            labels = self.to_device(following.reshape(-1)), self.to_device(counted.reshape(-1), targets.dtype)
        return LossTerms(targets, weights, 1.0 / batch.n_positions, self.settings.temperature**2, labels)

    # Measuring

    def eval_counts(self) -> np.ndarray:
        """Positions of each held-out sequence."""
        batch = self.held_out.take(self.eval_rows)
        return np.full(len(batch.ids), batch.ids.shape[1]) if batch.mask is None else batch.mask.sum(axis=1)

    def evaluate(self, runs: list[Run]) -> None:
        """Add a row to each run's history, of the KL on held-out text."""
        self.look(runs)
        sums, counts = self.held_out_kl([run.model for run in runs], self.held_out, self.eval_rows)
        settings = self.settings
        for run, row in zip(runs, sums, strict=True):
            eval_kl = float(row.sum() / counts.sum())
            if not np.isfinite(eval_kl):
                raise self.not_finite(run, eval_kl)
            factor = warmup_cosine(max(run.step - 1, 0), n_steps=settings.n_steps, warmup_steps=settings.warmup_steps)
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
            if is_final(run.step, settings.n_steps):
                run.final_sums += row

    @torch.no_grad()
    def held_out_kl(
        self, students: list[LanguageModel], tokens: TokenRows, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """KL of each student on each sequence, summed over positions (n_students, n_sequences), and the positions."""
        size = self.eval_size
        rows = rows[self.processes.share(len(rows))]
        sums, counts = [torch.zeros((len(students), 0), device=self.device)], [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(rows), size):
            batch = tokens.take(rows[start : start + size])
            ids = self.to_device(batch.ids)
            targets = self.targets(ids, keep=len(students) > 1)
            mask = None if batch.mask is None else self.to_device(batch.mask, targets.dtype)
            found = []
            for student in students:
                with self.autocast():
                    student_rows = student.logits(ids)
                kls = row_kls(student_rows, targets).view(ids.shape)
                found.append((kls if mask is None else kls * mask).sum(dim=1))
            sums.append(torch.stack(found))
            counts.append(np.full(len(ids), ids.shape[1]) if batch.mask is None else batch.mask.sum(axis=1))
        shares = self.processes.everyone((torch.cat(sums, dim=1).cpu().double().numpy(), np.concatenate(counts)))
        return np.concatenate([share[0] for share in shares], axis=1), np.concatenate([share[1] for share in shares])

    @torch.no_grad()
    def zero_width_loss(self) -> float:
        """Loss on held-out text of a student of width 0."""
        sums = ZeroWidthLoss(self.teacher.n_vocabulary)
        rows = self.eval_rows[self.processes.share(len(self.eval_rows))]
        for start in range(0, len(rows), self.eval_size):
            batch = self.held_out.take(rows[start : start + self.eval_size])
            with self.autocast():
                found = self.teacher.logits(self.to_device(batch.ids))
            if batch.mask is not None:
                found = found._replace(rows=found.rows[self.to_device(batch.mask.reshape(-1))])
            sums.add(Targets(found, self.settings.temperature, matmul_dtype=self.matmul_dtype))
        shares = self.processes.everyone((sums.total, sums.negative_entropy, sums.n_positions))
        sums.total, sums.negative_entropy, sums.n_positions = (sum(each) for each in zip(*shares, strict=True))
        return sums.loss()

    @property
    def eval_size(self) -> int:
        """Sequences per forward pass of an evaluation."""
        return max(self.settings.batch_size // self.settings.gradient_accumulation, 1)

    def look(self, runs: list[Run]) -> None:
        """Refuse to go on with a loss that is not finite."""
        for run, kl in zip(runs, torch.stack([run.kl_sum for run in runs]).tolist(), strict=True):
            if not np.isfinite(kl):
                raise self.not_finite(run, kl)

    def not_finite(self, run: Run, value: float) -> ValueError:
        wrong = (~self.teacher_finite).float()
        self.processes.sum([wrong])  # each looked at its own share
        if bool(wrong):
            return ValueError(
                f"The teacher's logits are not finite, by step {run.step} at the latest; check its weights, or load "
                "it in a dtype with more range, such as teacher_kwargs={'dtype': 'float32'}."
            )
        name, settings = f"The KL of the student of width {run.estimator.width}", self.settings
        if run.step == 0:
            return ValueError(f"{name} is {value} before the first step: init={settings.init!r} gives no finite start.")
        clip = f"lower clip_norm={settings.clip_norm:g}" if settings.clip_norm else "set clip_norm=1.0"
        return ValueError(
            f"{name} became {value} by step {run.step}; lower learning_rate={settings.learning_rate:g}, lengthen "
            f"warmup_steps={settings.warmup_steps}, or {clip}."
        )

    # Checkpoints

    def checkpoint_all(self, runs: list[Run]) -> None:
        """Write the checkpoints of runs that have gone on since their last."""
        runs = [run for run in runs if run.step > run.kept and run.estimator.checkpoint_path is not None]
        if runs:
            self.look(runs)
        for run in runs:
            self.processes.on_main(self.checkpoint, run)
            run.kept = run.step

    def checkpoint(self, run: Run) -> None:
        tensors = {f"model.{name}": value for name, value in run.model.module.state_dict().items()}
        if run.projection is not None:
            tensors |= {f"projection.{name}": value for name, value in run.projection.state_dict().items()}
        for index, optimizer in enumerate(run.optimizers):
            tensors |= optimizer_tensors(optimizer, f"optimizer-{index}")
        tensors |= {"kl_sum": run.kl_sum, "final_sums": torch.from_numpy(run.final_sums)}
        unused = sorted(self.expected(run).keys() - tensors.keys())  # what no step has reached has no moments
        metadata = {
            "unused": unused,
            "settings": settings_of(run.estimator),
            "tokens": self.data_fingerprint,
            "teacher": self.teacher_digest,
            **{name: getattr(run, name) for name in ("seed", "step", "kl_steps", "history")},
        }
        write_tensors(run.estimator.checkpoint_path, tensors, kind=CHECKPOINT, metadata=metadata)

    def expected(self, run: Run) -> dict[str, tuple[torch.dtype, Shape]]:
        """Types and shapes of a checkpoint's tensors."""
        parts = {"model.": run.model.module, "projection.": run.projection}
        states = {
            f"{prefix}{name}": (tensor.dtype, tuple(tensor.shape))
            for prefix, part in parts.items()
            if part is not None
            for name, tensor in part.state_dict().items()
        }
        for index, optimizer in enumerate(run.optimizers):
            states |= expected_optimizer_tensors(optimizer, f"optimizer-{index}")
        return {**states, "kl_sum": (torch.float32, ()), "final_sums": (torch.float64, (len(self.eval_rows),))}

    def resume(self, estimator: Any) -> Run | None:
        """A run from its checkpoint, if there is one; refuse one of other settings, data or teacher."""
        found = read_checkpoint(
            estimator.checkpoint_path,
            kind=CHECKPOINT,
            settings=settings_of(estimator),
            random_state=estimator.random_state,
            made_with={"tokens": self.data_fingerprint, "teacher": self.teacher_digest},
            state={**_STATE, "step": number(1, self.settings.n_steps, whole=True)},
        )
        if found is None:
            return None
        tensors, metadata = found
        step, history = metadata["step"], metadata["history"]
        module = self.new_module(estimator, random_state=metadata["seed"])
        run = self.run(estimator, module, metadata["seed"])
        with refusing(estimator.checkpoint_path):
            expected = self.expected(run)
            if not all(name.startswith("optimizer-") for name in metadata["unused"]):
                raise ValueError(f"it lacks {metadata['unused']!r:.80}")
            check_tensors(tensors, {name: each for name, each in expected.items() if name not in metadata["unused"]})
            for index in range(len(run.optimizers)):
                check_optimizer_tensors(tensors, step, f"optimizer-{index}")
            every, last = self.settings.eval_every, self.settings.n_steps
            due = [at for at in range(step + 1) if at % every == 0 or at == last]
            if [row["step"] for row in history] != due or metadata["kl_steps"] != step - due[-1]:
                raise ValueError(f"its history is not that of {step} steps")
        module.load_state_dict(_part(tensors, "model."))
        if run.projection is not None:
            run.projection.load_state_dict(_part(tensors, "projection."))
        for index, optimizer in enumerate(run.optimizers):
            load_optimizer_tensors(optimizer, tensors, f"optimizer-{index}")
        run.kl_sum += tensors["kl_sum"].to(self.device)
        run.final_sums += tensors["final_sums"].numpy()
        run.step = run.kept = step
        run.kl_steps, run.history = metadata["kl_steps"], history
        return run


def _optimizers(
    settings: SimpleNamespace, model: LanguageModel, parameters: list[torch.nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices between embedding and unembedding and AdamW for the rest."""
    rate, decay = settings.learning_rate, settings.weight_decay
    matrices = model.inner_matrices() if settings.optimizer == "muon" else []
    inner = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in inner]
    adamw = torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=True)
    return [adamw, Muon(matrices, lr=rate, weight_decay=decay)] if matrices else [adamw]


def is_final(step: int, n_steps: int) -> bool:
    return step > (1.0 - FINAL_SHARE) * n_steps


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def settings_of(estimator: Any) -> dict[str, Any]:
    """Parameters that change the result of a fit."""
    return plain_parameters(estimator, without=_INCIDENTAL)
