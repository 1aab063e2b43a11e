"""Compare AdamW and Muon on a student of the embedded teacher: loss and time at several step sizes.

    python benchmarks/optimizers.py --work distilled-work

Token blocks are those of distilled_floors.py, made in `--work` if they are missing. Times are of whole fits; only the
comparison of Muon with torch's own times the optimizer alone.
"""

import argparse
import time
from pathlib import Path

import torch
from _timing import side_by_side
from distilled_floors import prepared

from geofloor import DistilledStudent
from geofloor._training.muon import Muon
from geofloor.datasets import load_teacher
from geofloor.language_models._logits import LanguageModel
from geofloor.students import make_student


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for token blocks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--n-steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=(3e-3, 1e-2, 2e-2, 4e-2))
    options = parser.parse_args()
    train, test = prepared(options.work, 72_000, 1000)
    print(
        f"width {options.width}, {options.n_steps} steps of {options.batch_size * train.shape[1]:,} tokens; "
        "held-out KL at T = 2, nats per token"
    )
    for optimizer in ("adamw", "muon"):
        for learning_rate in options.learning_rates:
            began = time.perf_counter()
            student = DistilledStudent(
                load_teacher().path,
                options.width,
                n_steps=options.n_steps,
                batch_size=options.batch_size,
                optimizer=optimizer,
                learning_rate=learning_rate,
                init="random",
                eval_every=options.n_steps // 10,
                eval_sequences=64,
                random_state=0,
                device=options.device,
            ).fit(train, eval_tokens=test)
            milliseconds = (time.perf_counter() - began) / options.n_steps * 1e3
            loss = f"{student.floor_:.4f} ± {student.floor_error_:.4f}"
            print(f"{optimizer:6} {learning_rate:<6g} {loss}, {milliseconds:.0f} ms per step", flush=True)
    if hasattr(torch.optim, "Muon"):
        module = make_student(load_teacher().model, options.width, random_state=0).to(student.device_)
        matrices = LanguageModel(module, "the student").inner_matrices()
        for matrix in matrices:
            matrix.requires_grad_().grad = torch.randn_like(matrix)
        settings = {"lr": 1e-6, "weight_decay": 0.0}
        ours, theirs = Muon(matrices, **settings), torch.optim.Muon(matrices, **settings)

        def stepped(each):
            each.step()
            if student.device_.startswith("cuda"):
                torch.cuda.synchronize()

        found = side_by_side({"ours": lambda: stepped(ours), "torch": lambda: stepped(theirs)})
        print(
            f"{len(matrices)} matrices: Muon {found['ours'] * 1e3:.2f} ms per step, torch.optim.Muon "
            f"{found['torch'] * 1e3:.2f}"
        )


if __name__ == "__main__":
    main()
