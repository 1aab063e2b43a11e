"""Distillation beside TRL's GKD trainer made off-policy (lmbda=0) with forward KL (beta=0): the same model and batches.

    pip install trl
    python benchmarks/distillation_trl.py

TRL is not among the packages of this project; its trainer is experimental there.
"""

import argparse
import importlib.metadata
import tempfile

import datasets
import numpy as np
import torch
from _timing import report, side_by_side
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
from trl.experimental.gkd import GKDConfig, GKDTrainer

from geofloor.datasets import load_teacher
from geofloor.distillation import DistilledStudent
from geofloor.students import make_student


def trl_fit(teacher, tokenizer, width, tokens, n_steps, batch_size, folder):
    def collate(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "prompts": ids[:, :1]}

    config = GKDConfig(
        output_dir=folder,
        lmbda=0.0,
        beta=0.0,
        temperature=2.0,
        max_steps=n_steps,
        per_device_train_batch_size=batch_size,
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
        model=make_student(teacher, width, random_state=0),
        teacher_model=teacher,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"input_ids": tokens.tolist()}),
        processing_class=tokenizer,
        data_collator=collate,
    ).train()


def our_fit(teacher, width, tokens, n_steps, batch_size):
    settings = {"n_steps": n_steps, "warmup": 0, "batch_size": batch_size, "eval_every": n_steps, "device": "cpu"}
    DistilledStudent(teacher, width, random_state=0, **settings).fit(tokens, eval_tokens=tokens[:1, :2])


def compare(title, teacher, tokenizer, width, shape, n_steps, repeats):
    tokens = np.random.default_rng(0).integers(teacher.config.vocab_size, size=(shape[0] * n_steps, shape[1]))
    with tempfile.TemporaryDirectory() as folder:
        seconds = side_by_side(
            {
                "trl": lambda: trl_fit(teacher, tokenizer, width, tokens, n_steps, shape[0], folder),
                "geofloor": lambda: our_fit(teacher, width, tokens, n_steps, shape[0]),
            },
            repeats=repeats,
        )
    print(f"{title}, {n_steps} steps of {shape[0]} x {shape[1]} tokens, tokens a second:")
    for name, value in seconds.items():
        print(f"  {name}: {tokens.size / value:,.0f}")
    report(
        "  tokens a second of DistilledStudent / GKDTrainer", seconds["trl"] / seconds["geofloor"], 1.2, at_most=False
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-steps", type=int, default=30, help="so many that setting up counts for little")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    print(f"trl {importlib.metadata.version('trl')}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    embedded = load_teacher()
    for width in (16, 64, 128):
        title = f"embedded teacher, student of width {width}"
        compare(title, embedded.model, embedded.tokenizer, width, (8, 256), options.n_steps, options.repeats)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        intermediate_size=512,
        tie_word_embeddings=True,
    )
    teacher = LlamaForCausalLM(config).eval()
    title = "Llama of width 192 and vocabulary 49,152, student of width 64"
    compare(title, teacher, embedded.tokenizer, 64, (4, 512), max(options.n_steps // 3, 1), options.repeats)


if __name__ == "__main__":
    main()
