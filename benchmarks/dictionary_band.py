"""Measure how floors and critical width move with sparsity, size, activation, seed and length of training.

Dictionaries of the embedded teacher's block 2, on 190,000 tokens of Python source, with 10,000 held out. One choice
is varied at a time, activations and sizes with the first seed only. A share is a floor over the variance of the
activations. Dense is the share of latents that fire on over 10% of tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _timing import machine

from geofloor import AblationPredictor, ActivationExtractor, SparseAutoencoder
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.language_models import FloorBand, measure_band, token_blocks

LAYER, WIDTHS = 2, [16, 32, 64, 96, 128]
SPARSITIES, EXPANSIONS = (8, 16, 32, 64, 128), (4, 8, 16, 32)
COLUMNS = {
    "activation": "activation",
    "n_latents": "latents",
    "seed": "seed",
    "epochs": "epochs",
    "l0": "L0",
    "explained_variance": "EV",
    "kl": "KL",
    "kl_recovered": "rec.",
    "dense": "dense",
    "n_features": "F",
    "critical_width": "d*",
    "closed": "L0 ln(F/L0)",
    "tail_exponent": "tail",
    "tail_low": "low",
    "tail_high": "high",
    "total": "total",
}


def make_grid(activations: list[str], seeds: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Return the settings of each comparison, by what it varies."""
    usual = {"activation": "topk", "expansion": 16, "l0": 32}
    small = {**usual, "expansion": 8}

    def of_seeds(*several: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**each, "random_state": seed} for each in several for seed in seeds]

    return {
        "sparsity": of_seeds(*({**usual, "l0": l0} for l0 in SPARSITIES)),
        "seed": of_seeds(usual),
        "length of training": of_seeds({**usual, "n_epochs": 3}, usual),
        "activation": [{**small, "activation": name, "random_state": seeds[0]} for name in activations],
        "expansion": [{**usual, "expansion": expansion, "random_state": seeds[0]} for expansion in EXPANSIONS],
    }


def describe(name: str, band: FloorBand, places: list[int]) -> None:
    """Print the dictionaries of one comparison, and the range of d* and of each floor."""
    floors, shares = band.floors()[places], band.floors(relative=True)[places]
    frame = band.frame(relative=True)
    frame["dense"] = [report.freq_over_10_percent for report in band.reports or ()]
    frame["epochs"] = [sae.n_epochs for sae in band.autoencoders]
    frame["closed"] = frame["l0"] * np.log(frame["n_features"] / frame["l0"])
    names = {**COLUMNS, **{f"share_{width}": f"at {width}" for width in WIDTHS}}
    table = frame.iloc[places][list(names)].rename(columns=names)
    formats = dict.fromkeys(("EV", "KL", "rec.", "dense"), "{:.3f}".format)
    formats |= {column: "{:.4f}".format for column in table.columns if column.startswith("at ")}
    formats |= dict.fromkeys(("d*", "L0", "L0 ln(F/L0)", "total"), "{:.1f}".format)
    formats |= dict.fromkeys(("tail", "low", "high"), "{:.2f}".format)
    print(f"## {name}\n\n{table.to_string(index=False, formatters=formats)}\n")
    low, high = band.critical_widths[places].min(), band.critical_widths[places].max()
    print(f"d* from {low:.1f} to {high:.1f}, a factor of {high / low:.2f}")
    for place, width in enumerate(WIDTHS):
        of_floor, of_share = floors[:, place], shares[:, place]
        print(
            f"width {width:>3}: floor from {of_floor.min():.2f} to {of_floor.max():.2f}, "
            f"share of the variance from {of_share.min():.4f} to {of_share.max():.4f}"
        )
    print(flush=True)


