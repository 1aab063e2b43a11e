"""Bring the weights of any sparse autoencoder into one form, with directions of unit norm.

The form is z = act(W (x − b_d) + b_e) and x̂ = zᵀ D + b_d, with ‖D_j‖ = 1. Codes are then in the units of x, and E[z²]
is the importance of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from geofloor.features._encoding import CHOSEN

_LARGEST = 2.0**63  # float32 can square numbers below it


@dataclass(frozen=True, kw_only=True)
class RawDictionary:
    """Weights of a sparse autoencoder as a file holds them, each direction in a row.

    Attributes
    ----------
    encoder : ndarray of shape (n_latents, n_inputs)
        Encoder weight.
    encoder_bias : ndarray of shape (n_latents,)
        Encoder bias.
    decoder : ndarray of shape (n_latents, n_inputs)
        Directions of any norm.
    decoder_bias : ndarray of shape (n_inputs,)
        Bias added after decoding.
    activation : str
        Rule for choosing the codes to keep: one of `geofloor.features._encoding`.
    k : int or None, default=None
        Codes kept per row, by the rules that keep a fixed number.
    threshold : ndarray of shape (n_latents,) or None, default=None
        Pre-activation that a code must exceed, for ``"jumprelu"``.
    is_centered : bool
        Whether the decoder bias is subtracted from inputs before encoding.
    selects_by_norm : bool, default=False
        Whether codes are chosen, and thresholds compared, after multiplication by the norms of the directions.
    input_scale : float, default=1.0
        Factor on inputs before the weights apply; reconstructions are divided by it.
    source : mapping
        Where the dictionary belongs, as far as the file tells: ``"format"``, ``"model"``, ``"hook"``.
    """

    encoder: np.ndarray
    encoder_bias: np.ndarray
    decoder: np.ndarray
    decoder_bias: np.ndarray
    activation: str
    is_centered: bool
    k: int | None = None
    threshold: np.ndarray | None = None
    selects_by_norm: bool = False
    input_scale: float = 1.0
    source: Mapping[str, Any] = field(default_factory=dict)


class FoldedDictionary(NamedTuple):
    """Weights in the form of this module.

    Attributes
    ----------
    encoder : ndarray of shape (n_latents, n_inputs), float32
        Encoder weight.
    encoder_bias : ndarray of shape (n_latents,), float32
        Encoder bias, of centered inputs.
    decoder : ndarray of shape (n_latents, n_inputs), float32
        Directions of unit norm.
    decoder_bias : ndarray of shape (n_inputs,), float32
        Bias subtracted before encoding and added after decoding.
    threshold : ndarray of shape (n_latents,), float32, or None
        Number that a code must exceed, at least 0.
    code_scale : ndarray of shape (n_latents,), float32, or None
        Factor on chosen codes, if the choice is among codes on another scale; None for 1.
    """

    encoder: np.ndarray
    encoder_bias: np.ndarray
    decoder: np.ndarray
    decoder_bias: np.ndarray
    threshold: np.ndarray | None
    code_scale: np.ndarray | None


def fold(raw: RawDictionary) -> FoldedDictionary:
    """Fold centering, norms of directions and the scale of inputs into the weights, in float64.

    Parameters
    ----------
    raw : RawDictionary
        Weights of a file. A direction of norm 0 gets a latent that never fires.

    Returns
    -------
    folded : FoldedDictionary
        Weights of the same reconstructions. Codes are those of the file times the norms of its directions, over the
        scale of inputs.

    Raises
    ------
    ValueError
        If a weight is so large that float32 can't square it.
    """
    scale = float(raw.input_scale)
    encoder = raw.encoder.astype(np.float64) * scale
    decoder = raw.decoder.astype(np.float64) / scale
    bias, offset = raw.encoder_bias.astype(np.float64), raw.decoder_bias.astype(np.float64) / scale
    if not raw.is_centered:
        bias = bias + encoder @ offset
    norms = np.sqrt(np.einsum("ij,ij->i", decoder, decoder))
    is_dead = norms == 0.0
    directions = decoder / np.where(is_dead, 1.0, norms)[:, None]
    directions[is_dead, 0] = 1.0
    threshold = None if raw.threshold is None else raw.threshold.astype(np.float64)
    if raw.activation in CHOSEN and not raw.selects_by_norm:
        code_scale = None if np.array_equal(norms, np.ones_like(norms)) else norms
    else:
        code_scale = None
        encoder, bias = encoder * norms[:, None], bias * norms
        if threshold is not None:
            # A threshold on scaled pre-activations is in units of the file's norms, without the scale of inputs.
            threshold = threshold / scale if raw.selects_by_norm else threshold * norms
    for name, array in {"encoder": encoder, "encoder bias": bias, "decoder bias": offset}.items():
        if not float(np.abs(array).max(initial=0.0)) < _LARGEST:
            raise ValueError(f"has a number in its {name} that is too large for float32")
    return FoldedDictionary(
        encoder=encoder.astype(np.float32),
        encoder_bias=bias.astype(np.float32),
        decoder=directions.astype(np.float32),
        decoder_bias=offset.astype(np.float32),
        # ReLU comes first, so that a threshold below zero is one at zero.
        threshold=None if threshold is None else np.maximum(threshold, 0.0).astype(np.float32),
        code_scale=None if code_scale is None else code_scale.astype(np.float32),
    )


def check_shapes(raw: RawDictionary) -> None:
    """Refuse weights with shapes that do not fit each other."""
    wanted: dict[str, tuple[Any, ...]] = {
        "encoder": raw.decoder.shape,
        "encoder_bias": raw.decoder.shape[:1],
        "decoder_bias": raw.decoder.shape[1:],
        "threshold": raw.decoder.shape[:1],
    }
    if raw.decoder.ndim != 2 or not raw.decoder.size:
        raise ValueError(f"has a decoder of shape {raw.decoder.shape}, not (n_latents, n_inputs)")
    for name, shape in wanted.items():
        array = getattr(raw, name)
        if array is not None and np.shape(array) != shape:
            raise ValueError(f"has weights that do not fit: {name} of shape {np.shape(array)}, not {shape}")
    if raw.k is not None and raw.k > len(raw.decoder):
        raise ValueError(f"keeps {raw.k} codes per row, but has {len(raw.decoder)} latents; give l0")
