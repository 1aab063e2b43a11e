"""Kill long operations at any time, resume them, and compare the results with those of runs never stopped.

    python benchmarks/kills.py | tee benchmarks/results/kills.txt

Each process gets one SIGKILL, half of them at a random time, half just after a temporary file appeared. The same call
then runs to its end. Its result and its files must equal those of an uninterrupted run to the bit. Additional files
count as left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import ByT5Tokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from geofloor import ActivationExtractor, SparseAutoencoder, plan_distillation
from geofloor.language_models import token_blocks
from geofloor.students import distill_widths
from geofloor.toy import toy_sweep

PRELOADED = [  # into the fork server, so that each run begins at once
    "datasets",
    "geofloor.students._student",
    "geofloor.features._autoencoder",
    "geofloor.planning._distillation",
    "geofloor.toy",
    "matplotlib.pyplot",
    "transformers.models.byt5.tokenization_byt5",
    "transformers.models.gpt_neox.modeling_gpt_neox",
]
_LIMIT = 300.0  # seconds; a longer run counts as hanging


# Operations to kill: each takes a folder and returns values to compare


def fit_autoencoder(folder: Path) -> Any:
    activations = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    sae = SparseAutoencoder(
        96, batch_size=50, n_epochs=5, checkpoint_path=folder / "sae", checkpoint_every=7, random_state=0, device="cpu"
    ).fit(activations)
    return [sae.encoder_, sae.encoder_bias_, sae.decoder_, sae.decoder_bias_, sae.history_]


def store_activations(folder: Path) -> Any:
    extractor = ActivationExtractor(_model(), [2, 0], batch_size=4)
    stores = extractor.transform_to_store(_tokens(1500), folder / "stores", shard_tokens=1024)
    return [store[:] for store in stores.values()]


def write_tokens(folder: Path) -> Any:
    texts = (f"Text number {i} of {'many ' * (i % 40)}texts." for i in range(12_000))
    from geofloor.language_models import _tokens

    _tokens._SAVE_TOKENS = 2**15  # notes at an interval that a small corpus has many of
    return np.array(token_blocks(texts, ByT5Tokenizer(), length=64, path=folder / "tokens.npy"))


def distill(folder: Path) -> Any:
    students = distill_widths(
        _model(),
        _tokens(150),
        [8, 16],
        n_steps=60,
        warmup_steps=5,
        batch_size=8,
        checkpoint_dir=folder / "students",
        checkpoint_every=7,
        random_state=0,
        device="cpu",
    )
    return [(student.floor_, [value.numpy() for value in student.model_.state_dict().values()]) for student in students]


def sweep(folder: Path) -> Any:
    return toy_sweep(
        (6, 10),
        alphas=(0.8, 0.95),
        teacher_widths=[2, 4],
        n_seeds=3,
        n_steps=150,
        max_rounds=2,
        n_eval_samples=4096,
        models_per_batch=3,
        checkpoint_dir=folder,
        device="cpu",
    ).to_numpy()


def plan(folder: Path) -> Any:
    tokens = _tokens(900)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its model is random, and has no features to find
        made = plan_distillation(
            _model(), tokens, target_kl=0.1, widths=[8, 16, 24], budgets=[30, 60], n_tokens=12_000, device="cpu",
            checkpoint_dir=folder,
        )  # fmt: skip
    return made.table.to_json(), (folder / "plan.json").read_text(), (folder / "bound.json").read_text()


def _model() -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval()


def _tokens(n_sequences: int) -> np.ndarray:
    return np.random.default_rng(0).integers(64, size=(n_sequences, 24))


# operation: its function, and its share of a hundred kills
OPERATIONS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "SparseAutoencoder.fit": (fit_autoencoder, 18),
    "transform_to_store": (store_activations, 18),
    "token_blocks(path)": (write_tokens, 18),
    "distill_widths": (distill, 18),
    "toy_sweep": (sweep, 18),
    "plan_distillation": (plan, 10),
}


# Runs


class Finished(NamedTuple):
    """Outcome of a run."""

    status: str  # "done", "refused" or "killed"
    digest: str
    seconds: float
    n_temporary: int  # files that appeared


def server() -> Any:
    """Return a multiprocessing context whose workers fork from a server with all imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run(name: str, folder: Path, *, kill_after: float = np.inf, kill_at_file: float = np.inf) -> Finished:
    """Run an operation in a process of its own, and kill it at some time or at some temporary file.

    The time is in seconds from the start of the operation.
    """
    context = server()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, folder, sender))
    process.start()
    sender.close()
    status, digest, seen = "killed", "", set()
    try:
        receiver.recv()  # the operation begins
        start = time.perf_counter()
        while not receiver.poll(5e-4):
            seconds = time.perf_counter() - start
            seen |= {file for file in _files(folder) if file.name.endswith(".part")}
            if seconds > kill_after or len(seen) >= kill_at_file:
                process.kill()
                break
            if seconds > _LIMIT:
                process.kill()
                raise TimeoutError(f"{name} takes more than {_LIMIT:g} s.")
        status, digest = receiver.recv()
    except EOFError:  # killed before it was done
        pass
    process.join()
    return Finished(status, digest, time.perf_counter() - start, len(seen))


