"""Resolve the settings of a sparse autoencoder from its parameters and its data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from geofloor._training.schedules import warmup_stable_decay
from geofloor._training.settings import check_betas
from geofloor._validation import check_choice, check_number, shown
from geofloor.features._nested_groups import check_groups
from geofloor.features._precision import PRECISIONS

ACTIVATIONS = ("topk", "batchtopk", "jumprelu", "relu")
THRESHOLDED = ("batchtopk", "jumprelu")  # activations that encode with thresholds
NESTED = ("topk", "batchtopk")  # activations that may have nested groups
NORMALIZATIONS = ("spread", "mean_norm", "mean_square", None)

# The numbers of the rules for "auto" were chosen by measurement and not derived: see the notes of SparseAutoencoder.
_EXPANSION = 32  # latents per input, the paper's
_ROWS_PER_LATENT = 8  # at least, because fewer rows do not determine more latents
_L0_PER_ROOT_INPUT = 4.5
_MAX_L0 = 128
_MAX_L0_SHARE = 0.04  # of the latents
_L1_COEFFICIENT = 0.8  # for a spread of sqrt(n_inputs), a standard deviation of noise of about 1 along any direction
_STEERING_GAIN = 0.015
_AUXK_COEFFICIENT = 1 / 32  # Gao et al. 2024, Appendix A.2
_N_STEPS = 3600
_BATCH_SIZES = (128, 1024)
_MAX_STEPS_PER_EPOCH = 20_000  # longer epochs get larger batches
_MAX_BATCH_SIZE = 8192
_LEARNING_RATE = 0.024  # over sqrt(n_inputs): length of a step relative to that of a direction
_MAX_WARMUP_STEPS = 1000
_DECAY_FRACTION = 0.3

_MEDIAN_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a fit, as the trainer gets them.

    They follow from the parameters of `SparseAutoencoder`. Every ``"auto"`` is resolved, and every number is a plain
    one of Python.

    Attributes
    ----------
    activation : str
        Rule for choosing the codes to keep.
    n_latents : int
        Number of latents.
    l0 : int or None
        Number of codes kept per row, on average for BatchTopK; a target for JumpReLU and ReLU; None without one.
    l1_coefficient : float
        Penalty λ on the codes, 0 for all but ReLU. If `l0` steers it, its start on rows with a spread of √n_inputs.
    normalization : str or None
        Scale of training.
    batch_size : int
        Rows per step.
    n_epochs : int
        Passes over the data.
    n_steps : int or None
        Steps of the fit; None for a stream of unknown length.
    learning_rate : float
        Adam's step size after warm-up.
    betas : tuple of two floats
        Adam's decay rates.
    clip_norm : float or None
        Largest joint norm of the gradients; None for no clipping.
    warmup_steps : int
        Steps of the learning rate's warm-up.
    decay_fraction : float
        Final share of the steps for the learning rate's decay.
    resample_every : int or None
        Rows between resets of dead latents; None for no resets.
    dead_after : int
        Rows without firing after which a latent counts as dead.
    auxk_coefficient : float
        Weight of the auxiliary loss of dead latents; 0 for none.
    groups : tuple of int or None
        Numbers of latents of the prefixes that each reconstruct; None for the whole dictionary only.
    precision : str
        Precision of the encoder's product.
    """

    activation: str
    n_latents: int
    l0: int | None
    l1_coefficient: float
    normalization: str | None
    batch_size: int
    n_epochs: int
    n_steps: int | None
    learning_rate: float
    betas: tuple[float, float]
    clip_norm: float | None
    warmup_steps: int
    decay_fraction: float
    resample_every: int | None
    dead_after: int
    auxk_coefficient: float
    groups: tuple[int, ...] | None
    precision: str

    @property
    def l0_per_row(self) -> int | None:
        """Number of codes kept of every row; None for activations that keep a varying number."""
        return self.l0 if self.activation == "topk" else None

    @property
    def is_steered(self) -> bool:
        """Whether the penalty of ReLU is steered toward `l0`."""
        return self.activation == "relu" and self.l0 is not None

    @property
    def steering_gain(self) -> float:
        """Change of the logarithm of a steered penalty per step, relative to the excess of L0; more in short fits."""
        return _STEERING_GAIN * math.sqrt(_N_STEPS / (self.n_steps or _N_STEPS))

    def learning_rate_at(self, step: int) -> float:
        """Compute the learning rate of a step, counted from 0."""
        factor = warmup_stable_decay(
            step, n_steps=self.n_steps, warmup_steps=self.warmup_steps, decay_fraction=self.decay_fraction
        )
        return self.learning_rate * factor


