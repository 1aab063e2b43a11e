"""Compare distillation with TRL's GKD trainer, off-policy (lmbda=0) and with forward KL (beta=0), on equal batches.

    pip install trl
    python benchmarks/distillation_trl.py
    python benchmarks/distillation_trl.py --one-process --repeats 3
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/distillation_trl.py --cases 128    # like a CPU without AVX-512

By default each side runs in a process of its own, because the allocator settings that one side leaves in the C library
speed up the other. TRL is not a dependency of this project, and marks this trainer as experimental.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import datasets
import numpy as np
import torch
from _timing import machine, report, side_by_side
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
from trl.experimental.gkd import GKDConfig, GKDTrainer

from geofloor import DistilledStudent
from geofloor.datasets import load_teacher
from geofloor.students import make_student

CASES = ("16", "64", "128", "llama")
LLAMA = {
    "vocab_size": 49_152,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 512,
    "tie_word_embeddings": True,
}


@functools.cache
def teacher_of(name):
    return load_teacher().model if name == "embedded teacher" else LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()


@functools.cache
def tokens_of(name, n_sequences, length):
    return np.random.default_rng(0).integers(teacher_of(name).config.vocab_size, size=(n_sequences, length))


def trl_fit(name, width, shape, n_steps):
    tokens = tokens_of(name, shape[0] * n_steps, shape[1])

    def collate(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "prompts": ids[:, :1]}

    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            beta=0.0,
            temperature=2.0,
            max_steps=n_steps,
            per_device_train_batch_size=shape[0],
            learning_rate=3e-4,
            weight_decay=0.01,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
        )
        GKDTrainer(
            model=make_student(teacher_of(name), width, random_state=0),
            teacher_model=teacher_of(name),
            args=config,
            train_dataset=datasets.Dataset.from_dict({"input_ids": tokens.tolist()}),
            processing_class=load_teacher().tokenizer,
            data_collator=collate,
        ).train()


def our_fit(name, width, shape, n_steps):
    tokens = tokens_of(name, shape[0] * n_steps, shape[1])
    settings = {"n_steps": n_steps, "warmup_steps": 0, "batch_size": shape[0], "eval_every": n_steps, "device": "cpu"}
    student = DistilledStudent.paper(teacher_of(name), width, random_state=0, **settings)
    student.fit(tokens, eval_tokens=tokens[:1, :2])


def here(function, *arguments):
    return function(*arguments)


def compare(run, name, width, shape, n_steps, repeats):
    common = (name, width, shape, n_steps)
    seconds = side_by_side(
        {
            "trl": lambda: run["trl"](trl_fit, *common),
            "geofloor": lambda: run["geofloor"](our_fit, *common),
        },
        repeats=repeats,
    )
    print(f"{name}, student of width {width}, {n_steps} steps of {shape[0]} x {shape[1]} tokens, tokens per second:")
    for side, value in seconds.items():
        print(f"  {side}: {n_steps * shape[0] * shape[1] / value:,.0f}")
    report(
        "  tokens per second of DistilledStudent / GKDTrainer", seconds["trl"] / seconds["geofloor"], 1.2, at_most=False
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-steps", type=int, default=30, help="enough to make the cost of setup small")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES, help="widths of students, or a Llama")
    parser.add_argument("--one-process", action="store_true", help="for both sides")
    options = parser.parse_args()
    processes = "one process" if options.one_process else "one process per side"
    print(f"trl {importlib.metadata.version('trl')}, {machine()}; {processes}")
    logging.set_verbosity_error()
    with contextlib.ExitStack() as stack:
        run: dict[str, Any] = {"trl": here, "geofloor": here}
        if not options.one_process:
            for side in run:
                context, quiet = multiprocessing.get_context("spawn"), logging.set_verbosity_error
                pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=quiet))
                run[side] = functools.partial(lambda pool, *call: pool.submit(*call).result(), pool)
        for case in options.cases:
            if case != "llama":
                compare(run, "embedded teacher", int(case), (8, 256), options.n_steps, options.repeats)
                continue
            name = f"Llama of width {LLAMA['hidden_size']} and vocabulary {LLAMA['vocab_size']:,}"
            compare(run, name, 64, (4, 512), max(options.n_steps // 3, 1), min(options.repeats, 3))


if __name__ == "__main__":
    main()