def _work(name: str, folder: Path, sender: Any) -> None:
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder.mkdir(parents=True, exist_ok=True)
    sender.send("begins")
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            result = OPERATIONS[name][0](folder)
    except (ValueError, TypeError, OSError, RuntimeError):
        sender.send(("refused", traceback.format_exc()))
    else:
        sender.send(("done", _digest(result)))


def _digest(result: Any) -> str:
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, list | tuple):
            for each in value:
                add(each)
        elif isinstance(value, dict):
            for key in sorted(value):
                add(key)
                add(value[key])
        elif isinstance(value, np.ndarray) and value.dtype != object:
            digest.update(f"{value.dtype}:{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            digest.update(repr(value.tolist() if isinstance(value, np.ndarray) else value).encode())

    add(result)
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders; a temporary folder counts as one file."""
    with contextlib.suppress(FileNotFoundError):  # a folder may be replaced meanwhile
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False) and not entry.name.endswith(".part"):
                yield from _files(Path(entry.path))
            else:
                yield Path(entry.path)


# Kills


def kill_and_resume(name: str, n_kills: int, rng: np.random.Generator, work: Path) -> dict[str, Any]:
    """Kill runs of an operation and count the outcomes of resuming them."""
    whole = run(name, work / "whole")
    if whole.status != "done":
        raise RuntimeError(f"{name} failed without a kill: {whole.digest}")
    names = {str(file.relative_to(work / "whole")) for file in _files(work / "whole")}
    row = {"operation": name, "kills": 0, "to the bit": 0, "refused": 0, "different": 0, "files left": 0}
    attempt = 0
    while row["kills"] < n_kills:
        attempt += 1
        folder = work / f"again-{attempt}"
        if row["kills"] % 2 and whole.n_temporary:
            when = {"kill_at_file": float(rng.integers(1, whole.n_temporary + 1))}
        else:
            when = {"kill_after": float(rng.uniform(0, whole.seconds))}
        if run(name, folder, **when).status != "killed":  # the operation ended first
            if attempt > 20 * n_kills:
                raise RuntimeError(f"{name} ends before it can be killed.")
            continue
        again = run(name, folder)
        row["kills"] += 1
        row["to the bit"] += again.digest == whole.digest
        row["refused"] += again.status == "refused"
        row["different"] += again.status == "done" and again.digest != whole.digest
        row["files left"] += len({str(file.relative_to(folder)) for file in _files(folder)} - names)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="approximate number for all operations together")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    rows = []
    for name in options.operations:
        n_kills = max(round(OPERATIONS[name][1] * options.kills / 100), 1)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(kill_and_resume(name, n_kills, rng, Path(folder)))
    table = pd.DataFrame(rows)
    table.loc[len(table)] = ["all", *table.iloc[:, 1:].sum()]
    print("$ python benchmarks/kills.py")
    print(table.to_string(index=False))


if __name__ == "__main__":
    import kills  # so that the server of processes finds the functions by name

    kills.main()
