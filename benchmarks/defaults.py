"""Fit the pipeline of README with all defaults, on a teacher's activations, synthetic features and noise.

python benchmarks/defaults.py
python benchmarks/defaults.py --activations mine.npy

For each data set the script prints the explained share of the held-out variance, L0, the sparsity, the critical width
over the number of inputs, seconds, and the warnings. Of your own activations the last tenth is held out.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.pipeline import make_pipeline

from geofloor import ActivationExtractor, FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.language_models import token_blocks

N_HELD_OUT = 8000


def sparse_features(n_rows, sizes, *, n_inputs=64, n_features=400, rate=0.02):
    """Make rows of features in superposition; the function `sizes` draws the sizes of firing features."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(n_features, n_inputs))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    fires = rng.random((n_rows, n_features)) < rate
    return ((fires * sizes(rng, fires.shape)) @ directions).astype(np.float32)


def uniform(rng, shape):
    return rng.random(shape)


def exponential(rng, shape):
    return rng.exponential(size=shape)


def equal(rng, shape):
    return np.ones(shape)


def data_sets(own):
    if own is not None:
        X = np.load(own, mmap_mode="r")
        yield own.name, X[: -(len(X) // 10)], X[-(len(X) // 10) :]
        return
    features = sparse_features(20_000 + N_HELD_OUT, uniform)
    for factor in (1.0, 1e-3, 1e3):
        yield f"uniform features x {factor:g}", factor * features[:20_000], factor * features[20_000:]
    for sizes in (exponential, equal):
        features_of_size = sparse_features(20_000 + N_HELD_OUT, sizes)
        yield f"{sizes.__name__} features", features_of_size[:20_000], features_of_size[20_000:]
    for n_rows in (2000, 5000):
        yield f"uniform features, {n_rows:,} rows", features[:n_rows], features[20_000:]
    noise = np.random.default_rng(0).normal(size=(20_000 + N_HELD_OUT, 64))
    yield "Gaussian noise", noise[:20_000], noise[20_000:]
    teacher = load_teacher()
    tokens = token_blocks(
        (document.text for document in load_local_corpus("test")), teacher.tokenizer, length=256, max_blocks=230
    )
    for layer in range(teacher.model.config.num_hidden_layers):
        X = np.asarray(ActivationExtractor(teacher.model, layer, batch_size=32).transform(tokens))
        yield f"teacher after block {layer}", X[:50_000], X[50_000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activations", type=Path, help="an .npy file of your own")
    for name, X, held_out in data_sets(parser.parse_args().activations):
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipeline = make_pipeline(SparseAutoencoder(random_state=0), FeatureStatistics(), FloorPredictor()).fit(X)
        seconds = time.perf_counter() - began
        sae, statistics, floor = pipeline.named_steps.values()
        print(
            f"{name}: {len(X):,} x {X.shape[1]}, {sae.n_latents_:,} latents, {sae.n_steps_:,} steps, {seconds:.0f} s\n"
            f"    explains {sae.score(held_out):.3f} of held-out variance with L0 {statistics.mean_l0_:.1f} "
            f"({statistics.mean_l0_ / sae.n_latents_:.1%} of the latents); alpha {statistics.alpha_:.4f}, "
            f"d* {floor.critical_width_ / X.shape[1]:.2f} times the inputs",
            flush=True,
        )
        for warning in caught:
            print(f"    {warning.category.__name__}: {warning.message}")


if __name__ == "__main__":
    main()
