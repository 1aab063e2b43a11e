"""Train every activation on sparse features of known directions, and count the features that each finds.

Rows are sums of 256 random unit directions in 64 dimensions, four times overcomplete, with Zipf rates from 5% to 0.4%.
A feature counts as found if a latent's direction has a cosine of at least 0.9 with its own. All fits take equal steps.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
from _timing import machine, report

from geofloor import SparseAutoencoder

_RARE = 0.001  # features that fire on fewer rows are not counted


def make_rows(n_rows: int, n_inputs: int = 64, n_features: int = 256, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Draw rows, (n_rows, n_inputs), with the directions of their features and their firing rates."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_features, n_inputs))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rates = np.minimum(1.0 / np.arange(1, n_features + 1), 0.05)
    fires = rng.random((n_rows, n_features)) < rates
    sizes = np.where(fires, 0.5 + rng.random((n_rows, n_features)), 0.0)
    return (sizes @ directions).astype(np.float32), directions, fires.mean(axis=0)


def measure(X: np.ndarray, held_out: np.ndarray, directions: np.ndarray, **parameters: Any) -> dict[str, float]:
    """Fit an autoencoder, and measure recovery and, on held-out rows, explained variance and L0."""
    start = time.perf_counter()
    sae = SparseAutoencoder(device="cpu", random_state=0, **parameters).fit(X)
    return {
        "found": float(((directions @ sae.decoder_.T).max(axis=1) >= 0.9).mean()),
        "explained variance": sae.score(held_out),
        "L0": sae.transform(held_out).nnz / len(held_out),
        "dead": sae.history_[-1]["dead"],
        "l1_coefficient": sae.l1_coefficient_,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Print recovery, explained variance and L0 of all activations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-rows", type=int, default=200_000)
    parser.add_argument("--n-latents", type=int, default=512)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # each fit warns of dead latents or dense codes
    X, directions, rates = make_rows(arguments.n_rows + 20_000)
    counted = directions[rates > _RARE]
    print(machine())
    print(f"{rates.sum():.2f} features per row, rates from {rates.max():.2%} to {rates.min():.2%}\n")
    fits: dict[str, dict[str, Any]] = {
        "topk": {"activation": "topk", "l0": 4},
        "topk, more codes": {"activation": "topk", "l0": 6},
        "batchtopk": {"activation": "batchtopk", "l0": 4},
        "batchtopk with resets": {"activation": "batchtopk", "l0": 4, "resample_every": 200_000},
        "jumprelu": {"activation": "jumprelu", "l0": 4},
        "relu, steered": {"activation": "relu", "l0": 16},
        "relu, fixed penalty": {"activation": "relu"},
    }
    for name, parameters in fits.items():
        found = measure(X[:-20_000], X[-20_000:], counted, n_latents=arguments.n_latents, **parameters)
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()))
        report(f"  share of {len(counted)} features found", found["found"], 0.9, at_most=False)
        if "l0" in parameters:
            off = abs(found["L0"] / parameters["l0"] - 1.0)
            report("  distance of L0 from its target, relative", off, 0.05)


if __name__ == "__main__":
    main()
