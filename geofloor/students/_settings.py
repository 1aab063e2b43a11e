"""Settings of a distillation: checked, made plain, and chosen from data and teacher where they are ``"auto"``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from geofloor._validation import check_choice, check_number

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
AUTO = "auto"
_FEW_TOKENS, _MANY_TOKENS = 2048, 16_384  # per batch: where 4,000 steps see all of the text, and at most
_FEWEST_STEPS, _MOST_STEPS = 600, 4000
_SMALLEST_SHARE = 8  # batches that the text makes at least
_EVALUATIONS = 20


def plain_settings(estimator: Any) -> SimpleNamespace:
    """Return an estimator's settings as plain values, those that are ``"auto"`` as they are.

    Raises
    ------
    ValueError
        If one is out of its range; the message names it.
    """

    def whole(name: str, low: float, *, auto: bool = False) -> Any:
        value = getattr(estimator, name)
        return AUTO if auto and _is_auto(value) else check_number(name, value, low, whole=True)

    def real(name: str, **limits: Any) -> float:
        return check_number(name, getattr(estimator, name), 0, **limits)

    settings = SimpleNamespace(
        temperature=real("temperature", open_low=True),
        n_steps=whole("n_steps", 1, auto=True),
        batch_size=whole("batch_size", 1, auto=True),
        learning_rate=real("learning_rate", open_low=True),
        weight_decay=real("weight_decay"),
        warmup_steps=whole("warmup_steps", 0, auto=True),
        optimizer=check_choice("optimizer", estimator.optimizer, ("adamw", "muon")),
        clip_norm=None if estimator.clip_norm is None else real("clip_norm"),
        gradient_accumulation=whole("gradient_accumulation", 1),
        precision=check_choice("precision", estimator.precision, (None, "bf16")),
        init=check_choice("init", estimator.init, (AUTO, "random", "principal")),
        cross_entropy_weight=real("cross_entropy_weight"),
        hidden_weight=real("hidden_weight"),
        validation_fraction=real("validation_fraction", high=1),
        eval_sequences=whole("eval_sequences", 1),
        eval_every=whole("eval_every", 1, auto=True),
        convergence_tol=real("convergence_tol"),
        pad_token_id=None if estimator.pad_token_id is None else whole("pad_token_id", -(2**63)),
        data_seed=whole("data_seed", 0),
        checkpoint_path=estimator.checkpoint_path,
        checkpoint_every=whole("checkpoint_every", 1),
        verbose=estimator.verbose,
    )
    if AUTO not in (settings.n_steps, settings.warmup_steps):
        _check_warmup(settings)
    if settings.batch_size != AUTO and settings.gradient_accumulation > settings.batch_size:
        raise ValueError(
            f"gradient_accumulation={settings.gradient_accumulation} divides batches of batch_size="
            f"{settings.batch_size} sequences; it can't exceed that."
        )
    return settings


def choose(settings: SimpleNamespace, *, n_sequences: int, length: int, principal: bool) -> None:
    """Fill in what is ``"auto"``, by the rules in the docstring of `DistilledStudent`.

    Parameters
    ----------
    settings : SimpleNamespace
        Changed in place.
    n_sequences, length : int
        Sequences to train on, and tokens per sequence.
    principal : bool
        Whether the teacher's students have a principal start.
    """
    if settings.batch_size == AUTO:
        few, many = (max(round(n / length), 1) for n in (_FEW_TOKENS, _MANY_TOKENS))
        wanted = max(few, min(many, -(-n_sequences // _MOST_STEPS)))
        settings.batch_size = max(min(wanted, n_sequences // _SMALLEST_SHARE), settings.gradient_accumulation, 1)
    if settings.n_steps == AUTO:
        settings.n_steps = min(max(n_sequences // settings.batch_size, _FEWEST_STEPS), _MOST_STEPS)
    if settings.warmup_steps == AUTO:
        settings.warmup_steps = settings.n_steps // 10
    if settings.eval_every == AUTO:
        settings.eval_every = max(settings.n_steps // _EVALUATIONS, 1)
    if settings.init == AUTO:
        settings.init = "principal" if principal else "random"
    _check_warmup(settings)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


def _check_warmup(settings: SimpleNamespace) -> None:
    if settings.warmup_steps >= settings.n_steps:
        raise ValueError(
            f"warmup_steps={settings.warmup_steps} must be below n_steps={settings.n_steps}; use warmup_steps='auto'."
        )
