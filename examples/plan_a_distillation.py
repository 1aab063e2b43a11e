"""
Plan a distillation
===================

How low can a student of a given width get? This example goes from a teacher to the answer, on real text and
without downloads::

    python examples/plan_a_distillation.py

It takes the language model embedded in the library. Other causal language models of ``transformers`` are measured in
the same way; :doc:`/how_to/supported_models` lists those that were tried::

    python examples/plan_a_distillation.py --model NAME_OR_PATH --layer 12 --text corpus/*.txt

Floors come in two units: squared activation of the teacher's hidden space, and nats per token. The latter is the
teacher's loss without the features that a student drops. They depend on the dictionary of features, so that a band over
four dictionaries stands beside them. Two quick students turn floors into forecasts with
intervals; ``--no-distill`` skips this step. The plan, its figures and all intermediate results go to the folder
``plan``. If the command is stopped at any point, the same command continues from there to the same result.
"""

# %%
# The choices
# -----------
import argparse
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd

from geofloor import (
    AblationPredictor,
    ActivationExtractor,
    BottleneckPredictor,
    FeatureStatistics,
    FloorPredictor,
    LossForecaster,
    SparseAutoencoder,
)
from geofloor.datasets import load_local_corpus, load_teacher
from geofloor.displays import FloorBandDisplay, FloorDisplay, ForecastDisplay, SpectrumDisplay
from geofloor.forecasting import Calibrated
from geofloor.language_models import measure_band, token_blocks
from geofloor.students import distill_widths, student_config


