"""Tokens per second of `ActivationExtractor`, beside a bare model cut off at the layer.

    python benchmarks/activation_extractor.py

The bare model has no blocks beyond the layer, and a plain loop gives it the same batches. The extractor's additions
(checks of input and output, the hook, the order, NumPy arrays) should be small beside the forward pass.
"""

from __future__ import annotations

import numpy as np
import torch
from _timing import report, side_by_side
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXModel

from geofloor import ActivationExtractor

N_SEQUENCES, LENGTH, BATCH_SIZE = 64, 256, 8
N_LAYERS, LAYER = 6, 3
TARGET = 0.85


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

    seconds = side_by_side({"extractor": extract, "bare": bare}, repeats=7)
    for name, value in seconds.items():
        print(f"{name}: {blocks.size / value:,.0f} tokens/s")
    report("throughput, extractor / bare forward pass", seconds["bare"] / seconds["extractor"], TARGET, at_most=False)


if __name__ == "__main__":
    main()
