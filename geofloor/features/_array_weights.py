"""Read the weights of a sparse autoencoder from arrays that a user gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from geofloor._validation import check_choice, check_flag, check_number, check_numeric, shown
from geofloor.features._autoencoder_settings import ACTIVATIONS, THRESHOLDED
from geofloor.features._folding import RawDictionary

_LARGEST_WEIGHT = 2.0**24  # so that products of weights and activations stay far below the end of float32


def read_arrays(
    W_enc: Any,
    b_enc: Any,
    W_dec: Any,
    b_dec: Any,
    *,
    activation: str,
    l0: int | None,
    threshold: Any,
    centered: bool,
) -> RawDictionary:
    """Check the arguments of `SparseAutoencoder.from_weights`, and bring the arrays into one orientation.

    Raises
    ------
    ValueError
        If shapes do not fit each other, numbers are not finite, or an argument is missing or has no effect.
    """
    check_choice("activation", activation, ACTIVATIONS)
    takes = {"topk": ("l0",)} | dict.fromkeys(THRESHOLDED, ("threshold",))
    for name, value in {"l0": l0, "threshold": threshold}.items():
        if (value is not None) != (name in takes.get(activation, ())):
            problem = "is missing" if value is None else "has no effect"
            raise ValueError(f"{name} {problem} with activation={activation!r}; {name}={shown(value)}.")
    bias, offset = _vector("b_enc", b_enc), _vector("b_dec", b_dec)
    return RawDictionary(
        encoder=_rows("W_enc", W_enc, len(bias), len(offset)),
        encoder_bias=bias,
        decoder=_rows("W_dec", W_dec, len(bias), len(offset)),
        decoder_bias=offset,
        activation=activation,
        k=None if l0 is None else check_number("l0", l0, 1, len(bias), whole=True),
        threshold=None if threshold is None else _vector("threshold", threshold, len(bias)),
        is_centered=check_flag("centered", centered),
    )


def _vector(name: str, value: Any, size: int | None = None) -> np.ndarray:
    """Check numbers in one dimension, or a single one if the size is given, and return them in float64."""
    array = np.asarray(check_numeric(value, name), dtype=np.float64)
    if size is not None and array.shape in ((), (1,)):
        array = np.full(size, array.reshape(()))
    if array.ndim != 1 or not array.size or array.size != (size or array.size):
        raise ValueError(f"{name} has shape {array.shape}; give numbers in one dimension, one per latent or input.")
    return _moderate(name, array)


def _rows(name: str, value: Any, n_latents: int, n_inputs: int) -> np.ndarray:
    """Check a weight in either orientation, and return it in float64 with one latent per row."""
    array = np.asarray(check_numeric(value, name), dtype=np.float64)
    if array.shape == (n_inputs, n_latents) and n_inputs != n_latents:
        array = array.T
    if array.shape != (n_latents, n_inputs):
        raise ValueError(
            f"{name} has shape {array.shape}, but b_enc has {n_latents} numbers and b_dec {n_inputs}; give shape "
            f"{(n_latents, n_inputs)}."
        )
    return _moderate(name, array)


def _moderate(name: str, array: np.ndarray) -> np.ndarray:
    """Refuse numbers that are not finite, or whose products in a dictionary can overflow in float32."""
    if not float(np.abs(array).max()) < _LARGEST_WEIGHT:
        raise ValueError(f"{name} has a number that is not finite or not below {_LARGEST_WEIGHT:g}; scale the weights.")
    return array