def check_parameters(sae: Any) -> None:
    """Refuse parameters of a `SparseAutoencoder` out of range, and those without effect on its activation."""
    for name in ("checkpoint_every", "dead_after"):
        check_number(name, getattr(sae, name), 1, whole=True)
    for name in ("n_latents", "resample_every"):
        _check_count(name, getattr(sae, name))
    for name in ("expansion", "batch_size", "n_epochs", "l0"):
        _check_auto(name, getattr(sae, name), 1, whole=True)
    _check_auto("warmup_steps", sae.warmup_steps, 0, whole=True)
    _check_auto("decay_fraction", sae.decay_fraction, 0, 1)
    _check_auto("learning_rate", sae.learning_rate, 0)
    for name in ("l1_coefficient", "auxk_coefficient"):
        _check_auto(name, getattr(sae, name), 0)
    check_number("validation_fraction", sae.validation_fraction, 0, 1, open_high=True)
    if sae.clip_norm is not None:
        check_number("clip_norm", sae.clip_norm, 0)
    check_betas("betas", sae.betas)
    check_choice("normalization", sae.normalization, NORMALIZATIONS)
    check_choice("activation", sae.activation, ACTIVATIONS)
    check_choice("precision", sae.precision, PRECISIONS)
    if sae.activation != "relu" and not _is_auto(sae.l1_coefficient):
        raise ValueError(
            f"l1_coefficient={sae.l1_coefficient!r} has no effect with activation={sae.activation!r}, whose sparsity "
            "is l0; set l0, or activation='relu'."
        )
    if sae.activation == "relu" and not _is_auto(sae.auxk_coefficient):
        raise ValueError(
            f"auxk_coefficient={sae.auxk_coefficient!r} has no effect with activation='relu', which has no auxiliary "
            "loss; leave it at 'auto', or set resample_every."
        )
    if sae.activation == "relu" and not _is_auto(sae.l0) and not _is_auto(sae.l1_coefficient):
        raise ValueError(
            f"l0={sae.l0!r} and l1_coefficient={sae.l1_coefficient!r} both give the sparsity of activation='relu'; "
            "leave one at 'auto'."
        )
    if check_groups(sae.groups) is not None and sae.activation not in NESTED:
        raise ValueError(
            f"groups={shown(sae.groups)} needs activation='topk' or 'batchtopk', not {sae.activation!r}; set one, or "
            "leave groups at None."
        )
    if sae.n_latents is not None and not _is_auto(sae.expansion):
        raise ValueError(
            f"n_latents={sae.n_latents!r} and expansion={sae.expansion!r} both give the number of latents; set one."
        )


def _check_count(name: str, value: Any) -> int | None:
    return None if value is None else check_number(name, value, 1, whole=True)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def _check_auto(name: str, value: Any, low: float, high: float = np.inf, *, whole: bool = False) -> Any:
    """Check a number and return it as a plain one, or None for ``"auto"``."""
    if _is_auto(value):
        return None
    if isinstance(value, str):
        raise ValueError(f"{name}={value!r} is unknown; use a number or 'auto'.")
    return check_number(name, value, low, high, whole=whole)


