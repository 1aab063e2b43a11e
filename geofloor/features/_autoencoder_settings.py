"""Choose the settings of a sparse autoencoder from its data, and find reasons to doubt its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from geofloor._training.settings import check_betas
from geofloor._validation import check_choice, check_number

ACTIVATIONS = ("topk", "relu")
NORMALIZATIONS = ("spread", "mean_norm", "mean_square", None)

_EXPANSION = 32  # latents per input, the paper's
_ROWS_PER_LATENT = 8  # at least: fewer rows can't tell more latents apart
_L0_PER_ROOT_INPUT = 4.5
_MOST_L0 = 128
_MOST_L0_SHARE = 0.04  # of the latents
_L1 = 0.8  # on data with a spread of sqrt(n_inputs), where noise has a deviation of about 1 along any direction
_N_STEPS = 3600
_BATCH_SIZES = (128, 1024)
_STEPS_OF_ONE_EPOCH = 20_000  # longer epochs get larger batches
_LARGEST_BATCH = 8192
_LEARNING_RATE = 0.024  # over sqrt(n_inputs): a step's length beside that of a direction
_MOST_WARMUP = 1000
_DECAY = 0.3

_MEDIAN_ROWS = 8192
_FEW_ROWS, _FEW_STEPS = 5000, 500
_LOSS_FALLING = 0.01  # of the first loss, over the last tenth of the steps; good fits had up to 0.005
_L0_FALLING = 0.1  # of itself
_DENSE = 0.1  # of the latents
_DEAD = 2 / 3
_LITTLE = 0.5  # explained variance
_NO_BETTER = 0.9  # of the variance that stays unexplained in noise


class Settings(NamedTuple):
    """Settings of one fit, with every ``"auto"`` resolved and every number plain.

    Attributes
    ----------
    n_latents : int
    l0 : int or None
        Latents that stay above zero per row; None for ReLU.
    l1_coefficient : float
        0 for TopK.
    batch_size, n_epochs : int
    n_steps : int or None
        Steps of the whole fit; None for a stream of unknown length.
    learning_rate : float
    warmup_steps : int
    decay_fraction : float
    """

    n_latents: int
    l0: int | None
    l1_coefficient: float
    batch_size: int
    n_epochs: int
    n_steps: int | None
    learning_rate: float
    warmup_steps: int
    decay_fraction: float

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then constant, then a linear fall to zero."""
        factor = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        if self.decay_fraction and self.n_steps is not None:
            factor *= min((self.n_steps - step) / (self.decay_fraction * self.n_steps), 1.0)
        return self.learning_rate * factor


def check_parameters(sae: Any) -> None:
    """Refuse parameters out of range, and those without effect on the activation."""
    for name in ("checkpoint_every", "dead_after"):
        check_number(name, getattr(sae, name), 1, whole=True)
    for name in ("n_latents", "resample_every"):
        if getattr(sae, name) is not None:
            check_number(name, getattr(sae, name), 1, whole=True)
    for name in ("expansion", "batch_size", "n_epochs", "l0"):
        _auto(name, getattr(sae, name), 1, whole=True)
    _auto("warmup_steps", sae.warmup_steps, 0, whole=True)
    _auto("decay_fraction", sae.decay_fraction, 0, 1)
    _auto("learning_rate", sae.learning_rate, 0)
    _auto("l1_coefficient", sae.l1_coefficient, 0)
    check_number("validation_fraction", sae.validation_fraction, 0, 1, open_high=True)
    if sae.clip_norm is not None:
        check_number("clip_norm", sae.clip_norm, 0)
    check_betas("betas", sae.betas)
    check_choice("normalization", sae.normalization, NORMALIZATIONS)
    check_choice("activation", sae.activation, ACTIVATIONS)
    if sae.activation == "topk" and not _is_auto(sae.l1_coefficient):
        raise ValueError(
            f"l1_coefficient={sae.l1_coefficient!r} has no effect with activation='topk', whose sparsity is l0; "
            "set l0, or activation='relu'."
        )
    if sae.activation == "relu" and not _is_auto(sae.l0):
        raise ValueError(
            f"l0={sae.l0!r} has no effect with activation='relu', whose sparsity is l1_coefficient; set that, or "
            "activation='topk'."
        )
    if sae.n_latents is not None and not _is_auto(sae.expansion):
        raise ValueError(
            f"n_latents={sae.n_latents!r} and expansion={sae.expansion!r} both give the number of latents; set one."
        )


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def _auto(name: str, value: Any, low: float, high: float = np.inf, *, whole: bool = False) -> Any:
    """Return a plain number, or None for ``"auto"``."""
    if _is_auto(value):
        return None
    if isinstance(value, str):
        raise ValueError(f"{name}={value!r} is unknown; use a number or 'auto'.")
    return check_number(name, value, low, high, whole=whole)


