"""Tokens per second of `ActivationExtractor` beside a bare model, and of several layers in one pass beside one each.

    python benchmarks/activation_extractor.py

The bare model has no blocks beyond the layer, and a plain loop gives it the same batches. The extractor's additions
(checks of input and output, the hook, the order, NumPy arrays) should be small beside the forward pass.

Three layers in one pass run the blocks up to the last of them once. One pass per layer runs the first blocks three
times. The ratio of times should be near the ratio of blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from _timing import machine, report, side_by_side
from sklearn.base import clone
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXModel

from geofloor import ActivationExtractor

N_SEQUENCES, LENGTH, BATCH_SIZE = 64, 256, 8
N_LAYERS, LAYER = 6, 3
LAYERS = [2, 3, 4]
TARGET = 0.85
TARGET_LAYERS = 0.5


def config(n_layers: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=2048,
        hidden_size=256,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=LENGTH,
    )


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blocks = np.random.default_rng(0).integers(0, 2048, size=(N_SEQUENCES, LENGTH))
    extractor = ActivationExtractor(
        GPTNeoXForCausalLM(config(N_LAYERS)), LAYER, batch_size=BATCH_SIZE, device="cpu"
    ).fit()
    fewer = blocks[: N_SEQUENCES // 2]
    together = clone(extractor).set_params(layer=LAYERS).fit()
    alone = [clone(extractor).set_params(layer=layer).fit() for layer in LAYERS]
    bare_model = GPTNeoXModel(config(LAYER + 1)).eval()

    def extract() -> int:
        return sum(len(rows) for rows in extractor.iter_batches(blocks))

    @torch.inference_mode()
    def bare() -> int:
        n_tokens = 0
        for start in range(0, N_SEQUENCES, BATCH_SIZE):
            ids = torch.from_numpy(blocks[start : start + BATCH_SIZE])
            n_tokens += bare_model(input_ids=ids, use_cache=False).last_hidden_state[..., 0].numel()
        return n_tokens

    def one_pass() -> int:
        return sum(len(rows) for batch in together.iter_batches(fewer) for rows in batch.values())

    def one_pass_per_layer() -> int:
        return sum(len(rows) for each in alone for rows in each.iter_batches(fewer))

    print(machine())
    seconds = side_by_side({"extractor": extract, "bare": bare}, repeats=7)
    for name, value in seconds.items():
        print(f"{name}: {blocks.size / value:,.0f} tokens/s")
    report("throughput, extractor / bare forward pass", seconds["bare"] / seconds["extractor"], TARGET, at_most=False)

    seconds = side_by_side({"one pass": one_pass, "one pass per layer": one_pass_per_layer}, repeats=15)
    for name, value in seconds.items():
        print(f"layers {LAYERS}, {name}: {fewer.size / value:,.0f} tokens/s")
    n_blocks, n_each = max(LAYERS) + 1, sum(layer + 1 for layer in LAYERS)
    print(f"blocks run, one pass / one pass per layer: {n_blocks} / {n_each} = {n_blocks / n_each:.3g}")
    report("time, one pass / one pass per layer", seconds["one pass"] / seconds["one pass per layer"], TARGET_LAYERS)


if __name__ == "__main__":
    main()
