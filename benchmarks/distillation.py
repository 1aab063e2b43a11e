"""Compare distillation with a plain PyTorch loop with F.kl_div on full logits: time and peak memory.

python benchmarks/distillation.py [--device cuda] [--quick]
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from _timing import report, side_by_side
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from geofloor import DistilledStudent
from geofloor.datasets import load_teacher
from geofloor.language_models._divergence import Targets
from geofloor.language_models._logits import LanguageModel
from geofloor.students import distill_widths, make_student

WIDTHS = [8, 16, 32, 64, 96, 128]
TEMPERATURE = 2.0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller steps")
    parser.add_argument("--memory", choices=["plain", "geofloor"], help=argparse.SUPPRESS)  # one side, in its process
    return parser.parse_args()


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def plain_fit(teacher, width, tokens, n_steps, batch_size, device):
    """Train as in a first draft: full logits and a fused optimizer."""
    student = make_student(teacher, width, random_state=0).to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.01, fused=True)
    for step in range(n_steps):
        ids = torch.from_numpy(batch(tokens, step, batch_size)).to(device)
        with torch.no_grad():
            target = functional.softmax(teacher(ids).logits / TEMPERATURE, dim=-1)
        log_probabilities = functional.log_softmax(student(ids).logits / TEMPERATURE, dim=-1)
        loss = functional.kl_div(log_probabilities.flatten(0, 1), target.flatten(0, 1), reduction="batchmean")
        optimizer.zero_grad()
        (TEMPERATURE**2 * loss).backward()
        optimizer.step()
    synchronize(device)


def batch(tokens, step, batch_size):
    start = step * batch_size % (len(tokens) - batch_size + 1)
    return tokens[start : start + batch_size]


@torch.no_grad()
def teacher_passes(teacher, tokens, n_steps, batch_size, device):
    """Run the teacher and compute targets as distillation does."""
    model = LanguageModel(teacher, "teacher")
    for step in range(n_steps):
        logits = model.logits(torch.from_numpy(batch(tokens, step, batch_size)).to(device))
        targets = Targets(logits, TEMPERATURE)
        for index in range(len(targets.chunks)):
            targets.chunk(index)
    synchronize(device)


def settings(n_steps, batch_size, device, tokens):
    """Return settings that leave training alone: the held-out text has two tokens."""
    return {
        "n_steps": n_steps,
        "warmup_steps": 0,
        "learning_rate": 3e-4,
        "optimizer": "adamw",
        "clip_norm": None,
        "init": "random",
        "batch_size": batch_size,
        "eval_every": n_steps,
        "device": device,
    }, {"eval_tokens": tokens[:1, :2]}


def compare_times(options):
    device, n_steps, batch_size = options.device, 5 if options.quick else 20, 32
    if device != "cpu" and not options.quick:
        n_steps = 200
    teacher = load_teacher().model.to(device)
    tokens = np.random.default_rng(0).integers(teacher.config.vocab_size, size=(256, 256))
    student, data = settings(n_steps, batch_size, device, tokens)

    def fit(width):
        DistilledStudent(teacher, width, random_state=0, **student).fit(tokens, **data)
        synchronize(device)

    def fit_together():
        distill_widths(teacher, tokens, WIDTHS, **student, **data)
        synchronize(device)

    common = (tokens, n_steps, batch_size, device)
    functions = {"together": fit_together, "teacher": lambda: teacher_passes(teacher, *common)}
    for width in WIDTHS:
        functions[f"geofloor {width}"] = lambda width=width: fit(width)
        functions[f"plain {width}"] = lambda width=width: plain_fit(teacher, width, *common)
    seconds = side_by_side(functions, repeats=3 if options.quick else 5)
    n_tokens = n_steps * batch_size * 256
    print(f"embedded teacher, {batch_size} x 256 tokens per step, tokens per second:")
    for name, value in seconds.items():
        print(f"  {name}: {n_tokens / value:,.0f}")
    own = sum(seconds[f"geofloor {width}"] for width in WIDTHS) - (len(WIDTHS) - 1) * seconds["teacher"]
    plain = sum(seconds[f"plain {width}"] for width in WIDTHS)
    report("  distill_widths / (students' own steps + one teacher pass)", seconds["together"] / own, 1.25)
    report("  six plain fits / distill_widths", plain / seconds["together"], 1.8, at_most=False)
    for width in WIDTHS:
        ratio = seconds[f"plain {width}"] / seconds[f"geofloor {width}"]
        report(f"  tokens per second of DistilledStudent({width}) / plain", ratio, 1.0, at_most=False)


def compare_dispatch(options):
    """Time steps so small that the number of operations dominates, as for narrow students on a GPU."""
    n_steps, width = 300, 32
    teacher = load_teacher().model
    tokens = np.random.default_rng(0).integers(teacher.config.vocab_size, size=(256, 8))
    student, data = settings(n_steps, 2, "cpu", tokens)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = side_by_side(
        {
            "geofloor": lambda: DistilledStudent(teacher, width, random_state=0, **student).fit(tokens, **data),
            "plain": lambda: plain_fit(teacher, width, tokens, n_steps, 2, "cpu"),
        },
        repeats=3 if options.quick else 7,
    )
    torch.set_num_threads(threads)
    each = ", ".join(f"{name} {1e3 * value / n_steps:.2f} ms" for name, value in seconds.items())
    print(f"{n_steps} steps of 2 x 8 tokens on one core, setup included: {each} per step")
    report("  steps per second of DistilledStudent / plain", seconds["plain"] / seconds["geofloor"], 1.0, at_most=False)


def peak_resident():
    """Return the peak memory of this process in bytes; getrusage would include the parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def memory_of(side, device, quick):
    """Return the peak memory in bytes of a few steps at a vocabulary of 49,152 and 2,048 tokens per step."""
    before = peak_resident()
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=192 if quick else 576,
        num_hidden_layers=2 if quick else 6,
        num_attention_heads=3 if quick else 9,
        num_key_value_heads=3,
        intermediate_size=512 if quick else 1536,
        tie_word_embeddings=True,
    )
    teacher = LlamaForCausalLM(config).eval().to(device)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(16, 512))
    width = config.hidden_size // 3
    if side == "plain":
        plain_fit(teacher, width, tokens, 2, 4, device)
    else:
        student, data = settings(2, 4, device, tokens)
        DistilledStudent(teacher, width, random_state=0, **student).fit(tokens, **data)
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return peak_resident() - before


def compare_memory(options):
    peak = {}
    for side in ("plain", "geofloor"):
        command = [sys.executable, __file__, "--memory", side, "--device", options.device]
        command += ["--quick"] if options.quick else []
        peak[side] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"vocabulary 49,152, 2,048 tokens per step: {side} takes {peak[side] / 2**20:,.0f} MiB at its peak")
    report("  peak memory of DistilledStudent / plain", peak["geofloor"] / peak["plain"], 0.6)


if __name__ == "__main__":
    arguments = parse_arguments()
    if arguments.memory:
        print(memory_of(arguments.memory, arguments.device, arguments.quick))
    else:
        compare_times(arguments)
        if arguments.device == "cpu":
            compare_dispatch(arguments)
        compare_memory(arguments)
