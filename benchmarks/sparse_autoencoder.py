"""Compare training steps of SparseAutoencoder with a plain dense PyTorch loop: autograd, Adam, the same sizes.

python benchmarks/sparse_autoencoder.py
python benchmarks/sparse_autoencoder.py --device cuda

On a GPU the comparison includes the paper's size, 1,024 inputs and 32,768 latents. Both sides get batches in the
host's memory.
"""

import argparse

import numpy as np
import torch
from _timing import report, side_by_side
from torch import nn

from geofloor import SparseAutoencoder


class PlainAutoencoder(nn.Module):
    """Dense autoencoder in plain PyTorch."""

    def __init__(self, n_inputs, n_latents):
        super().__init__()
        self.encoder = nn.Linear(n_inputs, n_latents)
        self.decoder = nn.Linear(n_latents, n_inputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(n_inputs))
        self.normalize()

    def normalize(self):
        with torch.no_grad():
            self.decoder.weight /= self.decoder.weight.norm(dim=0, keepdim=True)

    def forward(self, x):
        codes = torch.relu(self.encoder(x - self.bias))
        return self.decoder(codes) + self.bias, codes


def plain_steps(model, optimizer, batches, device):
    for batch in batches:
        x = batch.to(device)
        reconstruction, codes = model(x)
        loss = (reconstruction - x).square().sum(1).mean() + 8e-4 * codes.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.normalize()
    if device.type == "cuda":
        torch.cuda.synchronize()


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", default="cpu")
device = torch.device(parser.parse_args().device)
n_steps = 4
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
