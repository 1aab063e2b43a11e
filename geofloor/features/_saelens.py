"""Write a fitted autoencoder as SAELens reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from geofloor._files.atomic import atomic_path, write_json

_ARCHITECTURES = {"relu": "standard", "topk": "topk", "batchtopk": "jumprelu", "jumprelu": "jumprelu"}


def write_saelens(path: str | os.PathLike[str], sae: Any) -> None:
    """Write ``sae_weights.safetensors`` and ``cfg.json`` into a folder, each atomically.

    Raises
    ------
    ValueError
        If SAELens has no architecture for the activation.
    OSError
        If the folder can't be written.
    """
    if sae.activation_ not in _ARCHITECTURES:
        raise ValueError(
            f"format='saelens' has no form for activation_={sae.activation_!r}, only for {tuple(_ARCHITECTURES)}; use "
            "format='geofloor'."
        )
    decoder = sae.decoder_ if sae.code_scale_ is None else sae.decoder_ * sae.code_scale_[:, None]
    weights = {
        "W_enc": sae.encoder_.T,
        "b_enc": sae.encoder_bias_,
        "W_dec": decoder,
        "b_dec": sae.decoder_bias_,
    }
    if sae.threshold_ is not None:
        weights["threshold"] = sae.threshold_
    n_latents, n_inputs = sae.encoder_.shape
    source = sae.source_ or {}
    metadata = {"model_name": source.get("model"), "hook_name": source.get("hook")}
    config: dict[str, Any] = {
        "architecture": _ARCHITECTURES[sae.activation_],
        "d_in": n_inputs,
        "d_sae": n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }
    if sae.activation_ == "topk":
        config |= {"k": sae.l0_, "rescale_acts_by_decoder_norm": False}
    folder = Path(path)
    with atomic_path(folder / "sae_weights.safetensors") as temporary:
        save_file({name: np.ascontiguousarray(each) for name, each in weights.items()}, temporary)
    write_json(folder / "cfg.json", config)
