"""Find reasons to doubt a fit of a sparse autoencoder, in its data and in its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from geofloor.features._autoencoder_settings import Settings, row_norms, thin

_FEW_ROWS, _FEW_STEPS = 5000, 500
_LOSS_FALLING = 0.01  # of the first loss, over the last tenth of the steps; good fits had up to 0.005
_L0_FALLING = 0.1  # of the final L0
_DENSE = 0.1  # of the latents
_DEAD = 2 / 3  # of the latents
_OFF_TARGET = 0.1  # of the mean number of codes asked for
_LITTLE = 0.5  # explained variance
_NO_BETTER = 0.9  # of the variance of noise that stays unexplained
_OUTLYING = 0.1  # share of the variance
_NOISE_ROWS = 8192  # rows of the data that are mixed into noise


class Outcome(NamedTuple):
    """Result of a fit: the history of its steps, and explained variances of held-out rows.

    Attributes
    ----------
    history : sequence of dict
        Measurements of each step.
    settings : Settings
        Settings of the fit.
    n_inputs : int
        Number of inputs.
    n_rows : int or None
        Number of rows given; None if it is unknown.
    held_out : float or None
        Explained variance of held-out rows; None if there were none.
    l0 : float or None
        Codes per held-out row; None if there were no such rows, or if `activation` keeps `l0` codes of every row.
    noise : float or None
        Explained variance of as many rows of Gaussian noise with the same covariance.
    """

    history: Sequence[dict[str, float]]
    settings: Settings
    n_inputs: int
    n_rows: int | None
    held_out: float | None
    l0: float | None
    noise: float | None


def find_doubts(outcome: Outcome) -> list[str]:
    """List the reasons not to trust a fit, each with its remedy."""
    history, settings, n_inputs, n_rows, held_out, held_out_l0, noise = outcome
    last = history[-1]
    n_steps = int(last["step"])
    found = []
    if n_rows is not None and n_rows < _FEW_ROWS:
        found.append(f"it saw {n_rows:,} rows only; give at least {_FEW_ROWS:,}, and better 100,000")
    if n_steps < _FEW_STEPS:
        found.append(f"it took {n_steps:,} steps only; raise n_epochs={settings.n_epochs} or lower batch_size")
    else:
        loss, l0_fall = (_final_fall([row[name] for row in history]) for name in ("loss", "l0"))
        if loss > _LOSS_FALLING * history[0]["loss"]:
            share = loss / history[0]["loss"]
            found.append(
                f"the loss still fell by {share:.1%} of the first over the last tenth of the steps; raise n_epochs"
            )
        if l0_fall > _L0_FALLING * history[-1]["l0"]:
            found.append(f"L0 still fell by {l0_fall:.3g} over the last tenth of the steps; raise n_epochs")
    l0 = _final_mean([row["l0"] for row in history])
    if l0 > _DENSE * settings.n_latents:
        remedy = "lower l0" if settings.l0 else "raise l1_coefficient, or train longer"
        found.append(f"{l0:.0f} of {settings.n_latents:,} latents fire per token, which is not sparse; {remedy}")
    elif l0 >= n_inputs:
        found.append(
            f"rows have {l0:.0f} codes and {n_inputs} inputs, and as many directions as inputs copy any row; lower l0"
        )
    if settings.l0 is not None and settings.l0_per_row is None:
        reached = l0 if held_out_l0 is None else held_out_l0
        if abs(reached - settings.l0) > _OFF_TARGET * settings.l0:
            remedy = "lower l0 or raise n_latents" if reached < settings.l0 else "raise l0 or n_epochs"
            found.append(f"rows have {reached:.3g} codes on average, not l0={settings.l0}; {remedy}")
    if last["dead"] > _DEAD:
        found.append(f"{last['dead']:.0%} of the latents are dead; lower learning_rate or n_latents")
    if held_out is not None and held_out < _LITTLE:
        found.append(f"it explains {held_out:.0%} of the variance of held-out rows only; give more rows")
    elif held_out is not None and noise is not None and 1.0 - held_out > _NO_BETTER * (1.0 - noise):
        found.append(
            f"it explains held-out rows ({held_out:.1%}) hardly better than Gaussian noise of the same covariance "
            f"({noise:.1%}), so that no sparse features were found; look at the data, or give more rows"
        )
    return found


def _final_mean(values: Sequence[float]) -> float:
    """Average the last tenth of the values."""
    tenth = max(len(values) // 10, 1)
    return float(np.mean(values[-tenth:]))


def _final_fall(values: Sequence[float]) -> float:
    """Measure the fall of the mean from the first to the second half of the last tenth of the values."""
    half = max(len(values) // 20, 1)
    return float(np.mean(values[-2 * half : -half]) - np.mean(values[-half:]))


def find_outliers(sample: np.ndarray) -> str | None:
    """Describe outlying rows with over a tenth of the variance, and their remedy; return None without such rows."""
    n_outlying, share = outlier_share(sample)
    if share <= _OUTLYING:
        return None
    return (
        f"X has {n_outlying} row(s) in {len(sample):,} with {share:.0%} of the variance. The distance of each from the "
        "median row is over ten times the median distance. They may be attention sinks, and they dominate the loss and "
        "every second moment; leave them out by skip_first or exclude_tokens of the ActivationExtractor, or by "
        "geofloor.features.drop_outliers."
    )


def outlier_share(sample: np.ndarray) -> tuple[int, float]:
    """Count outlying rows and compute their share of the variance about the median row.

    A row is outlying if its distance from the median row is over ten times the median distance, and among the largest
    thousandth of all distances.
    """
    squares = np.square(row_norms(sample - np.median(thin(sample), axis=0)))
    farthest = np.sort(squares)[-max(len(squares) // 1000, 1) :]
    outlying = farthest[farthest > 100.0 * np.median(squares)]
    total = float(squares.sum())
    return len(outlying), float(outlying.sum()) / total if total > 0.0 else 0.0


def noise_like(sample: np.ndarray, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw Gaussian rows with the mean and covariance of a sample, by mixing its rows at random."""
    seen = sample[:_NOISE_ROWS].astype(np.float64)
    mean = seen.mean(axis=0)
    mixing = rng.standard_normal((n_rows, len(seen)))
    return (mixing @ (seen - mean)) / np.sqrt(len(seen)) + mean
