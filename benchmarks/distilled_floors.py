"""Distill students of the embedded teacher to observe floors for comparison with predictions.

    python benchmarks/distilled_floors.py --work distilled-work --device cuda

One pass distills all widths, one of them with a second seed. Another pass repeats this with twice the steps. Floors and
training curves go to results/distilled_floors.json, and the students to `--work`, beside the token blocks. It takes
minutes on a GPU and a day on two cores. A stopped run resumes from its checkpoints. Muon reaches the same floors with
less text:

    python benchmarks/distilled_floors.py --work distilled-work --optimizer muon --learning-rate 2e-2 --batch-size 8 \
        --n-steps 1000 --widths 8 16 32 64 96 128 --eval-every 100 --eval-sequences 256 \
        --output distilled_floors_muon.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.language_models import token_blocks
from geofloor.students import distill_widths

RESULTS = Path(__file__).parent / "results"
WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128)
LENGTH = 256
WARMUP_STEPS = 100


def prepared(work: Path, n_train: int, n_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token blocks to train and to evaluate on; make them if the folder has none."""
    work.mkdir(parents=True, exist_ok=True)
    paths = {split: work / f"tokens-{split}.npy" for split in ("train", "test")}
    tokenizer = load_teacher().tokenizer
    for split, limit, n_blocks in (("train", 8_000_000, n_train), ("test", 400_000, n_test)):
        if not paths[split].exists():
            texts = (document.text for document in load_local_corpus(split, max_characters_per_package=limit))
            blocks = token_blocks(texts, tokenizer, length=LENGTH)
            chosen = np.random.default_rng(0).permutation(len(blocks))[:n_blocks]  # a random sample of all packages
            np.save(paths[split], blocks[chosen].astype(np.uint16))
    return np.load(paths["train"], mmap_mode="r"), np.load(paths["test"], mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for token blocks, checkpoints and students")
    parser.add_argument("--teacher", type=Path, default=load_teacher().path, help="folder, such as train_teacher makes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences per step")
    parser.add_argument("--n-steps", type=int, default=1500)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--init", default="random", help="how students start")
    parser.add_argument("--n-heads", type=int, help="of every student; by default Table 8's rule")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--eval-sequences", type=int, default=512)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--second-seed", type=int, default=64, help="width that is distilled from a second seed too")
    parser.add_argument("--data-seed", type=int, default=0, help="seed of the order of the text")
    parser.add_argument("--budgets", type=int, nargs="+", default=(1, 2), help="multiples of the steps")
    parser.add_argument("--n-train", type=int, default=72_000, help="sequences")
    parser.add_argument("--n-test", type=int, default=1000, help="sequences")
    parser.add_argument("--only-tokens", action="store_true", help="prepare the token blocks and stop")
    parser.add_argument("--output", type=Path, default=RESULTS / "distilled_floors.json")
    options = parser.parse_args()
    train, test = prepared(options.work, options.n_train, options.n_test)
    print(f"{train.size:,} tokens to train on, {test.size:,} held out", flush=True)
    if options.only_tokens:
        return
    chosen = ("optimizer", "init", "learning_rate", "batch_size", "eval_every", "eval_sequences", "data_seed")
    settings = {name: getattr(options, name) for name in chosen} | {"warmup_steps": WARMUP_STEPS}
    if options.n_heads is not None:
        settings["n_heads"] = options.n_heads
    runs = []
    for budget in options.budgets:
        pairs = [(width, 0) for width in options.widths]
        pairs += [(width, 1) for width in options.widths if width == options.second_seed]
        began = time.perf_counter()
        students = distill_widths(
            str(options.teacher),
            train,
            pairs,
            eval_tokens=test,
            n_steps=budget * options.n_steps,
            checkpoint_dir=options.work / f"checkpoints-{budget * options.n_steps}",
            device=options.device,
            **settings,
        )
        seconds = time.perf_counter() - began
        for student in students:
            name = f"student-{student.width}-seed-{student.random_state}-steps-{student.n_steps_}.safetensors"
            student.save(options.work / name)
            runs.append(
                {
                    "width": student.width,
                    "seed": student.random_state,
                    "n_steps": student.n_steps_,
                    "n_tokens": student.n_steps_ * options.batch_size * train.shape[1],
                    "floor": student.floor_,
                    "floor_error": student.floor_error_,
                    "remaining_fall": student.remaining_fall_,
                    "converged": student.converged_,
                    "n_parameters": student.n_parameters_,
                    "history": [[h["step"], h["eval_kl"]] for h in student.history_],
                }
            )
            print(
                f"width {student.width}, seed {student.random_state}, {student.n_steps_} steps: "
                f"{student.floor_:.4f} ± {student.floor_error_:.4f} nats",
                flush=True,
            )
        print(f"{len(students)} students in {seconds:.0f} s", flush=True)
    command = shlex.join(["python", "benchmarks/distilled_floors.py", *sys.argv[1:]])
    content = {"command": command, "settings": settings, "runs": runs}
    options.output.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
