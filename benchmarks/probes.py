"""Probe students of the embedded teacher for concepts and single features (the paper's Experiment 4).

    geofloor plan && python benchmarks/probes.py --work distilled-work --plan plan

It needs the students of distilled_floors.py in `--work`. Concepts: the hidden states of each model after one block are
averaged over the tokens of an example and probed for nine concepts by five-fold cross-validation. The table goes to
results/probes.csv. Features: with the autoencoder of the main job (`--plan`), the activation of each feature is
predicted from the hidden states. Medians by rank of importance go to results/staircase.csv. Figures go to `--work`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from geofloor import (
    ActivationExtractor,
    ConceptProbe,
    DistilledStudent,
    FeatureStatistics,
    FloorPredictor,
    SparseAutoencoder,
)
from geofloor.datasets import load_concepts, load_teacher
from geofloor.displays import FeatureStaircaseDisplay, ProbeHeatmapDisplay
from geofloor.probing import feature_probes, probe_table

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with the students of distilled_floors.py")
    parser.add_argument("--n-steps", type=int, default=3000, help="number of training steps of the students to load")
    parser.add_argument("--plan", type=Path, help="folder of the main job, with its autoencoder of the same layer")
    parser.add_argument("--no-concepts", action="store_true", help="with --plan, probe features only")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "probes.csv")
    options = parser.parse_args()
    matplotlib.use("Agg")
    teacher = load_teacher()
    models = students(options, teacher)
    if not options.no_concepts:
        probe_concepts(options, teacher, models)
    if options.plan is not None:
        probe_features(options, teacher, models)


def students(options, teacher):
    """Load the teacher and its students, the widest first."""
    models = {}
    for path in options.work.glob(f"student-*-seed-0-steps-{options.n_steps}.safetensors"):
        student = DistilledStudent.load(path, teacher=teacher.model, device="cpu")
        models[f"width {student.width}"] = student.model_
    order = sorted(models, key=lambda name: -int(name.split()[1]))
    return {"teacher": teacher.model} | {name: models[name] for name in order}


def probe_concepts(options, teacher, models):
    concepts = load_concepts()
    states = {}
    for name, model in models.items():
        began = time.perf_counter()
        extractor = ActivationExtractor(
            model, options.layer, tokenizer=teacher.tokenizer, pooling="mean", max_length=128, batch_size=64
        ).fit()
        states[name] = {concept: extractor.transform(data.texts) for concept, data in concepts.items()}
        print(f"{name}: states in {time.perf_counter() - began:.0f} s", flush=True)
    table = probe_table(states, concepts, reference="teacher", probe=ConceptProbe(cv=5, level=0.95, random_state=0))
    with open(options.output, "w", encoding="utf-8") as file:
        file.write("# python benchmarks/probes.py\n")
        table.to_csv(file, index=False, float_format="%.4g")
    accuracy = table.pivot_table("accuracy", "concept", "model")[list(models)]
    print(accuracy.round(3).to_string())
    print(f"mean over concepts: {accuracy.mean().round(3).to_dict()}")
    for name in list(models)[1:]:
        rows = table[table.model == name]
        print(f"{name}: {int((rows.p_value < 0.05).sum())} of {len(rows)} concepts differ from the teacher at p < 0.05")
    display = ProbeHeatmapDisplay.from_table(table, reference="teacher")
    display.figure_.savefig(options.work / "probes.png", dpi=110, bbox_inches="tight")


def probe_features(options, teacher, models):
    sae = SparseAutoencoder.load(options.plan / "autoencoder.safetensors")
    tokens = np.load(options.work / "tokens-test.npy")[:250].astype(np.int64)
    states = {name: ActivationExtractor(model, options.layer).fit().transform(tokens) for name, model in models.items()}
    codes = sae.transform(states["teacher"])
    statistics = FeatureStatistics().fit(codes)
    groups = np.repeat(np.arange(len(tokens)), codes.shape[0] // len(tokens))
    table = feature_probes(states, codes, groups=groups, auc=True, random_state=0)
    table = table[table.n_test_firings >= 20]
    predictor = FloorPredictor().fit(statistics.table_)
    curves = []
    for score in ("r2", "auc"):
        display = FeatureStaircaseDisplay.from_table(
            table, score=score, predictor=predictor, n_bins=20, reference="teacher"
        )
        display.figure_.savefig(options.work / f"staircase-{score}.png", dpi=110, bbox_inches="tight")
        curves.append(display.curves.set_index(["model", "width", "rank"])[score])
    with open(options.output.with_name("staircase.csv"), "w", encoding="utf-8") as file:
        file.write("# python benchmarks/probes.py: median R2 and AUC of the features in bins of ranks\n")
        pd.concat(curves, axis=1).reset_index().to_csv(file, index=False, float_format="%.4g")
    n_alive, n_tokens = statistics.n_alive_, codes.shape[0]
    print(f"{n_alive:,} features on {n_tokens:,} held-out tokens; d* {statistics.critical_width_:.0f}")
    for name, rows in table.groupby("model", sort=False):
        inside = rows["rank"] <= predictor.kept_features([int(rows.width.iloc[0])])[0]
        print(
            f"{name}: median R2 {rows.r2.median():.3f}; of the {inside.sum()} that Eq. 2 keeps "
            f"{rows.r2[inside].median():.3f}, of the others {rows.r2[~inside].median():.3f}; "
            f"{np.mean(rows.r2 > 0.5):.0%} of all above 0.5; median AUC {rows.auc.median():.3f}, "
            f"{rows.auc[inside].median():.3f} and {rows.auc[~inside].median():.3f}"
        )


if __name__ == "__main__":
    main()
