"""Matrix products by oneDNN beside torch's own, which are MKL's: unembedding, its gradients, and linear layers.

The library takes oneDNN's only under GEOFLOOR_ONEDNN=1.

python benchmarks/products.py
ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/products.py    # as on a CPU without AVX-512
"""

import functools

import torch
from _timing import machine, report, side_by_side

from geofloor._training import products
from geofloor._training.devices import keep_freed_memory
from geofloor._training.products import add_product, faster_linear, linear, product, zero_sum

REPEATS = 15
TIMES = 5  # calls a measurement


def compare(name, function):
    def torchs():
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=False):
            for _ in range(TIMES):
                function()

    def ours():
        for _ in range(TIMES):
            function()

    seconds = side_by_side({"torch": torchs, "onednn": ours}, repeats=REPEATS)
    report(
        f"  {name}: {seconds['torch'] / TIMES * 1e3:.2f} ms -> {seconds['onednn'] / TIMES * 1e3:.2f} ms, times faster",
        seconds["torch"] / seconds["onednn"],
        1.0,
        at_most=False,
    )


def layer_step(layer, rows):
    with faster_linear(rows.shape[:-1].numel(), layer.weight.numel(), rows.device):
        outputs = layer(rows)
    outputs.backward(torch.ones_like(outputs))


def main():
    print(machine())
    products.turn_on()
    keep_freed_memory(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    for n_rows, width, n_vocabulary in ((512, 128, 2048), (512, 16, 2048), (256, 64, 4096), (128, 64, 49_152)):
        rows, weight = normal(n_rows, width), normal(n_vocabulary, width)
        logits = normal(n_rows, n_vocabulary)
        total = zero_sum(weight)
        print(f"{n_rows} rows of width {width}, vocabulary {n_vocabulary:,}:")
        compare("logits", functools.partial(linear, rows, weight))
        compare("gradient on rows", functools.partial(product, logits, weight))
        compare("gradient on weight", functools.partial(add_product, total, logits, rows))
    for n_inputs, n_outputs in ((128, 512), (512, 128), (64, 256), (64, 128), (512, 2048)):
        layer = torch.nn.Linear(n_inputs, n_outputs)
        rows = normal(8, 256, n_inputs, requires_grad=True)
        compare(
            f"linear layer, {n_inputs} to {n_outputs}, 2,048 rows, forward and backward",
            functools.partial(layer_step, layer, rows),
        )


if __name__ == "__main__":
    main()
