"""Training state of one student, and its optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from geofloor._training.callbacks import FitTasks
from geofloor._training.muon import Muon
from geofloor._training.seeds import torch_generator
from geofloor.language_models._divergence import ChunkedLoss, LazyLogits, LossTerms
from geofloor.language_models._logits import LanguageModel
from geofloor.students._architecture import make_student
from geofloor.students._settings import ResolvedSettings, StudentSpec

_FINAL_SHARE = 0.1  # of the steps; the floor is the mean over their evaluations


@dataclass
class Run:
    """State of the training of one student."""

    spec: StudentSpec
    settings: ResolvedSettings
    model: LanguageModel
    projection: torch.nn.Linear | None  # from hidden states to the teacher's, if the loss compares them
    optimizers: list[torch.optim.Optimizer]
    seed: int
    kl_sum: torch.Tensor  # over training steps since the last evaluation
    final_sums: np.ndarray  # per held-out sequence: KL summed over positions and over the final evaluations
    kl_steps: int = 0  # training steps since the last evaluation
    step: int = 0
    saved_step: int = 0  # of its checkpoint
    is_stopped: bool = False  # by a callback, before the last step
    tasks: FitTasks = field(default_factory=FitTasks)  # of the callbacks of its student
    history: list[dict[str, Any]] = field(default_factory=list)

    def parameters(self) -> list[torch.nn.Parameter]:
        """List the trained parameters."""
        return _trained_parameters(self.model, self.projection)

    def loss(
        self, student: LazyLogits, teacher: LazyLogits, terms: LossTerms, hidden_scale: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the loss of a micro-batch, and add its KL to `kl_sum`.

        Parameters
        ----------
        student, teacher : LazyLogits
            Logits of both.
        terms : LossTerms
            Targets and weights of the positions.
        hidden_scale : Tensor or None
            Factor on the squared error of hidden states, if there is a projection.
        """
        loss, kl = ChunkedLoss.apply(*student, terms)
        self.kl_sum += kl
        if self.projection is not None:
            error = (self.projection(student.rows).float() - teacher.rows.float()).square().mean(dim=1)
            error = error.mean() * len(error) if terms.weights is None else error @ terms.weights
            loss = loss + error * terms.kl_scale * hidden_scale
        return loss

    @property
    def is_done(self) -> bool:
        """Whether the last step was taken, or a callback has stopped training."""
        return self.is_stopped or self.step >= self.settings.n_steps

    def count_evaluations_left(self) -> int:
        """Count the evaluations that are due from the last one on, with the one before training."""
        if self.is_done:
            return 0
        every = self.settings.eval_every
        return -(-self.settings.n_steps // every) - self.step // every + (not self.history)

    def final_kls(self) -> np.ndarray:
        """Average the final evaluations: KL of each held-out sequence, summed over its positions.

        A run stopped before all of them has only its last evaluation.
        """
        n_final = sum(is_final(row["step"], self.settings.n_steps) for row in self.history)
        return self.final_sums / max(n_final, 1)


def is_final(step: int, n_steps: int) -> bool:
    """Tell whether the evaluation after a step counts for the floor."""
    return step > (1.0 - _FINAL_SHARE) * n_steps


def build_run(
    spec: StudentSpec,
    teacher: LanguageModel,
    settings: ResolvedSettings,
    *,
    seed: int,
    n_evaluated: int,
    device: torch.device,
    init: str = "random",
    tokens: np.ndarray | None = None,
) -> Run:
    """Make a student and its optimizers, at step 0.

    Parameters
    ----------
    spec : StudentSpec
        The student.
    teacher : LanguageModel
        Its teacher.
    settings : ResolvedSettings
        Settings of optimizers and losses.
    seed : int
        Seed of the initial weights.
    n_evaluated : int
        Number of held-out sequences.
    device : torch.device
        Device to train on.
    init, tokens
        As in `make_student`.

    Raises
    ------
    ValueError
        If student and teacher do not share a vocabulary, or the settings need hidden states that are not known.
    """
    module = make_student(teacher.module, spec.width, init=init, random_state=seed, tokens=tokens, **spec.heads)
    module = module.to(device).eval().requires_grad_()
    model = LanguageModel(module, "the student")
    if model.n_vocabulary != teacher.n_vocabulary:
        raise ValueError(
            f"the student has a vocabulary of {model.n_vocabulary} tokens, the teacher one of {teacher.n_vocabulary}; "
            "make students with the teacher's vocabulary."
        )
    projection = None
    if settings.hidden_weight:
        if model.head is None or teacher.head is None:
            raise ValueError("hidden_weight needs a student whose hidden states are known; use hidden_weight=0.")
        projection = _new_projection(model.head.in_features, teacher.head.in_features, seed).to(device)
    return Run(
        spec,
        settings,
        model,
        projection,
        _new_optimizers(settings, model, _trained_parameters(model, projection)),
        seed,
        kl_sum=torch.zeros((), device=device),
        final_sums=np.zeros(n_evaluated),
    )


def _trained_parameters(model: LanguageModel, projection: torch.nn.Linear | None) -> list[torch.nn.Parameter]:
    extra = [] if projection is None else list(projection.parameters())
    return [*model.module.parameters(), *extra]


def _new_projection(width: int, teacher_width: int, seed: int) -> torch.nn.Linear:
    # torch's own initialization would draw from the global generator.
    projection = torch.nn.utils.skip_init(torch.nn.Linear, width, teacher_width, device="cpu")
    with torch.no_grad():
        generator = torch_generator(seed)
        for parameter in projection.parameters():
            parameter.normal_(std=width**-0.5, generator=generator)
    return projection


def _new_optimizers(
    settings: ResolvedSettings, model: LanguageModel, parameters: Sequence[torch.nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """Make AdamW for all parameters, or Muon for the blocks' matrices and AdamW for all others."""
    rate, decay = settings.learning_rate, settings.weight_decay
    matrices = model.inner_matrices() if settings.optimizer == "muon" else []
    inner = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in inner]
    adamw = torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=True)
    return [adamw, Muon(matrices, lr=rate, weight_decay=decay)] if matrices else [adamw]
