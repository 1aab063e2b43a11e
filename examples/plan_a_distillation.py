"""
Plan a distillation
===================

How low can a student of a given width get? From a teacher to the answer, on real text and with nothing
downloaded::

    python examples/plan_a_distillation.py

takes the language model that comes with the library; any other causal language model or encoder of
``transformers`` is measured in the same way::

    python examples/plan_a_distillation.py --model NAME_OR_PATH --layer 12 --text corpus/*.txt

The plan, its two figures and all intermediate results go to the folder ``plan``. Stopped at any point, the
same command goes on from there to the same result.
"""

# %%
# The choices
# -----------
import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from geofloor import ActivationExtractor, FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.displays import FloorDisplay, SpectrumDisplay
from geofloor.language_models import token_blocks


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description="Predict the loss floor of students of a teacher.")
    parser.add_argument("--model", help="name or folder of a transformers model; by default the embedded teacher")
    parser.add_argument("--model-kwargs", type=json.loads, default={}, help='JSON, such as {"gguf_file": "x.gguf"}')
    parser.add_argument("--layer", type=int, help="block, from 0, after which to measure; by default the middle one")
    parser.add_argument("--text", type=Path, nargs="+", help="text files; by default Python source on this machine")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens to measure on")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--expansion", type=int, default=32, help="latents per dimension of the teacher")
    parser.add_argument("--l1-coefficient", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=8, help="passes of the sparse autoencoder over the tokens")
    parser.add_argument("--widths", type=int, nargs="+", help="student widths; by default fractions of the teacher's")
    parser.add_argument("--target", type=float, default=0.1, help="floor to reach, as a share of the floor at width 0")
    parser.add_argument("--allocation", default="auto", help="of the second floor: auto, waterfilling or blocks")
    parser.add_argument("--output", type=Path, default=Path("plan"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


# %%
# Teacher and text → activations
# ------------------------------
# The residual stream after one block, for every token but the first of each sequence, goes to a store on
# disk. One block in twenty is held out to judge the autoencoder by.


def extract(options):
    if options.model is None:
        path, texts = load_teacher().path, (document.text for document in load_local_corpus("test"))
    else:
        path, texts = options.model, (document.text for document in load_local_corpus())
    if options.text is not None:
        texts = (file.read_text(encoding="utf-8") for file in options.text)
    extractor = ActivationExtractor(
        path, 0, max_length=options.length, batch_size=32, model_kwargs=options.model_kwargs, verbose=1
    ).fit()
    layer = extractor.n_layers_ // 2 if options.layer is None else options.layer
    extractor.set_params(layer=layer).fit()
    n_blocks = -(-options.tokens // (options.length - 1))
    tokens = token_blocks(texts, extractor.tokenizer_, length=options.length, max_blocks=n_blocks)
    held_out = max(len(tokens) // 20, 1)
    train = extractor.transform_to_store(tokens[:-held_out], options.output / "activations")
    test = extractor.transform_to_store(tokens[-held_out:], options.output / "activations-held-out")
    print(f"teacher: {extractor.n_layers_} blocks of width {train.shape[1]}, measured after block {layer}")
    print(f"activations: {len(train):,} tokens, and {len(test):,} held out")
    return train, np.asarray(test)


# %%
# Activations → features
# ----------------------
# A sparse autoencoder finds the directions, and statistics of its codes say how often each fires and how
# much it carries.


def measure(options, train):
    sae = SparseAutoencoder(
        expansion=options.expansion,
        l1_coefficient=options.l1_coefficient,
        normalization="mean_norm",
        learning_rate=3e-3,
        warmup_steps=50,
        decay_fraction=0.3,
        batch_size=1024,
        n_epochs=options.epochs,
        checkpoint_path=options.output / "sae.checkpoint",
        checkpoint_every=20,
        random_state=options.seed,
        verbose=1,
    ).fit(train)
    sae.save(options.output / "sae.safetensors")
    return sae, FeatureStatistics().fit(sae.transform(batch) for batch in train.iter_batches(8192))


# %%
# Features → floor
# ----------------
# Eq. 2 keeps features whole or drops them. The other floor is that of students that share dimensions among
# features, as those with one ReLU layer do: one word, ``allocation``, tells the two apart. For language models
# neither is settled: calibrate on distilled students before you trust a number.


def plan(options, sae, statistics, test):
    floor = FloorPredictor().fit(statistics.table_)
    shared = FloorPredictor(allocation=options.allocation).fit(statistics.table_)
    total = float(floor.predict([0])[0])
    widths = options.widths
    if widths is None:
        widths = sorted({max(round(share * test.shape[1]), 1) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)})
    floors = floor.predict(widths)
    table = pd.DataFrame(
        {
            "width": widths,
            "kept": floor.kept_features(widths),
            "dropped": floor.n_features_ - floor.kept_features(widths),
            "floor": floors,
            options.allocation: shared.predict(widths),
            "normalised": floors / floors[0] if floors[0] else floors,
            "share_of_total": floors / total,
        }
    )
    return floor, {
        "explained_variance": sae.score(test),
        "alpha": statistics.alpha_,
        "n_features": statistics.n_alive_,
        "mean_l0": statistics.mean_l0_,
        "capacity": floor.capacity_,
        "critical_width": floor.critical_width_,
        "tail_exponent": statistics.tail_exponent_,
        "tail_exponent_interval": statistics.tail_exponent_interval_,
        "target": options.target,
        "min_width": floor.min_width(options.target * total),
        "students": table.to_dict("list"),
    }


def show(result):
    low, high = result["tail_exponent_interval"]
    print(
        f"autoencoder: explains {result['explained_variance']:.1%} of held-out variance with "
        f"L0 = {result['mean_l0']:.1f} features a token\n"
        f"features: F = {result['n_features']:,}, sparsity alpha = {result['alpha']:.4f}, "
        f"capacity g = {result['capacity']:.2f} a dimension, critical width d* = {result['critical_width']:.1f}\n"
        f"importances: power-law tail, exponent {result['tail_exponent']:.2f} ({low:.2f} to {high:.2f})\n\n"
        "Predicted floors, in squared activation of the teacher's hidden space: Eq. 2 and, beside it, of students\n"
        "that share dimensions among features:\n"
    )
    table = pd.DataFrame(result["students"])
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print(f"\nThe smallest width whose floor is at most {result['target']:.0%} of the total: {result['min_width']}")


def draw(options, floor, statistics, widths):
    up_to = round(1.25 * max(widths))
    display = FloorDisplay.from_predictor(floor, np.arange(1, up_to + 1))
    display.figure_.savefig(options.output / "floor.png", dpi=150, bbox_inches="tight")
    display = SpectrumDisplay.from_statistics(statistics, widths=[widths[0], widths[len(widths) // 2], widths[-1]])
    display.figure_.savefig(options.output / "spectrum.png", dpi=150, bbox_inches="tight")


# %%
# The main job
# ------------


def main(arguments=None):
    options = parse_arguments(arguments)
    matplotlib.use("Agg")
    train, test = extract(options)
    sae, statistics = measure(options, train)
    floor, result = plan(options, sae, statistics, test)
    (options.output / "plan.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)
    draw(options, floor, statistics, result["students"]["width"])
    print(f"Figures: {options.output / 'floor.png'} and {options.output / 'spectrum.png'}")


if __name__ == "__main__":
    main()
