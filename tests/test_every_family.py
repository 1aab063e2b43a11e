"""Each family of language models through every stage, and the table of families in the documentation.

Run ``python tests/test_every_family.py`` to write the table after a change.
"""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_families import LENGTH, N_VOCABULARY, PRINCIPAL, RANDOM, REFUSED, WIDTH, family_model

from geofloor import AblationPredictor, ActivationExtractor, BottleneckPredictor, DistilledStudent
from geofloor.students import make_student

PAGE = Path(__file__).parents[1] / "docs" / "how_to" / "supported_models.rst"
CONFIGS = {**PRINCIPAL, **RANDOM, **REFUSED}
MODELS = {
    "bert": "BERT and other encoders",
    "bloom": "BLOOM",
    "cohere": "Command R",
    "falcon": "Falcon",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "gpt2": "GPT-2",
    "gpt_neo": "GPT-Neo",
    "gpt_neox": "Pythia",
    "gptj": "GPT-J",
    "granite": "Granite 3",
    "llama": "Llama 2 and 3, SmolLM2",
    "mamba": "Mamba and other state-space models",
    "mistral": "Mistral",
    "mixtral": "Mixtral and other mixtures of experts",
    "olmo2": "OLMo 2",
    "opt": "OPT (not OPT-350M, Galactica)",
    "phi": "Phi-1 and 2",
    "phi3": "Phi-3, Phi-4",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "stablelm": "StableLM",
    "starcoder2": "StarCoder2",
}
# Known from the equations, see geofloor/students/_principal.py
APPROXIMATE = {
    "gemma2": "lengths after sublayers",
    "gemma3_text": "lengths after sublayers",
    "gpt2": "gain and bias of the tied unembedding",
    "olmo2": "lengths after sublayers; norm of queries and keys",
    "opt": "gain and bias of the tied unembedding",
    "qwen2": "constant of the value biases",
}

pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


@functools.cache
def teacher_of(name):
    return family_model(CONFIGS[name])


def tokens_of(n_sequences=12):
    return np.random.default_rng(0).integers(2, N_VOCABULARY, size=(n_sequences, LENGTH))


def measured(name):
    """Check the stages that need only the teacher's outputs, and answer for the table."""
    teacher, tokens = teacher_of(name), tokens_of()
    found = ActivationExtractor(teacher, 0, device="cpu").transform(tokens)
    outputs = []
    first_block = next(m for m in teacher.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)[0]
    hook = first_block.register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        teacher(torch.from_numpy(tokens))
    hook.remove()
    expected = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    assert expected.shape == (*tokens.shape, WIDTH)
    np.testing.assert_allclose(found, expected[:, 1:].flatten(0, 1), atol=1e-5)
    bound = BottleneckPredictor(teacher, widths=[8, 16], n_positions=64, random_state=0, device="cpu").fit(tokens)
    narrow, wide = bound.predict([8, 16])
    assert 0 <= wide <= narrow <= bound.zero_width_loss_
    ablation = AblationPredictor(teacher, 0, n_points=4, device="cpu").fit(tokens)
    floors = ablation.predict([0, 8, WIDTH])
    assert floors[0] > floors[1] > 0
    assert floors[2] == pytest.approx(0, abs=1e-6)
    return "yes"


def started(name, init):
    """Train a student of half the width for two steps, and answer for the table."""
    teacher, tokens = teacher_of(name), tokens_of(40)
    student = DistilledStudent(
        teacher, WIDTH // 2, init=init, n_steps=2, batch_size=8, eval_every=1, random_state=0, device="cpu"
    )
    try:
        student.fit(tokens)
    except ValueError as error:
        refusal = re.search(r"no rule: it (.*?)[.(,]|(init='principal' is not available)", str(error))
        return "no" if refusal[2] else refusal[1].strip()
    assert student.init_ == init
    assert student.model_.get_input_embeddings().weight.shape[1] == WIDTH // 2
    assert np.isfinite([row["eval_kl"] for row in student.history_]).all()
    if init == "principal":
        assert student.history_[0]["eval_kl"] < 4 * student.zero_width_loss_
        own = make_student(teacher, WIDTH, init="principal", random_state=0, tokens=tokens)
        with torch.no_grad():
            logits, expected = (model(torch.from_numpy(tokens)).logits for model in (own, teacher))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    return "yes"


def row_of(name):
    starts = [started(name, init) for init in ("random", "principal")]
    if name in REFUSED:
        starts = [f"no: {reason}" for reason in starts]
    return [f"``{name}``", MODELS[name], measured(name), *starts, APPROXIMATE.get(name, "")]


def table_row(cells):
    return "".join(f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() + "\n" for i, cell in enumerate(cells))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_each_family_passes_the_stages_that_the_table_promises(name):
    assert table_row(row_of(name)) in PAGE.read_text(encoding="utf-8")


def test_the_table_has_no_other_families():
    assert sorted(re.findall(r"\* - ``(\w+)``", PAGE.read_text(encoding="utf-8"))) == sorted(CONFIGS)


def write_table():
    start, end = ".. families start\n", ".. families end\n"
    before, rest = PAGE.read_text(encoding="utf-8").split(start)
    head = [
        "Type",
        "Models",
        "Activations, bottleneck, ablation",
        "Random start",
        "Principal start",
        "Approximate below the teacher's width",
    ]
    order = [*sorted(PRINCIPAL), *sorted(RANDOM), *sorted(REFUSED)]
    table = ".. list-table::\n   :header-rows: 1\n   :widths: 13 20 13 13 13 28\n\n" + table_row(head)
    table += "".join(table_row(row_of(name)) for name in order)
    PAGE.write_text(f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    write_table()
