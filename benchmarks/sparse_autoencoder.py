"""Compare training steps of SparseAutoencoder with a plain dense PyTorch loop: autograd, Adam, the same sizes.

python benchmarks/sparse_autoencoder.py
python benchmarks/sparse_autoencoder.py --only topk
python benchmarks/sparse_autoencoder.py --device cuda

On a GPU the comparison includes the paper's size, 1,024 inputs and 32,768 latents. All sides get batches in the
host's memory. On a CPU, TopK with 32 codes per token and ReLU with 64 are compared too: with the encoder's product
alone, the least work of any step, with bf16, with the auxiliary loss, and with SAELens and sparsify (PyPI: sae-lens,
eai-sparsify) if they are installed.
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
from geofloor.features._cpu_step import SparseStep
from geofloor.features._sparse_step import initialize_parameters


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


def saelens_steps(n_inputs, n_latents, k=None):
    """Make a function that trains SAELens's TopK, or its standard without `k`: forward, backward, clipping, Adam."""
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    if k is None:
        model = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=n_inputs, d_sae=n_latents, device="cpu"))
    else:
        model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=n_inputs, d_sae=n_latents, k=k, device="cpu"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    coefficients = {"l1": 1.0} if k is None else {}

    def run(batches):
        for n_steps, x in enumerate(batches):
            dead = torch.zeros(n_latents, dtype=torch.bool)
            given = TrainStepInput(
                sae_in=x,
                coefficients=coefficients,
                dead_neuron_mask=dead,
                n_training_steps=n_steps,
                is_logging_step=False,
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


def dense_only(function):
    """Wrap a function so that training in it takes dense products."""

    def run():
        with dense_steps():
            function()

    return run


def autoencoder(n_latents, batch_size, **given):
    return SparseAutoencoder(
        n_latents, batch_size=batch_size, learning_rate=3e-4, warmup_steps=0, random_state=0, device="cpu", **given
    )


def compare_topk(n_inputs, n_latents, batch_size, k):
    """Print the speed of TopK's steps on the CPU, by sparse kernels and by dense products, beside other loops."""
    activations = np.random.default_rng(0).standard_normal((8 * batch_size, n_inputs), dtype=np.float32)
    batches = torch.from_numpy(activations).split(batch_size)
    sparse, dense = (autoencoder(n_latents, batch_size, l0=k) for _ in range(2))
    batch = autoencoder(n_latents, batch_size, activation="batchtopk", l0=k)
    model = PlainAutoencoder(n_inputs, n_latents, k)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def encode():
        with torch.no_grad():
            for each in batches:
                linear(each, model.encoder.weight, model.encoder.bias)

    print(f"TopK, {n_inputs} inputs, {n_latents} latents, {k} codes, {batch_size} tokens per step, tokens per second:")
    few = activations[: 2 * batch_size]  # because the others take several times as long
    sides = {
        "encoder's product alone": (encode, 0.6),
        "BatchTopK": (lambda: batch.partial_fit(activations), None),
    }
    ratios(sides, lambda: sparse.partial_fit(activations), len(activations), repeats=7)
    others = {
        "dense step": (dense_only(lambda: dense.partial_fit(few)), 1.0),
        "plain loop": (lambda: plain_steps(model, optimizer, batches[:2], torch.device("cpu")), 1.0),
    }
    for module, (name, make, target) in PEERS.items():
        if importlib.util.find_spec(module):
            run = make(n_inputs, n_latents, k)
            others[name] = (lambda run=run: run(batches[:2])), target
    ratios(others, lambda: sparse.partial_fit(few), len(few), repeats=5)


def compare_variants(n_inputs, n_latents, batch_size, k):
    """Print the speed of TopK's sparse step in bf16 and with the auxiliary loss of a third of the latents."""
    batches = torch.randn(8, batch_size, n_inputs, generator=torch.Generator().manual_seed(0))
    dead = torch.arange(n_latents) % 3 == 0
    variants = {
        "sparse step": ({}, None),
        "sparse step in bf16": ({"precision": "bf16"}, 1.5),
        "with the auxiliary loss": ({"auxk_coefficient": 1 / 32}, None),
        "with the auxiliary loss in bf16": ({"auxk_coefficient": 1 / 32, "precision": "bf16"}, None),
    }
    sides = {}
    with contextlib.ExitStack() as opened:
        for name, (given, _) in variants.items():
            weights = initialize_parameters(n_latents, torch.zeros(n_inputs), torch.Generator().manual_seed(0))
            optimizer = torch.optim.Adam(list(weights), lr=3e-4, fused=True)
            step = opened.enter_context(SparseStep(weights, optimizer, l0=k, clip_norm=1.0, **given))
            sides[name] = lambda step=step: [step.take(batch, dead) for batch in batches]
        print("Variants of TopK's sparse step, a third of the latents dead, tokens per second:")
        seconds = side_by_side(sides, repeats=7)
    for name, each in seconds.items():
        print(f"  {name}: {batches.shape[0] * batch_size / each:,.0f}")
    for name, (_, target) in variants.items():
        if name != "sparse step":
            compare(f"  {name} / sparse step", seconds["sparse step"] / seconds[name], target)


def compare_relu(n_inputs, n_latents, batch_size, l0):
    """Print the speed of ReLU's steps on the CPU with few codes and with many, beside other loops."""
    activations = np.random.default_rng(0).standard_normal((2 * batch_size, n_inputs), dtype=np.float32)
    batches = torch.from_numpy(activations).split(batch_size)
    few, many = (autoencoder(n_latents, batch_size, activation="relu", normalization=None) for _ in range(2))
    for each in (few, many):
        each.set_params(learning_rate=1e-9).partial_fit(activations)  # so that L0 stays
    parameters = few._state.parameters
    encoded = (batches[0] - parameters.decoder_bias) @ parameters.encoder_weight.T
    rank = encoded.numel() - l0 * batch_size
    parameters.encoder_bias.fill_(-float(encoded.flatten().kthvalue(rank).values))
    model = PlainAutoencoder(n_inputs, n_latents)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    others = {
        "with many codes": (lambda: many.partial_fit(activations), None),
        "plain loop": (lambda: plain_steps(model, optimizer, batches, torch.device("cpu")), 1.0),
    }
    if importlib.util.find_spec("sae_lens"):
        run = saelens_steps(n_inputs, n_latents)
        others["SAELens standard"] = (lambda: run(batches)), 3.0
    print(f"ReLU, {n_inputs} inputs, {n_latents} latents, {batch_size} tokens per step, tokens per second:")
    rate = ratios(others, lambda: few.partial_fit(activations), len(activations), repeats=5)
    print(f"  L0 with few codes: {few.history_[-1]['l0']:.0f}, with many: {many.history_[-1]['l0']:.0f}")
    compare("  time of the step with many codes / plain loop", rate["plain loop"] / rate["with many codes"], 1.1, True)


def ratios(others, sparse, n_tokens, repeats):
    """Print the tokens per second of the sparse step and of others, (function, target) by name, and their ratios."""
    sides = {"sparse step": sparse, **{name: function for name, (function, _) in others.items()}}
    rate = {name: n_tokens / seconds for name, seconds in side_by_side(sides, repeats).items()}
    for name, value in rate.items():
        print(f"  {name}: {value:,.0f}")
    for name, (_, target) in others.items():
        compare(f"  sparse step / {name}", rate["sparse step"] / rate[name], target)
    return rate


def compare(name, ratio, target, at_most=False):
    """Print a ratio, with its target if there is one."""
    if target is None:
        print(f"{name}: {ratio:.3g}")
    else:
        report(name, ratio, target, at_most=at_most)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", default="cpu")
parser.add_argument("--only", choices=["topk", "variants", "relu"], help="one comparison of sparse steps on a CPU")
arguments = parser.parse_args()
device = torch.device(arguments.device)
n_steps = 4
if device.type == "cpu":
    print(machine())
    comparisons = {"topk": (compare_topk, 32), "variants": (compare_variants, 32), "relu": (compare_relu, 64)}
    for name, (comparison, l0) in comparisons.items():
        if arguments.only in {None, name}:
            comparison(512, 8192, 2048, l0)
    if arguments.only:
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
