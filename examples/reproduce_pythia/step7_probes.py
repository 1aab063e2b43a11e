"""
Step 7: students → probes
=========================

Probe the teacher and some students for concepts (Table 6). The texts come from the start of the dataset. French is rare
in The Pile: 2,000 passages may take tens of millions of rows. Leave it out of ``--concepts``, or limit the search by
``--probe-rows``.
"""

import json

from options import dtype_of
from results import atomic_path, write_table
from step1_tokens import open_dataset
from step5_students import student_path
from transformers import AutoTokenizer

from geofloor import ActivationExtractor, ConceptProbe, DistilledStudent
from geofloor.datasets import pile_concepts
from geofloor.probing import probe_table


def probe_concepts(
    folder,
    *,
    model,
    dataset,
    split,
    length,
    probe_layer,
    probe_widths,
    concepts,
    n_per_class,
    max_characters,
    probe_rows,
    skip_first,
    forward_batch,
    precision,
    seed,
    device,
):
    """Write ``concepts.json`` and ``probes.csv``."""
    path = folder / "concepts.json"
    if not path.exists():
        found = pile_concepts(
            open_dataset(dataset, split),
            concepts,
            n_per_class=n_per_class,
            max_characters=max_characters,
            max_rows=probe_rows,
        )
        kept = {
            name: {"texts": each.texts, "labels": each.labels.tolist(), "groups": each.groups.tolist()}
            for name, each in found.items()
        }
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(kept), encoding="utf-8")
    texts = json.loads(path.read_text(encoding="utf-8"))
    settings = {
        "tokenizer": AutoTokenizer.from_pretrained(model),
        "pooling": "mean",
        "max_length": length,
        "skip_first": skip_first,
        "batch_size": forward_batch,
    }
    states = {}
    for width in [None, *sorted(probe_widths, reverse=True)]:
        if width is None:
            extractor = ActivationExtractor(model, probe_layer, device=device, dtype=dtype_of(precision), **settings)
        else:
            student = DistilledStudent.load(student_path(folder, width, seed), device=device)
            extractor = ActivationExtractor(student.model_, probe_layer, **settings)
        states["teacher" if width is None else f"width {width}"] = {
            name: extractor.transform(each["texts"]) for name, each in texts.items()
        }
    table = probe_table(states, texts, reference="teacher", probe=ConceptProbe(random_state=seed))
    write_table(folder / "probes.csv", table)
