"""
The paper at its own scale
==========================

Everything that the paper does with Pythia-410M, by its own hyperparameters: sparse autoencoders after three blocks on
300M tokens of The Pile, the statistics of their features, students of five widths and a second seed of the narrowest,
calibration, forecasts and concept probes. And beside it what this library holds to be better: floors in nats, of the
teacher without the features that a student drops; what no student of a width gets below, by the rank of its logits; and
forecasts with intervals. First what it costs, which needs
neither a GPU nor a connection::

    python examples/reproduce_pythia_410m.py --dry-run --gpu h100
    pip install zstandard  # which The Pile's files are compressed with
    python examples/reproduce_pythia_410m.py --output pythia-410m

Several GPUs share the students, the longest step: ``accelerate launch examples/reproduce_pythia_410m.py``. Other
teachers, data and sizes are other arguments; ``--steps`` takes some of the steps. Every step leaves its results in the
output folder. Stopped at any point, the same command goes on from there to the same result.
"""

# %%
# The choices
# -----------
# Defaults are the paper's (Sections 5 to 7, Appendices C to E). It does not say from where it counts layers; here block
# 0 is the first, so that layer 12 is what ``transformers`` calls ``hidden_states[13]``. If the paper means
# ``hidden_states[12]``, use ``--layers 7 11 15 --probe-layer 11``. Nor does it say on how many tokens features were
# measured, whether the first position of a sequence counts (an attention sink, left out here: ``--skip-first 0`` keeps
# it), what text is evaluated on, or in which precision anything ran.
import argparse
import json
import os
import shutil
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import costs  # the script beside this one
import datasets
import numpy as np
import pandas as pd
import torch
from geofloor.distillation import distill_widths, zero_width_kl
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from transformers import AutoConfig, AutoTokenizer, GPTNeoXConfig

from geofloor import (
    AblationPredictor,
    ActivationExtractor,
    AffineCalibrator,
    BottleneckPredictor,
    ConceptProbe,
    DistilledStudent,
    FeatureStatistics,
    FloorPredictor,
    LossForecaster,
    PowerLawCalibrator,
    SparseAutoencoder,
)
from geofloor.datasets import pile_concepts
from geofloor.forecasting import forecast_table
from geofloor.language_models import token_blocks
from geofloor.probing import probe_table

