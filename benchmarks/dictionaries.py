"""Train every activation on sparse features of known directions, and count the features that each finds.

python benchmarks/dictionaries.py
python benchmarks/dictionaries.py --only-without
WANDB_MODE=offline python benchmarks/dictionaries.py --only-peers

Rows are sums of 256 random unit directions in 64 dimensions, four times overcomplete, with Zipf rates from 5% to 0.1%.
A feature counts as found if a latent's direction has a cosine of at least 0.9 with its own. All fits take equal steps.
`l0` is the number of features per row, rounded up, for activations that reach it on average; TopK keeps as many codes
of every row and gets twice as many. The second command trains without the auxiliary loss. The third compares the
explained variance of TopK with that of SAELens (PyPI: sae-lens): same rows, batches, steps and codes per row.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from _timing import machine, report

from geofloor import SparseAutoencoder

_RARE = 0.001  # features that fire on fewer rows are not counted
_LEAST_RATE = 0.00105
_N_HELD_OUT = 20_000


def make_rows(n_rows: int, n_inputs: int = 64, n_features: int = 256, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Draw rows, (n_rows, n_inputs), with the directions of their features and their firing rates."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_features, n_inputs))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rates = np.minimum(_LEAST_RATE * n_features / np.arange(1, n_features + 1), 0.05)
    fires = rng.random((n_rows, n_features)) < rates
    sizes = np.where(fires, 0.5 + rng.random((n_rows, n_features)), 0.0)
    return (sizes @ directions).astype(np.float32), directions, fires.mean(axis=0)


def measure(X: np.ndarray, directions: np.ndarray, **parameters: Any) -> dict[str, float]:
    """Fit an autoencoder, and measure recovery and, on held-out rows, explained variance and L0."""
    train, held_out = X[:-_N_HELD_OUT], X[-_N_HELD_OUT:]
    sae = SparseAutoencoder(device="cpu", random_state=0, **parameters).fit(train)
    return {
        "found": float(((directions @ sae.decoder_.T).max(axis=1) >= 0.9).mean()),
        "explained variance": sae.score(held_out),
        "L0": sae.transform(held_out).nnz / len(held_out),
        "dead": sae.history_[-1]["dead"],
        "l1_coefficient": sae.l1_coefficient_,
    }


def compare_activations(
    n_rows: int, n_latents: int, seeds: list[int], only: list[str] | None, *, only_without: bool
) -> None:
    """Print recovery, explained variance and L0 of all activations, with or without the auxiliary loss."""
    for seed in seeds:
        X, directions, rates = make_rows(n_rows + _N_HELD_OUT, seed=seed)
        counted = directions[rates > _RARE]
        l0 = int(np.ceil(rates.sum()))
        print(f"data of seed {seed}: {rates.sum():.2f} features per row, rates {rates.max():.2%} to {rates.min():.2%}")
        fits: dict[str, dict[str, Any]] = {
            "topk": {"activation": "topk", "l0": 2 * l0},
            "batchtopk": {"activation": "batchtopk", "l0": l0},
            "jumprelu": {"activation": "jumprelu", "l0": l0},
            "relu, steered": {"activation": "relu", "l0": 8 * l0},
            "relu, steered, half the codes": {"activation": "relu", "l0": 4 * l0},
            "relu, fixed penalty": {"activation": "relu"},
        }
        if only_without:
            fits = {name: each | {"auxk_coefficient": 0.0} for name, each in fits.items() if "relu," not in name}
        for name, parameters in fits.items():
            if only is not None and name not in only:
                continue
            found = measure(X, counted, n_latents=n_latents, **parameters)
            print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
            report(f"  share of {len(counted)} features found", found["found"], 0.9, at_most=False)
            if "l0" in parameters and name != "topk":
                off = abs(found["L0"] / parameters["l0"] - 1.0)
                report("  distance of L0 from its target, relative", off, 0.05)


def fit_saelens(X: np.ndarray, ours: SparseAutoencoder, learning_rate: float | None) -> tuple[Any, int]:
    """Train SAELens's TopK by its own trainer on as many batches, at our learning rate and schedule or its own."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    def batches() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        rows = torch.from_numpy(X)
        while True:
            order = torch.randperm(len(rows), generator=generator)
            yield from (rows[each] for each in order.split(ours.batch_size_) if len(each) == ours.batch_size_)

    schedule: dict[str, Any] = {"lr_end": 3e-5}  # which a constant rate does not use
    if learning_rate is not None:
        n_warmup, n_decay = ours.n_steps_ // 20, round(0.3 * ours.n_steps_)
        schedule = {"lr": learning_rate, "lr_warm_up_steps": n_warmup, "lr_decay_steps": n_decay, "lr_end": 0.0}
    torch.manual_seed(0)
    scaled = "none" if learning_rate is None else "expected_average_only_in"
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=X.shape[1], d_sae=ours.n_latents_, k=ours.l0_, normalize_activations=scaled)
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=ours.n_steps_ * ours.batch_size_,
            train_batch_size_samples=ours.batch_size_,
            logger=LoggingConfig(log_to_wandb=False),
            **schedule,
        ),
        sae,
        batches(),
    )
    with contextlib.redirect_stderr(io.StringIO()):
        fitted = trainer.fit()
    return fitted.eval(), trainer.n_training_steps


def compare_saelens(n_rows: int, n_latents: int) -> None:
    """Print the explained variance of TopK on held-out rows beside that of SAELens."""
    X, _, rates = make_rows(n_rows + _N_HELD_OUT)
    train, held_out = X[:-_N_HELD_OUT], X[-_N_HELD_OUT:]
    ours = SparseAutoencoder(
        n_latents, l0=2 * int(np.ceil(rates.sum())), device="cpu", random_state=0, validation_fraction=0.0
    ).fit(train)
    own = ours.score(held_out)
    print(f"explained variance of TopK, {ours.l0_} codes per row, {ours.n_steps_} steps of {ours.batch_size_} rows:")
    print(f"  SparseAutoencoder, learning rate {ours.learning_rate_:.4g}: {own:.4f}")
    variance = float(np.square(held_out - held_out.mean(axis=0, dtype=np.float64)).sum())
    version = importlib.metadata.version("sae-lens")
    for name, learning_rate in (("its defaults, 3e-4 constant", None), ("ours and its schedule", ours.learning_rate_)):
        sae, n_steps = fit_saelens(train, ours, learning_rate)
        with torch.no_grad():
            residual = held_out - sae(torch.from_numpy(held_out)).numpy()
        theirs = 1.0 - float(np.square(residual, dtype=np.float64).sum()) / variance
        print(f"  SAELens {version}, {n_steps} steps, learning rate {name}: {theirs:.4f}")
        report("  explained variance of SAELens - SparseAutoencoder", theirs - own, 0.005)


def main() -> None:
    """Print recovery, explained variance and L0 of all activations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-rows", type=int, default=200_000)
    parser.add_argument("--n-latents", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the data")
    parser.add_argument("--only", nargs="+", help="names of the fits, as printed")
    parser.add_argument("--only-without", action="store_true", help="train without the auxiliary loss only")
    parser.add_argument("--only-peers", action="store_true", help="compare TopK with SAELens only")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # each fit warns of dead latents or dense codes
    print(machine() + "\n")
    if arguments.only_peers:
        compare_saelens(arguments.n_rows, arguments.n_latents)
    else:
        compare_activations(
            arguments.n_rows, arguments.n_latents, arguments.seeds, arguments.only, only_without=arguments.only_without
        )


if __name__ == "__main__":
    main()
