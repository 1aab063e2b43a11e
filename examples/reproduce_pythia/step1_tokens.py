"""
Step 1: text → tokens
=====================

Stream the dataset, and write its tokens to one file on disk: blocks of the students' length. The autoencoders take
several consecutive blocks as one sequence.
"""

from pathlib import Path

import datasets
import numpy as np
from transformers import AutoTokenizer

from geofloor.language_models import token_blocks


def open_dataset(dataset, split):
    """Stream a dataset from a hub, a folder or a file."""
    path = Path(dataset)
    kind = {".jsonl": "json", ".json": "json", ".zst": "json", ".gz": "json", ".parquet": "parquet"}.get(path.suffix)
    if path.is_file() and kind:
        return datasets.load_dataset(kind, data_files={split: str(path)}, split=split, streaming=True)
    return datasets.load_dataset(dataset, split=split, streaming=True)


def write_tokens(folder, *, model, dataset, split, text_column, length, n_blocks):
    """Write ``tokens.npy``."""
    found = token_blocks(
        open_dataset(dataset, split),
        AutoTokenizer.from_pretrained(model),
        length=length,
        max_blocks=n_blocks,
        path=folder / "tokens.npy",
        text_column=text_column,
    )
    print(f"tokens: {found.size:,} in {len(found):,} blocks")
    if len(found) < n_blocks:
        print(f"the dataset ends there; the plan was for {n_blocks:,} blocks")


# %%
# The parts of the tokens
# -----------------------
# Evaluation comes first, then the autoencoders, then the statistics. Students train on all but the first part.


def read_blocks(folder):
    return np.load(folder / "tokens.npy", mmap_mode="r")


def evaluation_blocks(folder, eval_sequences):
    return read_blocks(folder)[:eval_sequences]


def training_blocks(folder, eval_sequences):
    return read_blocks(folder)[eval_sequences:]


def sequences(folder, eval_sequences, length, start, stop):
    """Return the sequences from `start` to `stop` of those for autoencoders and statistics."""
    blocks = training_blocks(folder, eval_sequences)
    ratio = length // blocks.shape[1]
    if len(blocks) < stop * ratio:
        raise SystemExit(
            f"The dataset has {blocks.size:,} tokens beside those to evaluate on; autoencoders and statistics need "
            f"{stop * length:,}: lower --sae-tokens or --statistics-tokens."
        )
    return blocks[start * ratio : stop * ratio].reshape(-1, length)