PYTHIA_410M = "EleutherAI/pythia-410m"
PAPER = DistilledStudent.paper(PYTHIA_410M, 1024)  # for its settings
CONCEPTS = ["question", "french", "code", "sports", "legal", "medical"]
CURVES = ["step", "train_kl", "eval_kl", "learning_rate"]
# What each step reads of the others, and the arguments that its results depend on.
NEEDS = {
    "tokens": (),
    "sae": ("tokens",),
    "statistics": ("sae",),
    "bottleneck": ("tokens",),
    "students": ("tokens",),
    "calibration": ("statistics", "students"),
    "probes": ("students",),
}
DEPENDS = {
    "tokens": "model dataset split text_column length",
    "sae": "layers expansion l1_coefficient sae_learning_rate sae_tokens sae_length sae_batch skip_first "
    "eval_sequences forward_batch precision seed",
    "statistics": "statistics_tokens widths temperature ablation_sequences ablation_points",
    "bottleneck": "widths temperature bottleneck_positions eval_sequences forward_batch precision seed",
    "students": "widths repeat_widths temperature n_steps batch_size optimizer learning_rate weight_decay warmup_steps "
    "gradient_accumulation eval_sequences eval_every precision seed",
    "calibration": "",
    "probes": "probe_layer probe_widths concepts n_per_class max_characters probe_rows skip_first forward_batch seed",
}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Reproduce the paper's experiments on a language model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=PYTHIA_410M, help="name or folder of the teacher")
    add("--dataset", default="monology/pile-uncopyrighted", help="name, folder or .jsonl or .parquet file, streamed")
    add("--split", default="train")
    add("--text-column", default="text", help="the probes need 'text' and 'meta' with 'pile_set_name'")
    add("--output", type=Path, default=Path("pythia-410m"))
    add("--steps", nargs="+", choices=list(NEEDS), default=list(NEEDS))
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="tf32", help="of products of matrices on a GPU")
    add("--forward-batch", type=int, default=32, help="sequences a forward pass that gives activations")

    add("--layers", type=int, nargs="+", default=[8, 12, 16], help="blocks, from 0, after which to measure")
    add("--expansion", type=int, default=32, help="latents per dimension of the teacher")
    add("--l1-coefficient", type=float, default=8e-4)
    add("--sae-learning-rate", type=float, default=3e-4)
    add("--sae-tokens", type=int, default=300_000_000)
    add("--sae-length", type=int, default=1024, help="tokens a sequence; a multiple of --length")
    add("--sae-batch", type=int, default=32 * 1024, help="tokens a step")
    add("--sae-checkpoint-every", type=int, default=500, help="steps")
    add("--skip-first", type=int, default=1, help="positions left out at the start of each sequence")
    add("--statistics-tokens", type=int, default=10_000_000, help="held out, to measure the features on")
    add("--ablation-sequences", type=int, default=128, help="held out, of --length, to measure the teacher's loss on")
    add("--ablation-points", type=int, default=24, help="numbers of features, between which floors are interpolated")
    add("--bottleneck-positions", type=int, default=16_384, help="held out, to fit logits of low rank to")

    add("--widths", type=int, nargs="+", default=[128, 256, 512, 768, 1024])
    add("--repeat-widths", type=int, nargs="*", default=[128], help="widths trained with a second seed as well")
    add("--length", type=int, default=512, help="tokens a sequence")
    add("--batch-size", type=int, default=PAPER.batch_size, help="sequences a step")
    add("--n-steps", type=int, default=PAPER.n_steps)
    add("--learning-rate", type=float, default=PAPER.learning_rate)
    add("--optimizer", choices=("adamw", "muon"), default=PAPER.optimizer, help="of the students")
    add("--weight-decay", type=float, default=PAPER.weight_decay)
    add("--warmup-steps", type=int, default=PAPER.warmup_steps)
    add("--temperature", type=float, default=PAPER.temperature)
    add("--eval-every", type=int, default=PAPER.eval_every, help="steps")
    add("--eval-sequences", type=int, default=256, help="held out")
    add("--checkpoint-every", type=int, default=500, help="steps")
    add("--gradient-accumulation", type=int, default=1, help="parts of a batch, to save memory")

    add("--probe-layer", type=int, default=12)
    add("--probe-widths", type=int, nargs="*", default=[128, 768, 1024])
    add("--concepts", nargs="+", choices=CONCEPTS, default=CONCEPTS)
    add("--n-per-class", type=int, default=2000)
    add("--max-characters", type=int, default=1500, help="of a text that is probed")
    add("--probe-rows", type=int, help="rows of the dataset to search for concepts, at most; by default all")

    add("--dry-run", action="store_true", help="print what it costs, and stop")
    add("--gpu", choices=list(costs.GPUS), default="h100", help="for the costs")
    add("--utilisation", type=float, default=0.3, help="share of the GPU's peak that is reached, for the costs")
    return parser.parse_args(arguments)


def configuration(model):
    """Of the teacher; the paper's is known without a connection."""
    if model != PYTHIA_410M:
        return AutoConfig.from_pretrained(model)
    return GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=2048,
        rotary_pct=0.25,
    )


class Plan(NamedTuple):
    """How many blocks of tokens go where: evaluation first, then one part for autoencoders and one for statistics.

    The students train on all but the evaluation's, the others' among them.
    """

    n_sae: int  # sequences of the autoencoder's length
    n_statistics: int
    n_blocks: int  # blocks of the students' length, in all
    sae_steps: int
    students: list  # (width, seed)
    token_bytes: int


