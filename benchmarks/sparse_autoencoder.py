"""Compare training steps of SparseAutoencoder with a plain dense PyTorch loop: autograd, Adam, the same sizes.

python benchmarks/sparse_autoencoder.py
python benchmarks/sparse_autoencoder.py --only-topk
python benchmarks/sparse_autoencoder.py --device cuda

On a GPU the comparison includes the paper's size, 1,024 inputs and 32,768 latents. All sides get batches in the
host's memory. On a CPU, TopK with 32 codes per token is compared too, also with the encoder's product alone, the least
work of any step, and with SAELens and sparsify (PyPI: sae-lens, eai-sparsify) if they are installed.
"""

import argparse
import contextlib
import importlib.util

import numpy as np
import torch
from _timing import machine, report, side_by_side
from torch import nn

from geofloor import SparseAutoencoder
from geofloor._training.products import linear
from geofloor.features import _trainer


class PlainAutoencoder(nn.Module):
    """Dense autoencoder in plain PyTorch, ReLU or, with `k`, TopK."""

    def __init__(self, n_inputs, n_latents, k=None):
        super().__init__()
        self.k = k
        self.encoder = nn.Linear(n_inputs, n_latents)
        self.decoder = nn.Linear(n_latents, n_inputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(n_inputs))
        self.normalize()

    def normalize(self):
        with torch.no_grad():
            self.decoder.weight /= self.decoder.weight.norm(dim=0, keepdim=True)

    def forward(self, x):
        codes = torch.relu(self.encoder(x - self.bias))
        if self.k is not None:
            largest = codes.topk(self.k, dim=1)
            codes = torch.zeros_like(codes).scatter(1, largest.indices, largest.values)
        return self.decoder(codes) + self.bias, codes


def plain_steps(model, optimizer, batches, device):
    for batch in batches:
        x = batch.to(device)
        reconstruction, codes = model(x)
        loss = (reconstruction - x).square().sum(1).mean()
        if model.k is None:
            loss = loss + 8e-4 * codes.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.normalize()
    if device.type == "cuda":
        torch.cuda.synchronize()


def saelens_steps(n_inputs, n_latents, k):
    """Make a function that trains SAELens's TopK as its trainer does: forward, backward, clipping, Adam."""
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=n_inputs, d_sae=n_latents, k=k, device="cpu"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def run(batches):
        for n_steps, x in enumerate(batches):
            dead = torch.zeros(n_latents, dtype=torch.bool)
            given = TrainStepInput(
                sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=n_steps, is_logging_step=False
            )
            optimizer.zero_grad()
            model.training_forward_pass(given).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


def sparsify_steps(n_inputs, n_latents, k):
    """Make a function that trains sparsify's TopK: forward, backward, clipping, Adam and normalization."""
    from sparsify import SparseCoder, SparseCoderConfig

    model = SparseCoder(n_inputs, SparseCoderConfig(num_latents=n_latents, k=k), device="cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def run(batches):
        for x in batches:
            optimizer.zero_grad()
            model(x).fvu.backward()
            model.remove_gradient_parallel_to_decoder_directions()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.set_decoder_norm_to_unit_norm()

    return run


PEERS = {"sae_lens": ("SAELens", saelens_steps, 5.0), "sparsify": ("sparsify", sparsify_steps, 2.0)}


@contextlib.contextmanager
def dense_steps():
    """Train TopK by dense products, as other activations are."""
    chosen = _trainer.takes_sparse_step
    _trainer.takes_sparse_step = lambda settings, device: False
    try:
        yield
    finally:
        _trainer.takes_sparse_step = chosen


def compare_topk(n_inputs, n_latents, batch_size, k):
    """Print the speed of TopK's steps on the CPU, by sparse kernels and by dense products, beside other loops."""
    activations = np.random.default_rng(0).standard_normal((8 * batch_size, n_inputs), dtype=np.float32)
    batches = torch.from_numpy(activations).split(batch_size)
    sparse, dense = (
        SparseAutoencoder(
            n_latents, l0=k, batch_size=batch_size, learning_rate=3e-4, warmup_steps=0, random_state=0, device="cpu"
        )
        for _ in range(2)
    )
    model = PlainAutoencoder(n_inputs, n_latents, k)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def encode():
        with torch.no_grad():
            for batch in batches:
                linear(batch, model.encoder.weight, model.encoder.bias)

    def fit_dense():
        with dense_steps():
            dense.partial_fit(few)

    print(f"TopK, {n_inputs} inputs, {n_latents} latents, {k} codes, {batch_size} tokens per step, tokens per second:")
    ratios(
        {"encoder's product alone": (encode, 0.6)}, lambda: sparse.partial_fit(activations), len(activations), repeats=7
    )
    few = activations[: 2 * batch_size]  # because the others take several times as long
    others = {
        "dense step": (fit_dense, 1.0),
        "plain loop": (lambda: plain_steps(model, optimizer, batches[:2], torch.device("cpu")), 1.0),
    }
    for module, (name, make, target) in PEERS.items():
        if importlib.util.find_spec(module):
            run = make(n_inputs, n_latents, k)
            others[name] = (lambda run=run: run(batches[:2])), target
    ratios(others, lambda: sparse.partial_fit(few), len(few), repeats=3)


def ratios(others, sparse, n_tokens, repeats):
    """Print the tokens per second of the sparse step and of others, (function, target) by name, and their ratios."""
    sides = {"sparse step": sparse, **{name: function for name, (function, _) in others.items()}}
    rate = {name: n_tokens / seconds for name, seconds in side_by_side(sides, repeats).items()}
    for name, value in rate.items():
        print(f"  {name}: {value:,.0f}")
    for name, (_, target) in others.items():
        report(f"  sparse step / {name}", rate["sparse step"] / rate[name], target, at_most=False)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", default="cpu")
parser.add_argument("--only-topk", action="store_true", help="skip the comparison of ReLU")
arguments = parser.parse_args()
device = torch.device(arguments.device)
n_steps = 4
if device.type == "cpu":
    print(machine())
    compare_topk(512, 8192, 2048, 32)
    if arguments.only_topk:
        raise SystemExit
sizes = [(128, 4096, 1024), (512, 8192, 2048), (576, 4608, 1024)]
if device.type == "cuda":
    sizes.append((1024, 32_768, 4096))
    n_steps = 64  # enough to outweigh copying the weights back, which takes as long as several steps
    print(torch.cuda.get_device_name(device))
for n_inputs, n_latents, batch_size in sizes:
    rng = np.random.default_rng(0)
    activations = rng.standard_normal((n_steps * batch_size, n_inputs), dtype=np.float32)
    sae = SparseAutoencoder.paper(n_latents, batch_size=batch_size, random_state=0, device=str(device))
    sae.partial_fit(activations)
    model = PlainAutoencoder(n_inputs, n_latents).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    batches = torch.from_numpy(activations).split(batch_size)
    times = side_by_side(
        {
            "plain": lambda: plain_steps(model, optimizer, batches, device),  # noqa: B023 - called at once
            "geofloor": lambda: sae.partial_fit(activations),  # noqa: B023
        },
        repeats=5,
    )
    rate = {name: len(activations) / seconds for name, seconds in times.items()}
    print(f"{n_inputs} inputs, {n_latents} latents, {batch_size} tokens per step: plain {rate['plain']:,.0f} tokens/s")
    report("  tokens per second of SparseAutoencoder / plain", rate["geofloor"] / rate["plain"], 1.0, at_most=False)
