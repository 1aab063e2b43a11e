"""Train the embedded teacher: a small causal language model of Pythia's architecture.

    python -m geofloor.datasets.train_teacher --output teacher

The corpus is the source and docstrings of Python's standard library and of the required packages as
installed (`load_local_corpus`). Nothing is downloaded, and other versions of these packages give another
teacher. After an interruption, the same command resumes from the last checkpoint to the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from geofloor._files.atomic import atomic_path, write_json
from geofloor._training.checkpoints import load_optimizer_tensors, optimizer_tensors, read_tensors, write_tensors
from geofloor._training.progress import progress_bar
from geofloor._training.sampling import epoch_rows
from geofloor._training.schedules import warmup_cosine
from geofloor.datasets._corpus import load_local_corpus
from geofloor.language_models import token_blocks
from geofloor.language_models._loading import building

_END_OF_TEXT = "<|endoftext|>"
_CHECKPOINT = "geofloor teacher checkpoint"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the teacher and its checkpoints")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=32, help="sequences per step")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="the same number gives the same weights")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="in steps")
    parser.add_argument("--max-characters-per-package", type=int, default=8_000_000)
    return parser.parse_args(arguments)


def train_tokenizer(texts: Any, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, like Pythia's, to encode every text without loss."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END_OF_TEXT, bos_token=_END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def prepare_tokens(options: argparse.Namespace) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray]:
    """Return the tokenizer, training blocks and held-out blocks, stored beside the teacher for later calls."""
    paths = {split: options.output / f"tokens-{split}.npy" for split in ("train", "test")}
    if not all(path.exists() for path in paths.values()):
        documents = [
            document.text
            for document in load_local_corpus("train", max_characters_per_package=options.max_characters_per_package)
        ]
        # A quarter of the documents is enough to learn the merges from.
        tokenizer = train_tokenizer(documents[::4], options.vocabulary)
        tokenizer.save_pretrained(options.output)
        limit = options.max_characters_per_package // 20
        held_out = (document.text for document in load_local_corpus("test", max_characters_per_package=limit))
        for split, texts in (("train", documents), ("test", held_out)):
            blocks = token_blocks(texts, tokenizer, length=options.length)
            with atomic_path(paths[split]) as temporary, open(temporary, "wb") as file:
                np.save(file, blocks.astype(np.uint16))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.output)
    return tokenizer, np.load(paths["train"], mmap_mode="r"), np.load(paths["test"], mmap_mode="r")


def new_model(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.width,
        max_position_embeddings=options.length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with building(options.seed):
        return GPTNeoXForCausalLM(config)


def next_token_loss(model: torch.nn.Module, tokens: np.ndarray) -> torch.Tensor:
    """Return the mean cross-entropy of the next token, in nats per token."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.inference_mode()
def held_out_loss(model: torch.nn.Module, blocks: np.ndarray, batch: int) -> float:
    losses = [next_token_loss(model, blocks[i : i + batch]).item() * len(blocks[i : i + batch])
              for i in range(0, len(blocks), batch)]  # fmt: skip
    return sum(losses) / len(blocks)


def unigram_loss(train: np.ndarray, test: np.ndarray, vocabulary: int) -> float:
    """Return the held-out cross-entropy of smoothed token frequencies, in nats per token."""
    counts = np.bincount(train.reshape(-1), minlength=vocabulary) + 1.0
    return float(-np.log(counts / counts.sum())[np.asarray(test).reshape(-1)].mean())


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters to apply weight decay to matrices, not to biases and norms."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def train(options: argparse.Namespace, model: GPTNeoXForCausalLM, blocks: np.ndarray, test: np.ndarray) -> list[dict]:
    """Train the model in place from the newest checkpoint; return the history."""
    path = options.output / "checkpoint.safetensors"
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("output", "checkpoint_every")}
    optimizer = torch.optim.AdamW(
        parameter_groups(model, options.weight_decay), lr=options.learning_rate, betas=(0.9, 0.95)
    )
    start, history = 0, []
    if path.exists():
        tensors, metadata = read_tensors(path, kind=_CHECKPOINT)
        if metadata["settings"] != settings:
            raise SystemExit(f"'{path}' was made with other settings; remove it or use another --output.")
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        load_optimizer_tensors(optimizer, tensors)
        start, history = metadata["step"], metadata["history"]

    began = time.monotonic()
    with progress_bar("teacher", total=options.steps, initial=start, verbose=1) as bar:
        for step in range(start, options.steps):
            factor = warmup_cosine(step, n_steps=options.steps, warmup_steps=options.warmup, final=0.05)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * factor
            rows = epoch_rows(len(blocks), options.batch, step, options.seed)
            loss = next_token_loss(model, blocks[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
            done = step + 1
            if done % options.checkpoint_every == 0 or done == options.steps:
                row = {
                    "step": done,
                    "tokens": done * options.batch * options.length,
                    "train_loss": loss.item(),
                    "held_out_loss": held_out_loss(model, test[:128], options.batch),
                }
                history.append(row)
                tokens_per_second = (done - start) * options.batch * options.length / (time.monotonic() - began)
                print(json.dumps({**row, "tokens_per_second": round(tokens_per_second)}), flush=True)
                tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
                write_tensors(
                    path,
                    {**tensors, **optimizer_tensors(optimizer)},
                    kind=_CHECKPOINT,
                    metadata={"settings": settings, "step": done, "history": history},
                )
    return history


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizer, blocks, test = prepare_tokens(options)
    model = new_model(options, tokenizer)
    history = train(options, model, blocks, test)
    model.save_pretrained(options.output)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    report = {
        "command": "python -m geofloor.datasets.train_teacher --output teacher",
        "settings": settings,
        "corpus_tokens": int(blocks.size),
        "training_tokens": options.steps * options.batch * options.length,
        "held_out_tokens": int(test.size),
        "held_out_loss_nats": held_out_loss(model, test, options.batch),
        "unigram_loss_nats": unigram_loss(blocks, test, len(tokenizer)),
        "uniform_loss_nats": math.log(len(tokenizer)),
        "history": history,
    }
    write_json(options.output / "training.json", report)
    print(json.dumps({key: value for key, value in report.items() if key.endswith(("tokens", "nats"))}, indent=2))


if __name__ == "__main__":
    main()
