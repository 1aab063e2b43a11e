"""Measure floors of toy students with a deep decoder: distortion curves, and floors to test them on.

    python benchmarks/deep_students.py --device cuda

A student encodes n sparse features linearly in d dimensions and decodes them with two hidden ReLU layers of 256 units.
Its output is linear in training, because a dead ReLU would never learn, and clipped at 0 in the measurement. Hundreds
of students are trained at once, in stacked matrix products. Features of equal importance give the table of curves
geofloor/theory/_distortion_tables/deep_uniform.csv, and other importances give the floors in
results/toy_deep_floors.csv. It takes four minutes on an H100.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from distortion_curves import write_table
from other_toy_sweeps import LAWS as ALL_LAWS

from geofloor._training.schedules import warmup_cosine
from geofloor.theory import capacity

ROOT = Path(__file__).parents[1]
HIDDEN = 256
FIRING_RATES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
WIDTHS = (1, 2, 3, 4, 6, 8)
LAWS = {name: ALL_LAWS[name] for name in ("Zipf 1", "Zipf 2", "exponential")}
SECOND_MOMENT = 1.0 / 3.0  # of an active feature from U[0, 1]


class Student(NamedTuple):
    law: str  # "uniform" or one of LAWS
    firing_rate: float
    width: int
    n_features: int
    seed: int

    @property
    def importances(self) -> np.ndarray:
        return np.ones(self.n_features) if self.law == "uniform" else LAWS[self.law](self.n_features)


def students(n_seeds: int) -> list[Student]:
    """List the students to train, first those for the curves."""
    found = []
    for rate in FIRING_RATES:
        asymptotic = capacity(1.0 - rate)
        for width in WIDTHS:
            counts = {math.ceil(width * ratio) for ratio in (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)}
            counts = {n for n in counts if width < n <= min(2.5 * width * asymptotic, 128)}
            found += [Student("uniform", rate, width, n, s) for n in sorted(counts) for s in range(n_seeds)]
    for law in LAWS:
        for n, widths in ((20, (1, 2, 3, 5, 7, 10)), (40, (1, 2, 3, 4, 6, 8, 10, 14))):
            found += [
                Student(law, rate, width, n, s)
                for rate in (0.1, 0.03, 0.01)
                for width in widths
                for s in range(n_seeds)
            ]
    return found


class Samples:
    """Batches of non-empty samples for students with different sparsities and numbers of features."""

    def __init__(self, stack: list[Student], n_padded: int, device: torch.device, seed: int) -> None:
        self.shape = (len(stack), n_padded)
        rates = torch.tensor([s.firing_rate for s in stack], device=device)[:, None, None]
        counts = torch.tensor([s.n_features for s in stack], device=device)[:, None, None]
        self.log_none = torch.log1p(-rates.clamp(max=1.0 - 1e-7))
        self.empty = torch.exp(counts * self.log_none)[:, 0, 0]
        self.rates, self.index = rates, torch.arange(n_padded, device=device)
        self.present = self.index < counts
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def draw(self, batch_size: int) -> torch.Tensor:
        """Draw samples of shape (M, B, n); the first active feature follows a truncated geometric law."""
        m, n = self.shape
        device = self.index.device
        u = torch.rand((m, batch_size, 1), generator=self.generator, device=device)
        first = (torch.log1p(-u * (1.0 - self.empty[:, None, None])) / self.log_none).floor()
        draws = torch.rand((m, batch_size, n), generator=self.generator, device=device)
        active = ((draws < self.rates) & (self.index > first)) | (self.index == first)
        amplitudes = torch.rand((m, batch_size, n), generator=self.generator, device=device)
        return amplitudes * (active & self.present)


def initial(stack: list[Student], n_padded: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Initialize layers after He, padded with zeros to the largest student."""
    widest = max(s.width for s in stack)
    arrays = {
        "encoder": np.zeros((len(stack), n_padded, widest), np.float32),
        "in": np.zeros((len(stack), widest, HIDDEN), np.float32),
        "middle": np.zeros((len(stack), HIDDEN, HIDDEN), np.float32),
        "out": np.zeros((len(stack), HIDDEN, n_padded), np.float32),
    }
    for i, s in enumerate(stack):
        rng = np.random.default_rng(np.random.SeedSequence((s.seed, s.width, s.n_features, int(1e6 * s.firing_rate))))
        n, d = s.n_features, s.width
        arrays["encoder"][i, :n, :d] = rng.standard_normal((n, d)) * math.sqrt(1.0 / d)
        arrays["in"][i, :d] = rng.standard_normal((d, HIDDEN)) * math.sqrt(2.0 / d)
        arrays["middle"][i] = rng.standard_normal((HIDDEN, HIDDEN)) * math.sqrt(2.0 / HIDDEN)
        arrays["out"][i, :, :n] = rng.standard_normal((HIDDEN, n)) * math.sqrt(0.1 / HIDDEN)
    parameters = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    for name, size in (("in_bias", HIDDEN), ("middle_bias", HIDDEN), ("out_bias", n_padded)):
        parameters[name] = torch.zeros((len(stack), 1, size), device=device)
    return parameters