def make_plan(options, config):
    """Refuse what does not fit before anything starts."""
    positions = getattr(config, "max_position_embeddings", None) or options.sae_length
    wrong = {
        "--sae-length": options.sae_length % options.length or max(options.sae_length, options.length) > positions,
        "--layers": not all(0 <= layer < config.num_hidden_layers for layer in options.layers),
        "--probe-layer": not 0 <= options.probe_layer < config.num_hidden_layers,
        "--widths": len(set(options.widths)) < 4,
        "--repeat-widths": not set(options.repeat_widths) <= set(options.widths),
        "--probe-widths": not set(options.probe_widths) <= set(options.widths),
        "--warmup-steps": options.warmup_steps >= options.n_steps,
        "--skip-first": not 0 <= options.skip_first < min(options.sae_length, options.length),
        "--ablation-sequences": options.ablation_sequences < 1,
        "--bottleneck-positions": options.bottleneck_positions < 2,
    }
    if any(wrong.values()):
        raise SystemExit(
            f"{', '.join(name for name in wrong if wrong[name])}: out of range. --sae-length is a multiple of --length "
            f"and at most the teacher's {positions} positions; its blocks are 0 to {config.num_hidden_layers - 1}; at "
            "least four --widths differ, and other widths are some of them; --warmup-steps is below --n-steps; the "
            "ablation takes a sequence or more, the bottleneck two positions."
        )
    rows = options.sae_length - options.skip_first
    n_sae, n_statistics = (-(-n // rows) for n in (options.sae_tokens, options.statistics_tokens))
    measured = (n_sae + n_statistics) * (options.sae_length // options.length)
    widths = sorted(set(options.widths))
    return Plan(
        n_sae,
        n_statistics,
        options.eval_sequences + max(measured, options.n_steps * options.batch_size),
        max(n_sae * rows // options.sae_batch, 1),
        [(w, options.seed) for w in widths] + [(w, options.seed + 1) for w in sorted(set(options.repeat_widths))],
        2 if config.vocab_size <= 2**16 else 4,
    )


# %%
# Text → tokens
# -------------
# The dataset is streamed, and tokens go to one file on disk: blocks of the students' length, of which the autoencoders
# take several in a row as one sequence.


def open_dataset(options):
    path = Path(options.dataset)
    kind = {".jsonl": "json", ".json": "json", ".zst": "json", ".gz": "json", ".parquet": "parquet"}.get(path.suffix)
    if path.is_file() and kind:
        return datasets.load_dataset(kind, data_files={options.split: str(path)}, split=options.split, streaming=True)
    return datasets.load_dataset(options.dataset, split=options.split, streaming=True)


def tokens(options, plan):
    found = token_blocks(
        open_dataset(options),
        AutoTokenizer.from_pretrained(options.model),
        length=options.length,
        max_blocks=plan.n_blocks,
        path=options.output / "tokens.npy",
        text_column=options.text_column,
    )
    trained = plan.n_blocks - options.eval_sequences
    print(f"tokens: {found.size:,} in {len(found):,} blocks")
    if len(found) < plan.n_blocks:
        print(
            f"the dataset ends there: {trained:,} blocks were asked for, beside {options.eval_sequences} to evaluate on"
        )


def blocks_of(options, plan, part):
    """Blocks of one part of the tokens, of the length that its users take."""
    blocks = np.load(options.output / "tokens.npy", mmap_mode="r")
    if part == "evaluation":
        return blocks[: options.eval_sequences]
    blocks = blocks[options.eval_sequences :]
    if part == "students":
        return blocks
    ratio = options.sae_length // options.length
    start, stop = {"sae": (0, plan.n_sae), "statistics": (plan.n_sae, plan.n_sae + plan.n_statistics)}[part]
    if len(blocks) < stop * ratio:
        raise SystemExit(
            f"The dataset has {len(blocks) * options.length:,} tokens beside those to evaluate on; autoencoders and "
            f"statistics need {stop * options.sae_length:,}: lower --sae-tokens or --statistics-tokens."
        )
    return blocks[start * ratio : stop * ratio].reshape(-1, options.sae_length)


# %%
# Tokens → features
# -----------------
# 300M activations of 1,024 dimensions would take 1.2 TB: they are made as they are needed, and the stream begins where
# the autoencoder's checkpoint left off.


SAMPLE_ROWS = 65_536  # at the start of a stream, which the autoencoder looks at


class Activations:
    """Activations of blocks in a given order, piece by piece, from some row on.

    What comes before is not computed: the autoencoder counts those rows and does not look at them, except at the first
    65,536, by which it knows the data again.
    """

    def __init__(self, extractor, blocks, order, n_together, first_row=0):
        self.extractor, self.blocks, self.order, self.n_together = extractor, blocks, order, n_together
        self.first_row = first_row

    def __iter__(self):
        rows = self.blocks.shape[1] - self.extractor.skip_first
        for start in range(0, len(self.order), self.n_together):
            chosen = self.order[start : start + self.n_together]
            if start * rows > SAMPLE_ROWS and (start + len(chosen)) * rows <= self.first_row:
                yield np.zeros((len(chosen) * rows, self.width), dtype=np.float32)
                continue
            activations = self.extractor.transform(self.blocks[chosen])
            self.width = activations.shape[1]
            yield activations


def dtype_of(options):
    return "bfloat16" if options.precision == "bf16" else "float32"


def extractor_of(options, model, layer, **settings):
    settings.setdefault("max_length", options.sae_length)
    if isinstance(model, str):
        settings |= {"device": options.device, "dtype": dtype_of(options)}
    return ActivationExtractor(
        model, layer, skip_first=options.skip_first, batch_size=options.forward_batch, **settings
    )


def together(options):
    """Sequences whose tokens make about one step."""
    return max(options.sae_batch // (options.sae_length - options.skip_first), 1)


def steps_done(checkpoint):
    """Steps of an autoencoder that its checkpoint holds."""
    try:
        with safe_open(checkpoint, framework="numpy") as file:
            return json.loads(file.metadata()["geofloor"])["metadata"]["step"]
    except (OSError, SafetensorError):  # there is none, or one that `fit` will refuse by name
        return 0


def sae(options, plan):
    blocks = blocks_of(options, plan, "sae")
    order = np.random.default_rng(options.seed).permutation(len(blocks))
    extractor = extractor_of(options, options.model, options.layers[0])
    for layer in options.layers:
        path = options.output / f"sae-layer-{layer}.safetensors"
        checkpoint = options.output / "autoencoders" / f"layer-{layer}.safetensors"
        if not path.exists():
            extractor.set_params(layer=layer)
            first_row = steps_done(checkpoint) * options.sae_batch
            autoencoder = SparseAutoencoder.paper(
                expansion=options.expansion,
                l1_coefficient=options.l1_coefficient,
                learning_rate=options.sae_learning_rate,
                batch_size=options.sae_batch,
                checkpoint_path=checkpoint,
                checkpoint_every=options.sae_checkpoint_every,
                random_state=options.seed,
                device=options.device,
                verbose=1,
            ).fit(Activations(extractor, blocks, order, together(options), first_row))
            autoencoder.save(path)
            last = autoencoder.history_[-1]
            print(f"layer {layer}: {autoencoder.n_tokens_seen_:,} tokens, L0 {last['l0']:.1f}, {last['dead']:.1%} dead")
        shutil.rmtree(checkpoint.parent, ignore_errors=True)  # with what a killed process left there


def statistics(options, plan):
    """Tables 1 and 2, and the same floors in nats."""
    blocks = blocks_of(options, plan, "statistics")
    extractor = extractor_of(options, options.model, options.layers[0])
    layers, predicted = [], []
    for layer in options.layers:
        autoencoder = SparseAutoencoder.load(options.output / f"sae-layer-{layer}.safetensors", device=options.device)
        activations = Activations(extractor.set_params(layer=layer), blocks, np.arange(len(blocks)), together(options))
        measured = FeatureStatistics().fit(autoencoder.transform(batch) for batch in activations)
        features = {"latent": measured.alive_, "table": measured.table_}
        write(options.output / f"features-layer-{layer}.safetensors", save(features))
        layers.append(
            {
                "layer": layer,
                "n_tokens": measured.n_tokens_,
                "explained_variance": autoencoder.score(np.concatenate(list(islice(activations, 2)))),
                "n_features": measured.n_alive_,
                "mean_l0": measured.mean_l0_,
                "alpha": measured.alpha_,
                "capacity": measured.capacity_,
                "critical_width": measured.critical_width_,
                "tail_exponent": measured.tail_exponent_,
            }
        )
        floor, widths = FloorPredictor().fit(measured.table_), sorted(set(options.widths))
        kept, floors = floor.kept_features(widths), floor.predict(widths)
        ablation = AblationPredictor(
            options.model,
            layer,
            autoencoder,
            measured,
            temperature=options.temperature,
            n_points=options.ablation_points,
            skip_first=options.skip_first,
            batch_size=options.forward_batch,
            teacher_kwargs={"dtype": dtype_of(options)},
            device=options.device,
            verbose=1,
        ).fit(blocks_of(options, plan, "evaluation")[: options.ablation_sequences])
        write_table(options.output / f"ablation-layer-{layer}.csv", ablation.curve_)
        predicted.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "width": widths,
                    "kept": kept,
                    "dropped": measured.n_alive_ - kept,
                    "floor": floors,
                    "normalized": floors / floors[0] if floors[0] else floors,
                    "nats": ablation.predict(widths),
                }
            )
        )
    write_table(options.output / "layers.csv", pd.DataFrame(layers))
    write_table(options.output / "predicted.csv", pd.concat(predicted))


# %%
# Tokens → bottleneck
# -------------------
# What the best logits of each student's rank lose: between ``low``, on the positions that they are fitted to, and
# ``high``, on others. No student ends below the first, however it is trained.


def bottleneck(options, plan):
    bound = BottleneckPredictor(
        options.model,
        temperature=options.temperature,
        widths=options.widths,
        n_positions=options.bottleneck_positions,
        n_steps=costs.BOTTLENECK_STEPS,
        batch_size=options.forward_batch,
        teacher_kwargs={"dtype": dtype_of(options)},
        device=options.device,
        random_state=options.seed,
        verbose=1,
    ).fit(blocks_of(options, plan, "evaluation"))
    write_table(options.output / "bottleneck.csv", bound.curve_)


# %%
# Tokens → students
# -----------------
# One forward pass of the teacher a batch for all of them.


def student_path(options, width, seed):
    return options.output / f"student-width-{width}-seed-{seed}.safetensors"


def students(options, plan, is_main=True):
    """Table 3, and the curves of Figures 6 and 16."""
    checkpoints = options.output / "distillation"
    fitted = distill_widths(
        options.model,
        blocks_of(options, plan, "students"),
        plan.students,
        eval_tokens=blocks_of(options, plan, "evaluation"),
        checkpoint_path=checkpoints,
        like=PAPER,
        temperature=options.temperature,
        n_steps=options.n_steps,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_steps,
        gradient_accumulation=options.gradient_accumulation,
        precision="bf16" if options.precision == "bf16" else None,
        eval_every=options.eval_every,
        eval_sequences=options.eval_sequences,
        checkpoint_every=options.checkpoint_every,
        device=options.device,
        verbose=1,
    )
    if not is_main:
        return
    zero_width = zero_width_kl(
        options.model,
        blocks_of(options, plan, "evaluation"),
        temperature=options.temperature,
        batch_size=options.batch_size,
        teacher_kwargs={"dtype": dtype_of(options)},
        device=options.device,
    )
    for student in fitted:
        student.save(student_path(options, student.width, student.random_state))
    results = [
        {
            "width": student.width,
            "seed": student.random_state,
            "n_parameters": student.n_parameters_,
            "kl": student.floor_,
            "standard_error": student.floor_error_,
            "raw_kl": student.floor_ * options.length * options.temperature**2,  # the paper's
            "remaining_fall": student.remaining_fall_,
            "converged": student.converged_,
            "zero_width_kl": zero_width,
        }
        for student in fitted
    ]
    curves = [
        {"width": student.width, "seed": student.random_state, **{name: row[name] for name in CURVES}}
        for student in fitted
        for row in student.history_
    ]
    write_table(options.output / "curves.csv", pd.DataFrame(curves))
    write_table(options.output / "students.csv", pd.DataFrame(results))
    shutil.rmtree(checkpoints, ignore_errors=True)


# %%
# Features and students → calibration
# -----------------------------------
# Eq. 3 with a free baseline, and with the loss of the widest student for one, as the paper has it; Eq. 4; the teacher
# without the features that a student drops; laws of the width; and how well each forecasts widths that it was not
# fitted to. Last, what two students, the widest and the narrowest, would have told of the others. The first seed of
# each width counts.


class Floors:
    """Predictor of floors that were written down, by width."""

    def __init__(self, floors):
        self.floors = floors

    def predict(self, widths):
        return self.floors.loc[widths].to_numpy()


def calibration(options, plan):
    """Tables 4 and 5, Eq. 4, and forecasts with their errors."""
    runs = pd.read_csv(options.output / "students.csv")
    first = runs[runs["seed"] == options.seed].sort_values("width")
    widths, observed = first["width"].to_numpy(), first["kl"].to_numpy()
    power_law = PowerLawCalibrator().fit(widths, observed)
    result = {
        "eq_4": {name: getattr(power_law, f"{name}_") for name in ("scale", "exponent", "offset", "r2")},
        "seeds": {
            str(width): float(np.ptp(group["kl"]) / group["kl"].mean())
            for width, group in runs.groupby("width")
            if len(group) > 1
        },
        "layers": {},
    }
    rivals = {
        "Eq. 4": PowerLawCalibrator(),
        "a + b/d": make_pipeline(FunctionTransformer(np.reciprocal), AffineCalibrator()),
        "a exp(-b d)": LossForecaster(),
    }
    zero_width = float(runs["zero_width_kl"].iloc[0])
    if observed.max() < zero_width:  # or students of these widths have learnt no more than none at all
        rivals["L0 (1 + d)^-c exp(-b d)"] = LossForecaster(zero_width_loss=zero_width)
    predicted = pd.read_csv(options.output / "predicted.csv").set_index("layer")
    decomposed = []
    for layer in options.layers:
        table = load_file(options.output / f"features-layer-{layer}.safetensors")["table"]
        floor = FloorPredictor().fit(table)
        floors = floor.predict(widths)
        fits = {"free": AffineCalibrator(), "fixed": AffineCalibrator(baseline=float(observed[-1]))}
        for fit in fits.values():
            fit.fit(floors, observed)
        result["layers"][str(layer)] = {
            name: {"slope": fit.slope_, "baseline": fit.baseline_, "r2": fit.r2_} for name, fit in fits.items()
        }
        split = fits["fixed"].decompose(floors, observed)
        decomposed.append(split.assign(layer=layer, width=widths))
        rivals[f"Eq. 3, layer {layer}"] = make_pipeline(FrozenEstimator(floor), AffineCalibrator())
        nats = predicted.loc[layer].set_index("width")["nats"]
        rivals[f"without features, layer {layer}"] = LossForecaster(Floors(nats))
    write(options.output / "calibration.json", json.dumps(result, indent=2))
    write_table(options.output / "decomposition.csv", pd.concat(decomposed))
    forecasts = forecast_table(rivals, widths.astype(float), observed)
    write_table(options.output / "forecasts.csv", forecasts.rename_axis("predictor").reset_index())
    from_two = []
    for name, rival in rivals.items():
        if isinstance(rival, LossForecaster):
            rival.fit(widths[[0, -1]], observed[[0, -1]])
            loss, interval = rival.predict(widths[1:-1], return_interval=True)
            low, high = interval.T
            columns = {"width": widths[1:-1], "observed": observed[1:-1], "forecast": loss, "low": low, "high": high}
            from_two.append(pd.DataFrame({"predictor": name, **columns}))
    write_table(options.output / "from-two-students.csv", pd.concat(from_two))


# %%
# Students → probes
# -----------------
# The texts come from the start of the dataset. French is rare in The Pile: finding 2,000 passages may take tens of
# millions of rows; ``--concepts`` can leave it out, and ``--probe-rows`` gives up in time.


def probes(options, plan):
    """Table 6."""
    path = options.output / "concepts.json"
    if not path.exists():
        found = pile_concepts(
            open_dataset(options),
            options.concepts,
            n_per_class=options.n_per_class,
            max_characters=options.max_characters,
            max_rows=options.probe_rows,
        )
        kept = {
            name: {"texts": each.texts, "labels": each.labels.tolist(), "groups": each.groups.tolist()}
            for name, each in found.items()
        }
        write(path, json.dumps(kept))
    concepts = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    states = {}
    for width in [None, *sorted(options.probe_widths, reverse=True)]:
        model = options.model
        if width is not None:
            file = student_path(options, width, options.seed)
            model = DistilledStudent.load(file, device=options.device).model_
        extractor = extractor_of(
            options, model, options.probe_layer, tokenizer=tokenizer, pooling="mean", max_length=options.length
        )
        states["teacher" if width is None else f"width {width}"] = {
            name: extractor.transform(concept["texts"]) for name, concept in concepts.items()
        }
    table = probe_table(states, concepts, reference="teacher", probe=ConceptProbe(random_state=options.seed))
    write_table(options.output / "probes.csv", table)


# %%
# Files
# -----


def write(path, content):
    """All of it or nothing."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    os.replace(partial, path)


def write_table(path, table):
    write(path, table.to_csv(index=False))
    print(f"{path}:\n{table.to_string(index=False, max_rows=20, float_format='{:.4g}'.format)}")


class Record:
    """Which steps were begun and finished in the output folder, and with what arguments."""

    def __init__(self, options, plan):
        self.path = options.output / "steps.json"
        self.steps = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        own = {step: {name: getattr(options, name) for name in DEPENDS[step].split()} for step in NEEDS}
        own["tokens"]["n_blocks"] = plan.n_blocks
        self.arguments = json.loads(json.dumps(own))

    def finished(self, step):
        return self.steps.get(step, {}).get("finished", False)

    def check(self, steps):
        """Refuse steps whose inputs are not there, or were made with other arguments."""
        for step in steps:
            begun = self.steps.get(step, {}).get("arguments", self.arguments[step])
            other = {name for name, value in self.arguments[step].items() if begun.get(name) != value}
            if other:
                raise SystemExit(
                    f"{self.path.parent} holds the step {step!r} with other values of {', '.join(sorted(other))}; use "
                    "those, or another --output."
                )
            missing = [need for need in NEEDS[step] if not self.finished(need) and need not in steps]
            if missing:
                raise SystemExit(f"The step {step!r} needs {', '.join(missing)}; add them to --steps.")
        before = {need for step in steps for need in NEEDS[step]} - set(steps)
        if before:
            self.check([step for step in NEEDS if step in before])

    def note(self, step, *, finished):
        self.steps[step] = {"finished": finished, "arguments": self.arguments[step]}
        write(self.path, json.dumps(self.steps, indent=2))


# %%
# The job
# -------
# Under ``accelerate launch`` the students are trained by all processes, and everything else by the first while the
# others wait, for days if need be.


def processes():
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))


def main(arguments=None):
    options = parse_arguments(arguments)
    config = configuration(options.model)
    plan = make_plan(options, config)
    state = None if options.dry_run else processes()
    is_main = state is None or state.is_main_process
    if is_main:
        by_step = costs.costs(options, config, plan)
        print(costs.table({step: by_step[step] for step in NEEDS if step in options.steps}, options), flush=True)
    if options.dry_run:
        return
    if options.precision != "fp32" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    options.output.mkdir(parents=True, exist_ok=True)
    record = Record(options, plan)
    chosen = [step for step in NEEDS if step in options.steps]
    record.check(chosen)
    if state is not None:
        state.wait_for_everyone()  # until all have read the record
    for step in chosen:
        if record.finished(step):
            if is_main:
                print(f"{step}: finished before", flush=True)
            continue
        if is_main:
            record.note(step, finished=False)
            print(f"{step} …", flush=True)
        if step == "students":
            students(options, plan, is_main)
        elif is_main:
            globals()[step](options, plan)
        if is_main:
            record.note(step, finished=True)
        if state is not None:
            state.wait_for_everyone()
    if state is not None:
        state.destroy_process_group()  # threads of gloo that are left at the end may abort a process


if __name__ == "__main__":
    main()
