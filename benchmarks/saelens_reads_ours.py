"""Let SAELens read dictionaries that geofloor wrote, and compare the codes. Needs ``sae-lens`` beside geofloor."""

from __future__ import annotations

import tempfile
import warnings

import numpy as np
import torch
from _timing import report
from sae_lens import SAE

from geofloor import SparseAutoencoder
from geofloor.features import load_autoencoder


def main() -> None:
    """Print the relative distance of SAELens's codes from ours for each activation, and for weights of unequal norm."""
    warnings.simplefilter("ignore")  # short fits warn
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(64, 24))
    X = ((rng.random((6000, 64)) < 0.05) * rng.random((6000, 64)) @ directions).astype(np.float32)
    fits = {name: SparseAutoencoder(64, activation=name, l0=4, random_state=0).fit(X) for name in
            ("topk", "batchtopk", "jumprelu", "relu")}  # fmt: skip
    scales = rng.uniform(0.5, 2.0, size=(64, 1))
    topk = fits["topk"]
    fits["topk of unequal norms"] = SparseAutoencoder.from_weights(
        topk.encoder_, topk.encoder_bias_, topk.decoder_ * scales, topk.decoder_bias_, activation="topk", l0=4
    )
    for name, sae in fits.items():
        with tempfile.TemporaryDirectory() as folder:
            sae.save(folder, format="saelens")
            theirs = SAE.load_from_disk(folder)
            again = load_autoencoder(folder)
        with torch.no_grad():
            codes = theirs.encode(torch.from_numpy(X[:1000]))
            rebuilt = theirs.decode(codes).numpy()
        norms = theirs.W_dec.detach().norm(dim=1).numpy()
        ours = sae.transform(X[:1000])
        report(f"{name}, codes", _distance(codes.numpy() * norms, ours.toarray()), 1e-5)
        report(f"{name}, reconstructions", _distance(rebuilt, sae.inverse_transform(ours)), 1e-5)
        report(f"{name}, read again by geofloor", _distance(again.transform(X[:1000]).toarray(), ours.toarray()), 1e-5)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


if __name__ == "__main__":
    main()
