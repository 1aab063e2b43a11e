"""Compare the toy engine with single PyTorch models, and with instances batched as in the original notebook.

    python benchmarks/toy_sweep.py

It takes about half an hour on two cores. A time counts only if the floors are equal, so both rivals are trained in full
on a random sample of the sweep, and their time for the whole sweep is extrapolated.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time

import numpy as np
import pandas as pd
import torch
from _timing import report
from joblib import Parallel, delayed

from geofloor.toy import SparseFeatures, toy_sweep

N_FEATURES, ALPHAS, TEACHER_WIDTHS, N_SEEDS = (10, 20, 40), (0.8, 0.9, 0.95, 0.99), (3, 5, 8, 10), 20
BATCH, STEPS, LEARNING_RATE = 1024, 10_000, 1e-3  # Elhage et al.'s notebook


def one_at_a_time(n: int, alpha: float, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train one plain PyTorch toy model, with autograd and AdamW."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    importances = 1 / torch.arange(1, n + 1)
    weight = torch.nn.Parameter(torch.nn.init.xavier_normal_(torch.empty(width, n)))
    bias = torch.nn.Parameter(torch.zeros(n))
    optimizer = torch.optim.AdamW([weight, bias], lr=LEARNING_RATE)
    for _ in range(STEPS):
        x = torch.rand(BATCH, n) * (torch.rand(BATCH, n) < 1 - alpha)
        output = torch.relu(x @ weight.T @ weight + bias)
        loss = (importances * (x - output) ** 2).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach().numpy(), bias.detach().numpy()


def instance_batched(n: int, alpha: float, width: int, n_instances: int) -> tuple[np.ndarray, np.ndarray]:
    """Train all seeds of one width at once by einsum, as in the notebook."""
    torch.manual_seed(0)
    importances = 1 / torch.arange(1, n + 1)
    weight = torch.nn.Parameter(torch.empty(n_instances, n, width))
    torch.nn.init.xavier_normal_(weight)
    bias = torch.nn.Parameter(torch.zeros(n_instances, n))
    optimizer = torch.optim.AdamW([weight, bias], lr=LEARNING_RATE)
    shape = (BATCH, n_instances, n)
    for _ in range(STEPS):
        x = torch.where(torch.rand(shape) < 1 - alpha, torch.rand(shape), 0.0)
        hidden = torch.einsum("...if,ifh->...ih", x, weight)
        output = torch.relu(torch.einsum("...ih,ifh->...if", hidden, weight) + bias)
        loss = (importances * (x - output) ** 2).mean(dim=0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach().numpy(), bias.detach().numpy()


def floor(n: int, alpha: float, weight: np.ndarray, bias: np.ndarray) -> float:
    """Return the loss on 500,000 fresh samples, the same for all models of a configuration."""
    X = SparseFeatures(n, alpha).sample(500_000, random_state=1)
    return float(np.mean((np.maximum(X @ weight.T @ weight + bias, 0.0) - X) ** 2 @ (1 / np.arange(1, n + 1))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sample", type=int, default=60, help="models trained one at a time")
    parser.add_argument("--n-batched", type=int, default=3, help="widths trained instance-batched")
    options = parser.parse_args()
    points = [
        (n, alpha, width)
        for n, alpha, teacher in itertools.product(N_FEATURES, ALPHAS, TEACHER_WIDTHS)
        for width in range(1, teacher + 1)
    ]
    n_students, n_widths = len(points) * N_SEEDS, len(set(points))
    rng = np.random.default_rng(0)
    # Models with a dimension per feature are left out: their floor is zero, and has no relative error.
    sample = [points[i] for i in rng.permutation(len(points)) if points[i][2] < points[i][0]][: options.n_sample]
    batched = list(dict.fromkeys(sample))[: options.n_batched]

    began = time.perf_counter()
    sweep = toy_sweep(n_jobs=2)
    ours = time.perf_counter() - began
    measured = sweep[sweep.teacher_width == 10].groupby(["n_features", "alpha", "width"]).floor.mean()
    print(f"sweep of {n_students} students: {ours:.0f} s")
    report("sweep, minutes", ours / 60, 10)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    report("peak memory of a process, GiB", peak, 2)

    began = time.perf_counter()
    models = Parallel(n_jobs=2)(delayed(one_at_a_time)(*point, seed) for seed, point in enumerate(sample))
    seconds = time.perf_counter() - began
    theirs = seconds / len(sample) * n_students
    floors = np.array([floor(n, a, *model) for (n, a, _), model in zip(sample, models, strict=True)])
    expected = measured[sample].to_numpy()
    print(f"one at a time: {len(sample)} models in {seconds:.0f} s, {n_students} in {theirs / 3600:.1f} h")
    compare(floors, expected)
    report("one at a time / sweep", theirs / ours, 30, at_most=False)

    theirs, floors = 0.0, []
    for n, alpha, width in batched:
        began = time.perf_counter()
        weight, bias = instance_batched(n, alpha, width, N_SEEDS)
        theirs += (time.perf_counter() - began) / len(batched) * n_widths
        seeds = [floor(n, alpha, weight[i].T, bias[i]) for i in range(N_SEEDS)]
        floors.append(np.mean(seeds))
    print(f"instance-batched: {n_widths} widths, each trained once, in {theirs / 3600:.1f} h")
    compare(np.array(floors), measured[batched].to_numpy())
    report("instance-batched / sweep", theirs / ours, 4, at_most=False)

    sizes = {}
    for n_seeds in (5, 10, 20, 40):
        began = time.perf_counter()
        n_models = len(toy_sweep(20, range(1, 11), (0.8, 0.95), teacher_widths=None, n_seeds=n_seeds, n_jobs=2))
        sizes[n_models] = time.perf_counter() - began
    print("models, seconds:", ", ".join(f"{n} {seconds:.1f}" for n, seconds in sizes.items()))
    logs = np.log(pd.Series(sizes))
    report("exponent of time in the number of models", np.polyfit(np.log(logs.index), logs, 1)[0], 1)


def compare(floors: np.ndarray, expected: np.ndarray) -> None:
    """Compare floors within 1% by their mean ratio, because single models scatter by several percent."""
    ratio = floors / expected
    print(
        f"standard error of the mean ratio {ratio.std(ddof=1) / np.sqrt(len(ratio)):.4f}, median {np.median(ratio):.4f}"
    )
    print(f"sum of floors / sum of ours: {floors.sum() / expected.sum():.4f}")
    report("mean of floor / ours", ratio.mean(), 1.01)
    report("mean of floor / ours", ratio.mean(), 0.99, at_most=False)


if __name__ == "__main__":
    main()