def resolve(sae: Any, rows: Any, n_inputs: int) -> Settings:
    """Settings of a fit, by the rules that `SparseAutoencoder` documents.

    Parameters
    ----------
    sae : SparseAutoencoder
        Its parameters, checked.
    rows : ArrayRows, StreamRows or None
        What is trained on; None where calls of ``partial_fit`` give it.
    n_inputs : int
    """
    n_rows = None if rows is None else rows.n_rows
    n_latents = None if sae.n_latents is None else check_number("n_latents", sae.n_latents, whole=True)
    expansion = _auto("expansion", sae.expansion, 1, whole=True)
    if n_latents is None and expansion is not None:
        n_latents = expansion * n_inputs
    elif n_latents is None:
        most = _EXPANSION * n_inputs
        n_latents = most if n_rows is None else min(most, max(n_rows // _ROWS_PER_LATENT, 2 * n_inputs))
    batch_size = _auto("batch_size", sae.batch_size, 1, whole=True) or _batch_size(n_rows)
    per_epoch = None if rows is None else rows.steps_per_epoch(batch_size)
    n_epochs = _auto("n_epochs", sae.n_epochs, 1, whole=True)
    if n_epochs is None:
        n_epochs = 1 if per_epoch is None else -(-_N_STEPS // per_epoch)
    n_steps = None if per_epoch is None else n_epochs * per_epoch
    warmup_steps = _auto("warmup_steps", sae.warmup_steps, 0, whole=True)
    if warmup_steps is None:
        warmup_steps = min((_N_STEPS if n_steps is None else n_steps) // 20, _MOST_WARMUP)
    decay_fraction = _auto("decay_fraction", sae.decay_fraction, 0)
    if decay_fraction is None:
        decay_fraction = 0.0 if n_steps is None else _DECAY
    elif decay_fraction and n_steps is None:
        raise ValueError(
            f"decay_fraction={decay_fraction!r} needs data of known length; give an array, or leave it at 'auto'."
        )
    learning_rate = _auto("learning_rate", sae.learning_rate, 0)
    if learning_rate is None:
        longer = max((n_steps or _N_STEPS) / _N_STEPS, 1.0)
        learning_rate = _LEARNING_RATE / math.sqrt(n_inputs * longer)
    l0, l1_coefficient = None, _auto("l1_coefficient", sae.l1_coefficient, 0)
    if sae.activation == "topk":
        l0, l1_coefficient = _auto("l0", sae.l0, 1, whole=True), 0.0
        if l0 is None:
            wanted = min(round(_L0_PER_ROOT_INPUT * math.sqrt(n_inputs)), _MOST_L0, int(_MOST_L0_SHARE * n_latents))
            l0 = max(wanted, 1)
        elif l0 > n_latents:
            raise ValueError(f"l0={l0} is above the number of latents, {n_latents}; lower it, or raise n_latents.")
    elif l1_coefficient is None:
        l1_coefficient = _L1
    return Settings(
        n_latents, l0, l1_coefficient, batch_size, n_epochs, n_steps, learning_rate, warmup_steps, decay_fraction
    )


def _batch_size(n_rows: int | None) -> int:
    """About 9 epochs in `_N_STEPS` steps where that is possible; a power of 2."""
    smallest, largest = _BATCH_SIZES
    if n_rows is None:
        return largest
    usual = min(max(_power_of_two(n_rows / 256), smallest), largest)
    return max(usual, min(_power_of_two(n_rows / _STEPS_OF_ONE_EPOCH), _LARGEST_BATCH))


def _power_of_two(number: float) -> int:
    return 2 ** max(math.floor(math.log2(max(number, 1.0))), 0)


def find_scale(sample: np.ndarray, normalization: str | None) -> float:
    """Factor that brings rows to the scale they are trained on."""
    if normalization is None:
        return 1.0
    exact = _few(sample).astype(np.float64)
    n_inputs = sample.shape[1]
    if normalization == "spread":
        # Medians, so that a handful of rows hundreds of times as long as the others does not set the scale.
        size, wanted = float(np.median(_norms(exact - np.median(exact, axis=0)))), math.sqrt(n_inputs)
    elif normalization == "mean_norm":
        size, wanted = float(_norms(exact).mean()), math.sqrt(n_inputs)
    else:
        size, wanted = math.sqrt(float(np.square(_norms(exact)).mean())), 1.0
    if size <= 1e-6 * float(np.abs(exact).max(initial=0.0)) or size == 0.0:
        return 1.0  # rows that are all equal, or all zero, have no scale
    return wanted / size


def _few(rows: np.ndarray) -> np.ndarray:
    """Evenly spaced rows, enough for medians and means."""
    return rows[:: -(-len(rows) // _MEDIAN_ROWS)]


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def outlier_share(sample: np.ndarray) -> tuple[int, float]:
    """Count outlying rows, and their share of the variance about the median row.

    A row is outlying if it is ten times as far from the median row as half of the rows are, and one of the
    thousandth that is farthest.
    """
    squares = np.square(_norms(sample - np.median(_few(sample), axis=0)))
    farthest = np.sort(squares)[-max(len(squares) // 1000, 1) :]
    outlying = farthest[farthest > 100.0 * np.median(squares)]
    total = float(squares.sum())
    return len(outlying), float(outlying.sum()) / total if total > 0.0 else 0.0


class Outcome(NamedTuple):
    """Result of a fit: the history of its steps, and explained variances of held-out rows.

    Attributes
    ----------
    history : sequence of dict
    settings : Settings
    n_rows : int or None
        Rows given, if that is known.
    held_out : float or None
        Explained variance of held-out rows.
    noise : float or None
        Explained variance of as many rows of Gaussian noise with the same covariance.
    """

    history: Sequence[dict[str, float]]
    settings: Settings
    n_rows: int | None
    held_out: float | None
    noise: float | None


def doubts(outcome: Outcome) -> list[str]:
    """Reasons not to trust a fit, each with its remedy."""
    history, settings, n_rows, held_out, noise = outcome
    last = history[-1]
    n_steps = int(last["step"])
    found = []
    if n_rows is not None and n_rows < _FEW_ROWS:
        found.append(f"it saw {n_rows:,} rows only; give at least {_FEW_ROWS:,}, and better 100,000")
    if n_steps < _FEW_STEPS:
        found.append(f"it took {n_steps:,} steps only; raise n_epochs={settings.n_epochs} or lower batch_size")
    else:
        loss, l0_fall = (_fall([row[name] for row in history]) for name in ("loss", "l0"))
        if loss > _LOSS_FALLING * history[0]["loss"]:
            share = loss / history[0]["loss"]
            found.append(
                f"the loss still fell by {share:.1%} of the first over the last tenth of the steps; raise n_epochs"
            )
        if l0_fall > _L0_FALLING * history[-1]["l0"]:
            found.append(f"L0 still fell by {l0_fall:.3g} over the last tenth of the steps; raise n_epochs")
    l0 = _mean_of_end([row["l0"] for row in history])
    if l0 > _DENSE * settings.n_latents:
        remedy = "lower l0" if settings.l0 else "raise l1_coefficient, or train longer"
        found.append(f"{l0:.0f} of {settings.n_latents:,} latents fire per token, which is not sparse; {remedy}")
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


def _mean_of_end(values: Sequence[float]) -> float:
    tenth = max(len(values) // 10, 1)
    return float(np.mean(values[-tenth:]))


def _fall(values: Sequence[float]) -> float:
    """Fall of the mean from the first to the second half of the last tenth."""
    half = max(len(values) // 20, 1)
    return float(np.mean(values[-2 * half : -half]) - np.mean(values[-half:]))