def resolve_settings(sae: Any, rows: Any, n_inputs: int) -> Settings:
    """Resolve the settings of a fit by the rules in the docstring of `SparseAutoencoder`.

    Parameters
    ----------
    sae : SparseAutoencoder
        Estimator with checked parameters.
    rows : ArrayRows, StreamRows or None
        Rows to train on; None if calls of ``partial_fit`` give them.
    n_inputs : int
        Number of inputs.

    Returns
    -------
    settings : Settings
        The settings.

    Raises
    ------
    ValueError
        If the number of rows or latents rules out a parameter.
    """
    n_rows = None if rows is None else rows.n_rows
    n_latents = _check_count("n_latents", sae.n_latents)
    expansion = _check_auto("expansion", sae.expansion, 1, whole=True)
    groups = check_groups(sae.groups)
    if n_latents is None and expansion is None and groups is not None:
        n_latents = groups[-1]
    if n_latents is None and expansion is not None:
        n_latents = expansion * n_inputs
    elif n_latents is None:
        largest = _EXPANSION * n_inputs
        n_latents = largest if n_rows is None else min(largest, max(n_rows // _ROWS_PER_LATENT, 2 * n_inputs))
    batch_size = _check_auto("batch_size", sae.batch_size, 1, whole=True) or _choose_batch_size(n_rows)
    per_epoch = None if rows is None else rows.steps_per_epoch(batch_size)
    n_epochs = _check_auto("n_epochs", sae.n_epochs, 1, whole=True)
    if n_epochs is None:
        n_epochs = 1 if per_epoch is None else -(-_N_STEPS // per_epoch)
    n_steps = None if per_epoch is None else n_epochs * per_epoch
    warmup_steps = _check_auto("warmup_steps", sae.warmup_steps, 0, whole=True)
    if warmup_steps is None:
        warmup_steps = min((_N_STEPS if n_steps is None else n_steps) // 20, _MAX_WARMUP_STEPS)
    decay_fraction = _check_auto("decay_fraction", sae.decay_fraction, 0)
    if decay_fraction is None:
        decay_fraction = 0.0 if n_steps is None else _DECAY_FRACTION
    elif decay_fraction and n_steps is None:
        raise ValueError(
            f"decay_fraction={decay_fraction!r} needs data of known length; give an array, or leave it at 'auto'."
        )
    learning_rate = _check_auto("learning_rate", sae.learning_rate, 0)
    if learning_rate is None:
        longer = max((n_steps or _N_STEPS) / _N_STEPS, 1.0)
        learning_rate = _LEARNING_RATE / math.sqrt(n_inputs * longer)
    l0 = _check_auto("l0", sae.l0, 1, whole=True)
    if l0 is not None and l0 > n_latents:
        raise ValueError(f"l0={l0} is above the number of latents, {n_latents}; lower it, or raise n_latents.")
    if sae.activation == "relu":
        l1_coefficient = _check_auto("l1_coefficient", sae.l1_coefficient, 0)
        if l1_coefficient is None:
            l1_coefficient = _L1_COEFFICIENT
    else:
        l1_coefficient = 0.0
        if l0 is None:
            wanted = min(round(_L0_PER_ROOT_INPUT * math.sqrt(n_inputs)), _MAX_L0, int(_MAX_L0_SHARE * n_latents))
            l0 = max(wanted, 1)
    auxk_coefficient = _check_auto("auxk_coefficient", sae.auxk_coefficient, 0)
    if auxk_coefficient is None:
        auxk_coefficient = 0.0 if sae.activation == "relu" else _AUXK_COEFFICIENT
    settings = Settings(
        activation=sae.activation,
        n_latents=n_latents,
        l0=l0,
        l1_coefficient=l1_coefficient,
        normalization=sae.normalization,
        batch_size=batch_size,
        n_epochs=n_epochs,
        n_steps=n_steps,
        learning_rate=learning_rate,
        betas=check_betas("betas", sae.betas),
        clip_norm=None if sae.clip_norm is None else check_number("clip_norm", sae.clip_norm, 0),
        warmup_steps=warmup_steps,
        decay_fraction=decay_fraction,
        resample_every=_check_count("resample_every", sae.resample_every),
        dead_after=check_number("dead_after", sae.dead_after, 1, whole=True),
        auxk_coefficient=auxk_coefficient,
        groups=groups,
        precision=sae.precision,
    )
    check_groups_fit(settings)
    return settings


def check_groups_fit(settings: Settings) -> None:
    """Refuse groups that do not fit the dictionary, its sparsity or the batch.

    Raises
    ------
    ValueError
        If the last prefix is not the dictionary, the first has fewer latents than a row has codes, or a batch has fewer
        rows than there are prefixes.
    """
    groups, l0 = settings.groups, settings.l0
    if groups is None or l0 is None:
        return
    if groups[-1] != settings.n_latents:
        raise ValueError(
            f"groups={groups} must end with the number of latents, {settings.n_latents}; add it, or set n_latents."
        )
    if groups[0] < l0:
        raise ValueError(f"groups={groups} starts with fewer latents than l0={l0}; lower l0 or raise the first number.")
    if settings.batch_size < len(groups):
        raise ValueError(
            f"batch_size={settings.batch_size} is below the number of groups, {len(groups)}; raise it or give fewer "
            "groups."
        )


def _choose_batch_size(n_rows: int | None) -> int:
    """Choose a power of 2, about a 256th of the rows where the bounds allow it."""
    smallest, largest = _BATCH_SIZES
    if n_rows is None:
        return largest
    usual = min(max(_floor_to_power_of_two(n_rows / 256), smallest), largest)
    return max(usual, min(_floor_to_power_of_two(n_rows / _MAX_STEPS_PER_EPOCH), _MAX_BATCH_SIZE))


def _floor_to_power_of_two(number: float) -> int:
    return 2 ** max(math.floor(math.log2(max(number, 1.0))), 0)


def find_scale(sample: np.ndarray, normalization: str | None) -> float:
    """Find the factor on the data during training, from a sample of the rows."""
    if normalization is None:
        return 1.0
    exact = thin(sample).astype(np.float64)
    n_inputs = sample.shape[1]
    if normalization == "spread":
        # Medians resist a handful of rows with norms hundreds of times those of the others.
        size, wanted = float(np.median(row_norms(exact - np.median(exact, axis=0)))), math.sqrt(n_inputs)
    elif normalization == "mean_norm":
        size, wanted = float(row_norms(exact).mean()), math.sqrt(n_inputs)
    else:
        size, wanted = math.sqrt(float(np.square(row_norms(exact)).mean())), 1.0
    if size <= 1e-6 * float(np.abs(exact).max(initial=0.0)) or size == 0.0:
        return 1.0  # equal rows and zero rows have no scale
    return wanted / size


def thin(rows: np.ndarray) -> np.ndarray:
    """Select at most 8,192 evenly spaced rows, enough for medians and means."""
    return rows[:: -(-len(rows) // _MEDIAN_ROWS)]


def row_norms(rows: np.ndarray) -> np.ndarray:
    """Compute the Euclidean norm of each row in float64."""
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
