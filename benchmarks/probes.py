"""What of concepts survives in students of the embedded teacher, by linear probes (the paper's Experiment 4).

    python benchmarks/probes.py --work distilled-work

Needs the students that distilled_floors.py left in `--work`. Every model's hidden states after one block, averaged over
the tokens of an example, are probed for nine concepts by five-fold cross-validation; the table goes to
results/probes.csv and the heatmap to `--work`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib

from geofloor import ActivationExtractor, ConceptProbe, DistilledStudent
from geofloor.datasets import load_concepts, load_teacher
from geofloor.displays import ProbeHeatmapDisplay
from geofloor.probing import probe_table

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with students of distilled_floors.py")
    parser.add_argument("--n-steps", type=int, default=3000, help="of the students to take")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "probes.csv")
    options = parser.parse_args()
    matplotlib.use("Agg")
    teacher = load_teacher()
    concepts = load_concepts()
    models = {"teacher": teacher.model}
    for path in options.work.glob(f"student-*-seed-0-steps-{options.n_steps}.safetensors"):
        student = DistilledStudent.load(path, teacher=teacher.model, device="cpu")
        models[f"width {student.width}"] = student.model_
    order = ["teacher", *sorted(set(models) - {"teacher"}, key=lambda name: -int(name.split()[1]))]
    states = {}
    for name in order:
        began = time.perf_counter()
        extractor = ActivationExtractor(
            models[name], options.layer, tokenizer=teacher.tokenizer, pooling="mean", max_length=128, batch_size=64
        ).fit()
        states[name] = {concept: extractor.transform(data.texts) for concept, data in concepts.items()}
        print(f"{name}: states in {time.perf_counter() - began:.0f} s", flush=True)
    table = probe_table(states, concepts, reference="teacher", probe=ConceptProbe(cv=5, random_state=0))
    with open(options.output, "w", encoding="utf-8") as file:
        file.write("# python benchmarks/probes.py\n")
        table.to_csv(file, index=False, float_format="%.4g")
    accuracy = table.pivot(index="concept", columns="model", values="accuracy")[order]
    print(accuracy.round(3).to_string())
    print(f"mean over concepts: {accuracy.mean().round(3).to_dict()}")
    for name in order[1:]:
        rows = table[table.model == name]
        print(f"{name}: {int((rows.p_value < 0.05).sum())} of {len(rows)} concepts differ from the teacher at p < 0.05")
    display = ProbeHeatmapDisplay.from_table(table, reference="teacher")
    display.figure_.savefig(options.work / "probes.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