def count_or_auto(text):
    return text if text == "auto" else int(text)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description="Predict the loss floor of students of a teacher.")
    parser.add_argument("--model", help="name or folder of a transformers model; by default the embedded teacher")
    parser.add_argument("--model-kwargs", type=json.loads, default={}, help='JSON, such as {"gguf_file": "x.gguf"}')
    parser.add_argument("--layer", type=int, help="block, from 0, after which to measure; by default the middle one")
    parser.add_argument("--text", type=Path, nargs="+", help="text files; by default Python source on this machine")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens to measure on")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--expansion", type=count_or_auto, default="auto", help="latents per dimension of the teacher")
    parser.add_argument(
        "--epochs", type=count_or_auto, default="auto", help="passes of the sparse autoencoder over the tokens"
    )
    parser.add_argument("--widths", type=int, nargs="+", help="student widths; by default fractions of the teacher's")
    parser.add_argument("--target", type=float, default=0.1, help="floor to reach, as a share of the floor at width 0")
    parser.add_argument("--allocation", default="auto", help="of the second floor: auto, waterfilling or blocks")
    parser.add_argument("--no-distill", action="store_true", help="forecast nothing: train no students")
    parser.add_argument(
        "--distill-widths", type=int, nargs=2, help="by default a quarter of the teacher's, and three quarters"
    )
    parser.add_argument("--distill-init", default="auto", help="how students start: principal or random")
    parser.add_argument(
        "--distill-steps",
        type=int,
        nargs="+",
        default=[150, 300, 600],
        help="one budget, or several for longer training",
    )
    parser.add_argument("--distill-batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--target-kl", type=float, default=0.25, help="loss to reach, in nats per token")
    parser.add_argument("--output", type=Path, default=Path("plan"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


# %%
# Teacher and text → activations
# ------------------------------
# The residual stream after one block goes to a store on disk, for every token except the first of each sequence.
# One sequence in twenty is held out to score the autoencoder.


class Measured(NamedTuple):
    path: object  # of the teacher
    layer: int
    train: object  # activations, on disk
    test: np.ndarray
    tokens: np.ndarray  # for students
    held_out: np.ndarray  # tokens


def distilled_widths(options, own):
    return options.distill_widths or [max(own // 4, 1), max(3 * own // 4, 2)]


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
    if not options.no_distill:  # a teacher without students is refused here, not after hours
        for width in distilled_widths(options, extractor.model_.config.get_text_config().hidden_size):
            student_config(extractor.model_.config, width)
    n_blocks = -(-options.tokens // (options.length - 1))
    n_distilled = 0 if options.no_distill else max(options.distill_steps) * options.distill_batch
    tokens = token_blocks(texts, extractor.tokenizer_, length=options.length, max_blocks=n_blocks + n_distilled)
    measured, more = tokens[:n_blocks], tokens[n_blocks:]
    held_out = max(len(measured) // 20, 2)
    train = extractor.transform_to_store(measured[:-held_out], options.output / "activations")
    test = extractor.transform_to_store(measured[-held_out:], options.output / "activations-held-out")
    print(f"teacher: {extractor.n_layers_} blocks of width {train.shape[1]}, measured after block {layer}")
    print(f"activations: {len(train):,} tokens, and {len(test):,} held out")
    return Measured(
        path, layer, train, np.asarray(test), np.concatenate([more, measured[:-held_out]]), measured[-held_out:]
    )


# %%
# Activations → features
# ----------------------
# A sparse autoencoder finds the directions. Statistics of its codes give the firing rate and the importance of each.
# Everything below stands on this dictionary. What it is worth is measured in the teacher: the loss with reconstructed
# activations, and the share of an ablation's loss that the reconstruction recovers.


def learn(options, train):
    sae = SparseAutoencoder(
        expansion=options.expansion,
        n_epochs=options.epochs,
        checkpoint_path=options.output / "sae.checkpoint",
        random_state=options.seed,
        verbose=1,
    ).fit(train)
    sae.save(options.output / "sae.safetensors")
    return sae


# %%
# One dictionary → several
# ------------------------
# The sparsity of a dictionary is a choice, and floors follow it. Three more dictionaries are trained for a third of the
# steps: with half and with one and a half times the codes per token, and with another seed. The band between the lowest
# and the highest floor says how far a floor depends on the dictionary. Each is judged in the teacher, too.


def measure(options, source, sae, widths):
    epochs = max(round(sae.n_tokens_seen_ / len(source.train) / 3), 1)
    others = [
        SparseAutoencoder(
            sae.n_latents_,
            l0=l0,
            n_epochs=epochs,
            checkpoint_path=options.output / f"sae-l0-{l0}-seed-{seed}.checkpoint",
            random_state=seed,
            verbose=1,
        )
        for l0, seed in (
            (max(sae.l0_ // 2, 1), options.seed),
            (min(3 * sae.l0_ // 2, sae.n_latents_), options.seed),
            (sae.l0_, options.seed + 1),
        )
    ]
    return measure_band(
        [sae, *others],
        source.train,
        widths,
        held_out=source.test,
        statistics=FeatureStatistics(level=0.95),
        teacher=source.path,
        layer=source.layer,
        tokens=source.held_out,
        model_kwargs=options.model_kwargs,
        batch_size=16,
        verbose=1,
    )


# %%
# Features → floor
# ----------------
# Eq. 2 keeps a feature whole or drops it. The second floor in hidden-space units is for students with dimensions
# shared among features, such as those with one ReLU layer; ``allocation`` selects it. For the floor in nats per token,
# the features dropped by Eq. 2 are removed from the teacher itself.


def choose_widths(options, source):
    if options.widths is not None:
        return options.widths
    own = source.test.shape[1]
    return sorted({max(round(share * own), 1) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)})


def predict(options, source, band):
    sae, statistics, floor, report = (
        each[0] for each in (band.autoencoders, band.statistics, band.predictors, band.reports)
    )
    shared = FloorPredictor(allocation=options.allocation).fit(statistics.table_)
    nats = AblationPredictor(
        source.path, source.layer, sae, statistics, model_kwargs=options.model_kwargs, batch_size=16, verbose=1
    ).fit(source.held_out)
    total = float(floor.predict([0])[0])
    widths = [int(width) for width in band.widths]
    floors = floor.predict(widths)
    lowest, highest = band.floor_range().T
    table = pd.DataFrame(
        {
            "width": widths,
            "kept": floor.kept_features(widths),
            "dropped": floor.n_features_ - floor.kept_features(widths),
            "floor": floors,
            "lowest": lowest,
            "highest": highest,
            options.allocation: shared.predict(widths),
            "share_of_total": floors / total,
            "nats": nats.predict(widths),
        }
    )
    return (
        nats,
        {
            "explained_variance": float(band.explained_variance[0]),
            "kl_div_with_sae": report.kl_div_with_sae,
            "kl_div_with_sae_error": report.kl_div_with_sae_error,
            "kl_div_score": report.kl_div_score,
            "kl_div_score_above_mean": report.kl_div_score_above_mean,
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
            "dictionaries": band.frame(relative=True).to_dict("list"),
        },
    )


# %%
# Floor → forecast
# ----------------
# Students of two widths, trained in one pass over the data, give two forecasts for the others. The first is a law above
# the softmax bottleneck, the loss of the best logits of a student's rank. The bottleneck is measured on the teacher
# alone, and no training gets below it. The second is the floor in nats, calibrated. The first law has done best on
# small language models; where the two differ, trust neither far.
#
# The students start from the teacher, in the principal directions of its residual stream. After so few steps they are
# far below students from random weights, and at the teacher's own width they lose nothing. Forecasts are for students
# trained like the longest of these. Longer training would still lower their loss: each width is trained for several
# numbers of steps, each to the end of its schedule, and the trend over these forecasts more steps.


def forecast(options, source, nats, result):
    widths = distilled_widths(options, source.test.shape[1])
    students = distill_widths(
        str(source.path),
        source.tokens,
        widths,
        eval_tokens=source.held_out,
        model_kwargs=options.model_kwargs,
        budgets=sorted(options.distill_steps),
        batch_size=options.distill_batch,
        init=options.distill_init,
        checkpoint_dir=options.output / "students",
        checkpoint_every=50,
        random_state=options.seed,
        verbose=1,
    )
    planned = result["students"]["width"]
    bound = BottleneckPredictor(
        source.path,
        widths=sorted({*planned, *widths}),
        n_positions=2048,
        model_kwargs=options.model_kwargs,
        random_state=options.seed,
        verbose=1,
    ).fit(source.held_out)
    zero_width = bound.zero_width_loss_
    longest = max(options.distill_steps)
    # After too few steps a student is no better than none at all.
    untrained = {each.n_steps_ for each in students if each.floor_ >= zero_width}
    usable = [each for each in students if each.n_steps_ not in untrained]
    if longest in untrained:
        forecaster, usable = LossForecaster(), [each for each in students if each.n_steps_ == longest]
    elif max(widths) < bound.rank_:
        forecaster = LossForecaster(bound=bound, students=students[0].init_)
    else:
        forecaster = LossForecaster(zero_width_loss=zero_width, students=students[0].init_)
    forecaster.fit(
        [each.width for each in usable],
        [each.floor_ for each in usable],
        n_steps=[each.n_steps_ for each in usable],
        n_tokens=options.distill_batch * options.length,
    )
    calibrated = LossForecaster(Calibrated(nats)).fit(forecaster.widths_, forecaster.losses_)
    losses, interval = forecaster.predict(planned, return_interval=True)
    result["students"] |= {"forecast": losses.tolist(), "low": interval[:, 0].tolist(), "high": interval[:, 1].tolist()}
    if forecaster.budgets_ is not None:
        result["students"]["2x steps"] = forecaster.predict(planned, n_steps=2 * longest).tolist()
    decisions = [forecaster.decide(width, options.target_kl) for width in planned]
    least, ends = bound.predict(planned, return_bounds=True)
    result["students"] |= {"bottleneck": least.tolist(), "least": ends[:, 0].tolist()}
    result["students"]["calibrated"] = calibrated.predict(planned).tolist()
    result["students"]["answer"] = [decision.answer for decision in decisions]
    result["runs"] = [
        {"width": each.width, "n_steps": each.n_steps_, "floor": each.floor_, "floor_error": each.floor_error_}
        for each in students
    ]
    result["budget"] = decisions[0].budget
    result["zero_width_loss"] = zero_width
    result["law"] = forecaster.law_.describe(forecaster.params_)
    result["calibration"] = calibrated.params_
    result["decision"] = str(decisions[len(decisions) // 2])
    return forecaster


def show(result):
    low, high = result["tail_exponent_interval"]
    print(
        f"autoencoder: explains {result['explained_variance']:.1%} of held-out variance with "
        f"L0 = {result['mean_l0']:.1f} features per token\n"
        f"reconstruction in the teacher: KL = {result['kl_div_with_sae']:.3f} ± {result['kl_div_with_sae_error']:.3f} "
        f"nats per token; KL recovered: {result['kl_div_score_above_mean']:.1%} of mean ablation, "
        f"{result['kl_div_score']:.1%} of zero ablation\n"
        f"features: F = {result['n_features']:,}, sparsity alpha = {result['alpha']:.4f}, "
        f"capacity g = {result['capacity']:.2f} per dimension, critical width d* = {result['critical_width']:.1f} "
        f"(L0 = {result['mean_l0']:.1f}, EV = {result['explained_variance']:.1%})\n"
        f"importances: power-law tail, exponent {result['tail_exponent']:.2f} ({low:.2f} to {high:.2f})\n\n"
        "Other dictionaries of the same activations, the first being the one above, with the share of the KL of mean\n"
        "ablation that each recovers, and its floors as shares of the variance of the activations:\n"
    )
    band = pd.DataFrame(result["dictionaries"])
    shares = {name: name.replace("share_", "at ") for name in band if name.startswith("share_")}
    columns = {"n_latents": "latents", "seed": "seed", "l0": "L0", "explained_variance": "EV"}
    columns |= {"kl_recovered": "recovered", "n_features": "F", "critical_width": "d*", **shares}
    print(
        band[list(columns)]
        .rename(columns=columns)
        .to_string(index=False, float_format="{:.3f}".format, formatters=dict.fromkeys(("L0", "d*"), "{:.1f}".format))
    )
    low, high = band["critical_width"].min(), band["critical_width"].max()
    print(
        f"\nOver these dictionaries d* runs from {low:.1f} to {high:.1f}.\n\n"
        "Predicted floors: in squared activation of the teacher's hidden space (Eq. 2, with its lowest and highest\n"
        "over these dictionaries; beside it, of students that share dimensions among features), and in nats per\n"
        "token, the teacher's loss without the dropped features:\n"
    )
    table = pd.DataFrame(result["students"])
    predicted = table.loc[:, :"nats"]
    print(predicted.to_string(index=False, float_format="{:.4g}".format))
    print(f"\nThe smallest width whose floor is at most {result['target']:.0%} of the total: {result['min_width']}")
    if "runs" in result:
        print("\nDistilled, nats per token:")
        for run in result["runs"]:
            print(f"width {run['width']}, {run['n_steps']:,} steps: {run['floor']:.4f} ± {run['floor_error']:.4f}")
        print(
            f"law: loss = {result['law']}\n"
            + "calibration: loss = {slope:.3g} x nats {baseline:+.3g}\n\n".format(**result["calibration"])
            + f"Forecast {result['budget']}, trained like these students, in nats per token: the law\n"
            "with its 90% interval and its answer, the loss after twice the steps by their trend, the least loss\n"
            "of any student of that width, and the calibrated floor:\n"
        )
        columns = ["width", "forecast", "low", "high", "answer", "2x steps", "least", "calibrated"]
        columns = [name for name in columns if name in table]
        print(table[columns].to_string(index=False, float_format="{:.3f}".format))
        print(f"\n{result['decision']}")


def draw(options, band, forecaster, widths):
    floor, statistics = band.predictors[0], band.statistics[0]
    up_to = np.arange(1, round(1.25 * max(widths)) + 1)
    displays = {
        "floor": FloorDisplay.from_predictor(floor, up_to),
        "band": FloorBandDisplay.from_band(band, up_to),
        "spectrum": SpectrumDisplay.from_statistics(
            statistics, widths=[widths[0], widths[len(widths) // 2], widths[-1]]
        ),
    }
    if forecaster is not None:
        at = np.arange(min(widths), max(widths) + 1)
        displays["forecast"] = ForecastDisplay.from_forecaster(forecaster, at, target=options.target_kl)
    for name, display in displays.items():
        display.figure_.savefig(options.output / f"{name}.png", dpi=150, bbox_inches="tight")
    return [str(options.output / f"{name}.png") for name in displays]


# %%
# The main job
# ------------


def main(arguments=None):
    options = parse_arguments(arguments)
    matplotlib.use("Agg")
    source = extract(options)
    band = measure(options, source, learn(options, source.train), choose_widths(options, source))
    nats, result = predict(options, source, band)
    forecaster = None if options.no_distill else forecast(options, source, nats, result)
    (options.output / "plan.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)
    figures = draw(options, band, forecaster, result["students"]["width"])
    print(f"Figures: {', '.join(figures)}")


if __name__ == "__main__":
    main()
