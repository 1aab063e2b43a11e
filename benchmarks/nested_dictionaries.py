"""Compare Eq. 2 with the errors of a nested dictionary and of a plain one, on the embedded teacher.

python benchmarks/nested_dictionaries.py

Eq. 2 adds the importances E[z²] of the dropped latents to the error of the whole dictionary. Measured beside it is the
error of the latents kept: the m most important ones, or the first m. All are shares of the variance of held-out rows.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
from _timing import machine

from geofloor import ActivationExtractor, FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.language_models import token_blocks

_GROUPS = (64, 128, 256, 512, 1024)
_WIDTHS = (8, 16, 32, 64, 96)


def read_activations(n_blocks: int) -> np.ndarray:
    """Return the residual stream after the middle block of the embedded teacher, (n_tokens, 128), on Python source."""
    extractor = ActivationExtractor(load_teacher().path, 2, max_length=256, batch_size=32).fit()
    texts = (document.text for document in load_local_corpus("test"))
    blocks = token_blocks(texts, extractor.tokenizer_, length=256, max_blocks=n_blocks)
    return np.asarray(extractor.transform(blocks))


def measure(train: np.ndarray, held_out: np.ndarray, **parameters: Any) -> None:
    """Fit a dictionary, and print its floors by Eq. 2 and the errors of its parts."""
    sae = SparseAutoencoder(l0=32, device="cpu", **parameters).fit(train)
    statistics = FeatureStatistics().fit(sae.transform(train[i : i + 8192]) for i in range(0, len(train), 8192))
    floor = FloorPredictor().fit(statistics.table_)
    print(f"  explained variance {sae.score(held_out):.4f}, alpha {statistics.alpha_:.4f}, ", end="")
    print(f"critical width {floor.critical_width_:.1f}")
    shares = floor.predict(_WIDTHS) / floor.predict([0])
    floors = ", ".join(f"{width}: {share:.3f}" for width, share in zip(_WIDTHS, shares, strict=True))
    print(f"  floors at widths, as shares of that at width 0: {floors}")

    codes = sae.transform(held_out).toarray().astype(np.float64)
    centered = held_out - sae.decoder_bias_.astype(np.float64)
    variance = np.square(held_out - held_out.mean(axis=0, dtype=np.float64)).sum()
    importances = np.square(codes).sum(axis=0)
    first = np.arange(len(importances))
    most_important = np.argsort(-importances, kind="stable")
    least_error = np.square(centered - codes @ sae.decoder_).sum()
    for m in _GROUPS:
        parts = []
        for order in (most_important, first):
            kept, dropped = order[:m], order[m:]
            error = np.square(centered - codes[:, kept] @ sae.decoder_[kept]).sum() / variance
            predicted = (least_error + importances[dropped].sum()) / variance
            parts.append(f"{error:.3f} (Eq. 2: {predicted:.3f})")
        shared = np.mean(most_important[:m] < m)
        print(f"  {m} latents kept: most important {parts[0]}, first {parts[1]}, {shared:.0%} are both", flush=True)


def main() -> None:
    """Print Eq. 2 beside measured errors for plain and nested dictionaries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=250, help="sequences of 256 tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the teacher's text ends before the rows that a fit wants
    activations = read_activations(arguments.blocks)
    n_held_out = 20 * 255
    print(machine())
    print(f"{len(activations) - n_held_out:,} rows to train on, and {n_held_out:,} held out")
    for seed in arguments.seeds:
        for name, parameters in (("plain", {"n_latents": _GROUPS[-1]}), (f"groups={_GROUPS}", {"groups": _GROUPS})):
            print(f"{name}, seed {seed}:")
            measure(activations[:-n_held_out], activations[-n_held_out:], random_state=seed, **parameters)


if __name__ == "__main__":
    main()
