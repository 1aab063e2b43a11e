"""Settings of a distillation: checked, then completed from teacher and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geofloor._validation import check_choice, check_number

AUTO = "auto"
PAPER = {
    "temperature": 2.0,
    "n_steps": 30_000,
    "batch_size": 32,
    "learning_rate": 3e-4,
    "weight_decay": 0.01,
    "warmup_steps": 1000,
    "optimizer": "adamw",
    "clip_norm": None,
    "init": "random",
    "eval_every": 500,
}
_FEW_TOKENS, _MANY_TOKENS = 2048, 16_384  # per batch: enough for short texts, and the most for long ones
_FEWEST_STEPS, _MOST_STEPS = 600, 4000
_FEWEST_BATCHES = 8  # per pass over the text
_EVALUATIONS = 20
_LEARNING_RATE, _MEASURED_WIDTH = 1e-2, 128  # the rate that did best, up to this width of the teacher


@dataclass(frozen=True)
class StudentSpec:
    """Parameters in which the students of a pass differ."""

    width: int
    heads: Mapping[str, int]  # their number and size, as far as the caller has chosen them
    random_state: int | np.random.RandomState | None
    checkpoint_path: Path | None
    recorded: Mapping[str, Any]  # parameters that change the result of training, written into checkpoints


@dataclass(frozen=True)
class DistillationSettings:
    """Checked settings, shared by all students of a pass.

    Parameters of `DistilledStudent` with the same names. None stands for ``"auto"`` in the last six.
    """

    temperature: float
    weight_decay: float
    optimizer: str
    clip_norm: float | None
    gradient_accumulation: int
    precision: str | None
    cross_entropy_weight: float
    hidden_weight: float
    validation_fraction: float
    eval_sequences: int
    tol: float
    pad_token_id: int | None
    data_seed: int
    checkpoint_every: int
    verbose: int
    learning_rate: float | None
    n_steps: int | None
    batch_size: int | None
    warmup_steps: int | None
    eval_every: int | None
    init: str | None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> DistillationSettings:
        """Check the parameters of a `DistilledStudent`.

        Raises
        ------
        ValueError
            If a parameter is out of its range; the message names it.
        """

        def whole(name: str, low: int) -> int:
            return check_number(name, parameters[name], low, whole=True)

        def whole_or_auto(name: str, low: int) -> int | None:
            value = parameters[name]
            return None if isinstance(value, str) and value == AUTO else whole(name, low)

        def real(name: str, **limits: Any) -> float:
            return check_number(name, parameters[name], 0, **limits)

        def real_or_auto(name: str, **limits: Any) -> float | None:
            value = parameters[name]
            return None if isinstance(value, str) and value == AUTO else real(name, **limits)

        init = check_choice("init", parameters["init"], (AUTO, "random", "principal"))
        settings = cls(
            temperature=real("temperature", open_low=True),
            n_steps=whole_or_auto("n_steps", 1),
            batch_size=whole_or_auto("batch_size", 1),
            learning_rate=real_or_auto("learning_rate", open_low=True),
            weight_decay=real("weight_decay"),
            warmup_steps=whole_or_auto("warmup_steps", 0),
            optimizer=check_choice("optimizer", parameters["optimizer"], ("adamw", "muon")),
            clip_norm=None if parameters["clip_norm"] is None else real("clip_norm"),
            gradient_accumulation=whole("gradient_accumulation", 1),
            precision=check_choice("precision", parameters["precision"], (None, "bf16")),
            init=None if init == AUTO else init,
            cross_entropy_weight=real("cross_entropy_weight"),
            hidden_weight=real("hidden_weight"),
            validation_fraction=real("validation_fraction", high=1),
            eval_sequences=whole("eval_sequences", 1),
            eval_every=whole_or_auto("eval_every", 1),
            tol=real("tol"),
            pad_token_id=None if parameters["pad_token_id"] is None else whole("pad_token_id", -(2**63)),
            data_seed=whole("data_seed", 0),
            checkpoint_every=whole("checkpoint_every", 1),
            verbose=parameters["verbose"],
        )
        if settings.n_steps is not None and settings.warmup_steps is not None:
            _check_warmup(settings.warmup_steps, settings.n_steps)
        if settings.batch_size is not None and settings.gradient_accumulation > settings.batch_size:
            raise ValueError(
                f"gradient_accumulation={settings.gradient_accumulation} divides batches of batch_size="
                f"{settings.batch_size} sequences; it can't exceed that."
            )
        return settings

    def resolve(
        self, *, n_sequences: int, length: int, principal: bool, teacher_width: int | None = None
    ) -> ResolvedSettings:
        """Choose all ``"auto"`` settings by the rules in the docstring of `DistilledStudent`.

        Parameters
        ----------
        n_sequences, length : int
            Sequences to train on, and tokens per sequence.
        principal : bool
            Whether students of this teacher can start in its principal directions.
        teacher_width : int or None, default=None
            The teacher's width, if it is known.

        Returns
        -------
        settings : ResolvedSettings
            Settings without ``"auto"``.

        Raises
        ------
        ValueError
            If `warmup_steps` is not below the number of steps.
        """
        batch_size, n_steps = self.batch_size, self.n_steps
        if batch_size is None:
            few, many = (max(round(n / length), 1) for n in (_FEW_TOKENS, _MANY_TOKENS))
            wanted = max(few, min(many, -(-n_sequences // _MOST_STEPS)))
            batch_size = max(min(wanted, n_sequences // _FEWEST_BATCHES), self.gradient_accumulation, 1)
        if n_steps is None:
            n_steps = min(max(n_sequences // batch_size, _FEWEST_STEPS), _MOST_STEPS)
        warmup_steps = n_steps // 10 if self.warmup_steps is None else self.warmup_steps
        _check_warmup(warmup_steps, n_steps)
        wider = max((teacher_width or 0) / _MEASURED_WIDTH, 1.0)
        chosen = {
            "learning_rate": _LEARNING_RATE / wider if self.learning_rate is None else self.learning_rate,
            "batch_size": batch_size,
            "n_steps": n_steps,
            "warmup_steps": warmup_steps,
            "eval_every": max(n_steps // _EVALUATIONS, 1) if self.eval_every is None else self.eval_every,
            "init": self.init or ("principal" if principal else "random"),
        }
        return ResolvedSettings(**vars(self) | chosen)


@dataclass(frozen=True)
class ResolvedSettings(DistillationSettings):
    """Settings without ``"auto"``."""

    learning_rate: float
    n_steps: int
    batch_size: int
    warmup_steps: int
    eval_every: int
    init: str

    @property
    def eval_batch_size(self) -> int:
        """Sequences per forward pass of an evaluation."""
        return max(self.batch_size // self.gradient_accumulation, 1)


def _check_warmup(warmup_steps: int, n_steps: int) -> None:
    if warmup_steps >= n_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be below n_steps={n_steps}; use warmup_steps='auto'.")