def compare_with_students(band: FloorBand, places: list[int], teacher: Any, tokens: np.ndarray) -> None:
    """Print floors in nats per token, of the ablated teacher, beside the losses of distilled students."""
    file = Path(__file__).parent / "results" / "distilled_floors_principal.json"
    runs = [run for run in json.loads(file.read_text())["runs"] if run["n_steps"] == 2000]
    columns = {f"at {run['width']}": run["floor"] for run in runs}
    widths = [run["width"] for run in runs]
    rows: list[dict[str, Any]] = []
    for place in places:
        nats = AblationPredictor(
            teacher.path, LAYER, band.autoencoders[place], band.statistics[place], batch_size=16
        ).fit(tokens)
        floors = nats.predict(widths)
        ratio = np.abs(np.log(np.maximum(floors, 1e-6) / np.array(list(columns.values()))))
        rows.append(
            {"L0": band.l0[place], "d*": band.critical_widths[place], **dict(zip(columns, floors, strict=True))}
        )
        rows[-1]["typical factor"] = float(np.exp(np.median(ratio)))
    rows.append({"L0": "students", **columns})
    print("## floors in nats per token, of the ablated teacher, beside students distilled for 2,000 steps\n")
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    print("typical factor: median over widths of the factor between the floor and the student\n")


def main() -> None:
    """Fit all dictionaries, and print one table per choice varied."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--activations", nargs="+", default=["topk", "relu"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--nats", action="store_true", help="also ablate the teacher, and compare with students")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="folder for checkpoints, so that the same command resumes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp()) if arguments.folder is None else arguments.folder
    folder.mkdir(exist_ok=True, parents=True)

    start = time.perf_counter()
    teacher = load_teacher()
    extractor = ActivationExtractor(teacher.path, LAYER, max_length=256, batch_size=32).fit()
    texts = (document.text for document in load_local_corpus("test"))
    n_blocks = -(-arguments.tokens // 255)
    tokens = token_blocks(texts, extractor.tokenizer_, length=256, max_blocks=n_blocks)
    train, held_out = tokens[: -(n_blocks // 20)], tokens[-(n_blocks // 20) :]
    X, test = extractor.transform(train), extractor.transform(held_out)

    grid = make_grid(arguments.activations, arguments.seeds)
    settings: list[dict[str, Any]] = []
    for each in (each for several in grid.values() for each in several):
        if each not in settings:
            settings.append(each)
    autoencoders = [
        SparseAutoencoder(
            **each,
            checkpoint_path=folder / "-".join(f"{name}_{value}" for name, value in each.items()),
            checkpoint_every=500,
        )
        for each in settings
    ]
    band = measure_band(
        autoencoders, X, WIDTHS, held_out=test, teacher=teacher.path, layer=LAYER, tokens=held_out, batch_size=16
    )
    print(machine())
    variance = float(test.var(axis=0, dtype=np.float64).sum())
    print(f"{len(X):,} tokens, {len(test):,} held out, with a variance of {variance:.1f} in squared activation\n")
    for name, several in grid.items():
        describe(name, band, [settings.index(each) for each in several])
    if arguments.nats:
        of_first_seed = [each for each in grid["sparsity"] if each["random_state"] == arguments.seeds[0]]
        compare_with_students(band, [settings.index(each) for each in of_first_seed], teacher, held_out)
    everything = pd.Series(band.critical_widths)
    print(f"all {len(everything)} dictionaries: d* from {everything.min():.1f} to {everything.max():.1f}")
    for condition in ({"share": 0.9}, {"share": 0.95}, {"share": 0.98}, {"kl": 0.2}, {"kl": 0.1}, {"kl": 0.05}):
        text = ", ".join(f"{name}={value}" for name, value in condition.items())
        try:
            chosen = band.choose(**condition)
        except ValueError as error:
            print(f"choose({text}): {error}")
        else:
            print(
                f"choose({text}): L0 = {band.l0[chosen]:.1f}, {band.autoencoders[chosen].n_latents_} latents, "
                f"EV {band.explained_variance[chosen]:.3f}, d* = {band.critical_widths[chosen]:.1f}"
            )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
