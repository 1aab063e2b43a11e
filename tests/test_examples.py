"""The main job, as a user runs it, and killed as a machine kills it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_families import PRINCIPAL, RANDOM, REFUSED, family_model
from small_processes import kill_at_file

from geofloor import SparseAutoencoder
from geofloor.datasets import load_teacher

EXAMPLE = Path(__file__).parents[1] / "examples" / "plan_a_distillation.py"
SMALL = ["--tokens", "6000", "--expansion", "8", "--epochs", "16", "--length", "64"]
SMALL += ["--distill-steps", "10", "--distill-widths", "32", "64"]


def load_example():
    specification = importlib.util.spec_from_file_location("plan_a_distillation", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A plan that was never stopped, and what it printed."""
    folder = tmp_path_factory.mktemp("plan")
    command = [sys.executable, str(EXAMPLE), *SMALL, "--output", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_plan_is_eq_2_of_what_was_measured(finished):
    folder, printed = finished
    plan = json.loads((folder / "plan.json").read_text())
    students = plan["students"]
    assert plan["alpha"] == pytest.approx(1 - plan["mean_l0"] / plan["n_features"])
    assert plan["critical_width"] == pytest.approx(plan["n_features"] / plan["capacity"])
    assert students["kept"] == [min(int(w * plan["capacity"]), plan["n_features"]) for w in students["width"]]
    assert (np.diff(students["floor"]) < 0).all()
    assert plan["explained_variance"] > 0.3
    assert f"alpha = {plan['alpha']:.4f}" in printed
    assert f"at most 10% of the total: {plan['min_width']}" in printed
    for width in students["width"]:
        assert any(line.split()[:1] == [str(width)] for line in printed.splitlines())
    dictionaries = pd.DataFrame(plan["dictionaries"])
    own = dictionaries.l0[0]
    assert dictionaries.l0.tolist() == [own, own // 2, 3 * own // 2, own]
    lines = [line.split() for line in printed.splitlines()]
    for row in dictionaries.itertuples():
        numbers = [f"{row.l0:.1f}", f"{row.explained_variance:.3f}", f"{row.kl_recovered:.3f}"]
        assert any(line[2:5] == numbers and f"{row.critical_width:.1f}" in line for line in lines)
    assert dictionaries.critical_width[0] == plan["critical_width"]
    assert (np.array(students["lowest"]) <= students["floor"]).all()
    assert (np.array(students["floor"]) <= students["highest"]).all()
    for figure in ("floor.png", "band.png", "spectrum.png", "forecast.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")


def test_forecasts_agree_with_the_two_students_and_decide_by_their_intervals(finished):
    folder, printed = finished
    plan = json.loads((folder / "plan.json").read_text())
    students = pd.DataFrame(plan["students"])
    assert [run["width"] for run in plan["runs"]] == [32, 64]
    nats = students.set_index("width").nats
    for run in plan["runs"]:
        calibrated = plan["calibration"]["slope"] * nats[run["width"]] + plan["calibration"]["baseline"]
        row = students.set_index("width").loc[run["width"]]
        assert plan["calibration"]["slope"] > 0
        assert run["floor"] == pytest.approx(row.calibrated) == pytest.approx(calibrated)
    seen = students.set_index("width").forecast[[run["width"] for run in plan["runs"]]]
    np.testing.assert_allclose(seen, [run["floor"] for run in plan["runs"]], rtol=0.1)
    assert (np.diff(students.forecast) < 0).all()
    assert students.forecast.max() <= plan["zero_width_loss"]
    assert f"law: loss = {plan['law']}" in printed
    assert (students.least <= students.low).all()
    assert (students.least[:-1] < students.bottleneck[:-1]).all()
    own = students.width == 128  # such a student is the teacher
    assert not students.loc[own, ["low", "forecast"]].to_numpy().any()
    assert (students.high > 0).all()
    assert (students.low < students.forecast)[~own].all()
    assert (students.forecast < students.high)[~own].all()
    assert students.answer.tolist() == [
        "impossible" if 0.95 * least > 0.25
        else "go at this budget" if high <= 0.25
        else "not at this budget" if low > 0.25
        else "uncertain"
        for least, low, high in zip(students.least, students.low, students.high, strict=True)
    ]  # fmt: skip
    assert "Forecast after 10 steps of 512 tokens, trained like these" in printed
    assert plan["decision"] in printed


def run_apart(arguments):
    load_example().main(arguments)


LAST_MARK = "students"
MARKS = ["activations/manifest.json", "sae-l0-60-seed-0.checkpoint", LAST_MARK]  # the second is of the band


@pytest.mark.parametrize("marks", [[LAST_MARK], pytest.param(MARKS, marks=pytest.mark.slow)])
def test_sigkill_loses_nothing(finished, server, tmp_path, marks):
    never_stopped, _ = finished
    arguments = [*SMALL, "--output", str(tmp_path)]
    for mark in marks:  # killed as soon as each of these is there
        kill_at_file(server, tmp_path / mark, run_apart, arguments)
    load_example().main(arguments)
    assert (tmp_path / "plan.json").read_bytes() == (never_stopped / "plan.json").read_bytes()
    killed, whole = (SparseAutoencoder.load(folder / "sae.safetensors") for folder in (tmp_path, never_stopped))
    for name in ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_"):
        np.testing.assert_array_equal(getattr(killed, name), getattr(whole, name))


def test_another_model_and_text(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(EXAMPLE.read_text() * 3)
    arguments = ["--model", str(load_teacher().path), "--layer", "0", "--text", str(text), "--widths", "8", "32"]
    arguments += ["--tokens", "3000", "--expansion", "16", "--epochs", "20", "--no-distill"]
    arguments += ["--output", str(tmp_path / "plan")]
    load_example().main(arguments)
    printed = capsys.readouterr().out
    assert "measured after block 0" in printed
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert plan["students"]["width"] == [8, 32]
    assert "runs" not in plan
    assert not (tmp_path / "plan" / "students").exists()
    arguments.remove("--no-distill")
    arguments += [
        "--distill-init",
        "random",
        "--distill-steps",
        "4",
        "2",
        "--distill-batch",
        "2",
        "--distill-widths",
        "8",
    ]
    load_example().main([*arguments, "32"])
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert plan["runs"][0]["floor"] > plan["zero_width_loss"]  # random, and all but untrained: worse than none
    assert "(1 + d)" not in plan["law"]


def family_folder(name, folder):
    """Save a tiny model of a family, with the tokenizer of the embedded teacher."""
    tokenizer = load_teacher().tokenizer
    config = {**PRINCIPAL, **RANDOM, **REFUSED}[name]
    kind = type(config)
    model = family_model(kind.from_dict({**config.to_dict(), "vocab_size": len(tokenizer)}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plan_of(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(EXAMPLE.read_text() * 3)
    arguments = ["--model", str(folder), "--text", str(text), "--length", "32", "--tokens", "3000", "--epochs", "5"]
    arguments += ["--expansion", "4", "--widths", "8", "24", "--distill-widths", "8", "16"]
    arguments += ["--distill-steps", "2", "4", "--distill-batch", "2", "--output", str(tmp_path / "plan")]
    load_example().main(arguments)
    return json.loads((tmp_path / "plan" / "plan.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "stablelm"])
def test_a_teacher_of_any_family_has_a_plan(name, tmp_path):
    plan = plan_of(family_folder(name, tmp_path / "model"), tmp_path)
    assert plan["students"]["width"] == [8, 24]
    assert [(run["width"], run["n_steps"]) for run in plan["runs"]] == [(8, 2), (8, 4), (16, 2), (16, 4)]
    assert np.isfinite([run["floor"] for run in plan["runs"]] + plan["students"]["forecast"]).all()


def test_a_teacher_without_students_is_refused_before_the_activations(tmp_path):
    folder = family_folder("mixtral", tmp_path / "model")
    with pytest.raises(ValueError, match="is a mixture of experts"):
        plan_of(folder, tmp_path)
    assert not (tmp_path / "plan" / "activations").exists()


def test_settings_that_do_not_fit_what_is_there_are_refused(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match="other values of n_epochs"):
        load_example().main([*SMALL, "--output", str(folder), "--epochs", "17"])