def answer(p: dict[str, torch.Tensor], X: torch.Tensor) -> torch.Tensor:
    """Return outputs of shape (M, B, n) for samples of this shape."""
    hidden = torch.bmm(X, p["encoder"])
    hidden = torch.baddbmm(p["in_bias"], hidden, p["in"]).relu_()
    hidden = torch.baddbmm(p["middle_bias"], hidden, p["middle"]).relu_()
    return torch.baddbmm(p["out_bias"], hidden, p["out"])


def losses(
    p: dict[str, torch.Tensor], X: torch.Tensor, weights: torch.Tensor, empty: torch.Tensor, *, clamp: bool = False
) -> torch.Tensor:
    """Return the expected loss of each student; the last sample of a batch is empty, weighted by its probability."""
    output = answer(p, X)
    squared = ((output.clamp(min=0.0) if clamp else output) - X).square()
    each = torch.matmul(squared, weights[:, :, None])[:, :, 0]
    return (1.0 - empty) * each[:, :-1].mean(1) + empty * each[:, -1]


def train(stack: list[Student], *, n_steps: int, batch_size: int, rate: float, device: torch.device) -> np.ndarray:
    """Train students; return losses and standard errors of shape (2, M), relative to an output of 0."""
    n_padded = max(s.n_features for s in stack)
    weights = torch.zeros((len(stack), n_padded))
    for row, s in zip(weights, stack, strict=True):
        share = s.importances / (s.importances.sum() * s.firing_rate * SECOND_MOMENT)
        row[: s.n_features] = torch.from_numpy(share)
    weights = weights.to(device)
    samples = Samples(stack, n_padded, device, 0)
    p = {name: value.requires_grad_() for name, value in initial(stack, n_padded, device).items()}
    optimizer = torch.optim.Adam(list(p.values()), lr=rate, betas=(0.9, 0.99), fused=device.type == "cuda")
    blank = torch.zeros((len(stack), 1, n_padded), device=device)
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup_cosine(step, n_steps=n_steps, warmup_steps=200)
        X = torch.cat([samples.draw(batch_size), blank], dim=1)
        optimizer.zero_grad(set_to_none=True)
        losses(p, X, weights, samples.empty).sum().backward()
        optimizer.step()
    torch.set_float32_matmul_precision("highest")
    held_out = Samples(stack, n_padded, device, 1)
    with torch.no_grad():
        values = torch.stack(
            [
                losses(p, torch.cat([held_out.draw(1024), blank], dim=1), weights, held_out.empty, clamp=True)
                for _ in range(128)
            ]
        )
    torch.set_float32_matmul_precision("high")
    return torch.stack([values.mean(0), values.std(0) / math.sqrt(len(values))]).cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--n-steps", type=int, default=16_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--n-seeds", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="train only every n-th student")
    parser.add_argument("--output", type=Path, default=ROOT)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    device = torch.device(options.device)
    everyone = sorted(students(options.n_seeds)[:: options.every], key=lambda s: s.n_features)
    rows = []
    for start in range(0, len(everyone), options.at_once):
        began = time.perf_counter()
        stack = everyone[start : start + options.at_once]
        loss, error = train(
            stack, n_steps=options.n_steps, batch_size=options.batch_size, rate=options.learning_rate, device=device
        )
        rows += [(*s, a, b) for s, a, b in zip(stack, loss, error, strict=True)]
        seconds = time.perf_counter() - began
        print(f"{len(rows)} of {len(everyone)} students; {seconds:.0f} s for the last {len(stack)}", flush=True)
    frame = pd.DataFrame(rows, columns=[*Student._fields, "loss", "error"])
    frame["alpha"] = (1.0 - frame.firing_rate).round(10)
    groups = frame.groupby(["law", "alpha", "width", "n_features"])
    table = pd.DataFrame({"mean": groups.loss.mean(), "best": groups.loss.min(), "standard_error": groups.error.mean()})
    table = table.reset_index()
    curves, others = table[table.law == "uniform"].drop(columns="law"), table[table.law != "uniform"]
    tables, results = options.output / "geofloor/theory/_distortion_tables", options.output / "benchmarks/results"
    for path in (tables, results):
        path.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/deep_students.py"
    write_table(curves, tables / "deep_uniform.csv", command)
    write_table(others, results / "toy_deep_floors.csv", command)
    print(f"{len(curves)} points of the curves, {len(others)} floors; {options.n_steps} steps")


if __name__ == "__main__":
    main()
