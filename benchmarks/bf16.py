"""Compare the held-out explained variance of autoencoders trained in bf16 and in float32, on the embedded teacher.

python benchmarks/bf16.py
"""

from __future__ import annotations

import argparse
import warnings

from _timing import machine, report

from geofloor import ActivationExtractor, SparseAutoencoder
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.language_models import token_blocks

ALLOWED = 0.005  # difference of explained variance


def main() -> None:
    """Print explained variance for each activation, seed and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-tokens", type=int, default=20_000)
    parser.add_argument("--n-seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of short fits
    extractor = ActivationExtractor(load_teacher().path, 1, device="cpu").fit()
    texts = (document.text for document in load_local_corpus("test"))
    tokens = token_blocks(texts, extractor.tokenizer_, length=128, max_blocks=arguments.n_tokens // 127)
    n_held_out = len(tokens) // 10
    rows, held_out = extractor.transform(tokens[n_held_out:]), extractor.transform(tokens[:n_held_out])
    print(machine())
    print(f"{rows.shape[1]} inputs, {len(rows):,} tokens and {len(held_out):,} held out; explained variance:")
    largest = 0.0
    for activation in ("topk", "batchtopk", "jumprelu", "relu"):
        for seed in range(arguments.n_seeds):
            scores = {
                precision: SparseAutoencoder(
                    activation=activation, l0=32, precision=precision, random_state=seed, device="cpu"
                )
                .fit(rows)
                .score(held_out)
                for precision in ("float32", "bf16")
            }
            change = scores["bf16"] - scores["float32"]
            largest = max(largest, abs(change))
            print(
                f"  {activation}, seed {seed}: float32 {scores['float32']:.5f}, bf16 {scores['bf16']:.5f}, "
                f"change {change:+.5f}",
                flush=True,
            )
    report("largest change", largest, ALLOWED)


if __name__ == "__main__":
    main()
