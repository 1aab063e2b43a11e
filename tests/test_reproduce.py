"""The paper's reproduction in miniature: on the embedded teacher and rows with The Pile's columns."""

import contextlib
import importlib.util
import json
import os
import runpy
import shutil
import socket
import sys
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from small_processes import kill_at_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, GPTNeoXConfig, GPTNeoXForCausalLM

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
from geofloor._training import rows as data_rows
from geofloor.datasets import load_paper_tables, load_teacher, pile_concepts
from geofloor.forecasting import Anchored
from geofloor.language_models import token_blocks, zero_width_kl
from geofloor.students import count_parameters, distill_widths, student_config

JOB = Path(__file__).parents[1] / "examples" / "reproduce_pythia"
OUTPUT = Path("results")  # relative, so that two folders hold the same bytes
WIDTHS = [8, 16, 32, 64]
SMALL = [
    *("--model", str(load_teacher().path), "--dataset", "../pile.jsonl", "--output", str(OUTPUT), "--device", "cpu"),
    *("--layers", "1", "2", "--expansion", "4", "--l1-coefficient", "2", "--sae-learning-rate", "3e-3"),
    *("--sae-tokens", "40000", "--sae-length", "64", "--sae-batch", "512", "--sae-checkpoint-every", "10"),
    *("--statistics-tokens", "6000", "--ablation-sequences", "4", "--ablation-points", "6"),
    *("--bottleneck-positions", "100"),
    *("--length", "32", "--batch-size", "8", "--optimizer", "muon", "--learning-rate", "2e-2"),
    *("--widths", "8", "16", "32", "64", "--repeat-widths", "8", "--n-steps", "30", "--warmup-steps", "5"),
    *("--longer-widths", "8", "--longer-steps", "40"),
    *("--eval-every", "5", "--eval-sequences", "8", "--checkpoint-every", "3"),
    *("--probe-layer", "2", "--probe-widths", "8", "64", "--concepts", "legal", "code"),
    *("--n-per-class", "20", "--max-characters", "100"),
]


@pytest.fixture(scope="module")
def job():
    """Load ``__main__.py`` as a module, which finds the modules beside it."""
    specification = importlib.util.spec_from_file_location("reproduce_pythia", JOB / "__main__.py")
    job = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(JOB)
        specification.loader.exec_module(job)
        yield job
    for path in JOB.glob("[!_]*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def costs(job):
    return job.costs


def rows():
    """Rows with The Pile's columns; words differ, so that there is something to learn."""
    rng = np.random.default_rng(0)
    words = {
        "FreeLaw": "the court of appeal affirmed judgment motion denied party statute district plaintiff claim",
        "Github": "def return self value for in range if not none import class list print open",
        "Pile-CC": "she went to the old house by a river and saw winter light over green hills",
    }
    for _ in range(700):
        for subset, chosen in words.items():
            yield {"text": " ".join(rng.choice(chosen.split(), size=40)), "meta": {"pile_set_name": subset}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduction")
    with open(folder / "pile.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows())
    return folder


def run(job, folder, *arguments):
    folder.mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        job.main([*SMALL, *arguments])


@pytest.fixture(scope="module")
def finished(job, folder):
    """Output folder of a run that was never stopped."""
    run(job, folder / "whole")
    return folder / "whole" / OUTPUT


def planned(job, *arguments):
    options = job.parse_arguments(arguments, job.STEPS)
    config = job.teacher_config(options.model)
    plan = job.make_plan(options, config)
    return options, plan, job.costs.costs(options, config, plan)


# Results


def test_features_are_those_of_the_library_called_directly(finished):
    teacher = load_teacher()
    n_sae, n_statistics = -(-40_000 // 63), -(-6000 // 63)
    texts = [row["text"] for row in rows()]
    blocks = token_blocks(texts, teacher.tokenizer, length=32, max_blocks=8 + 2 * (n_sae + n_statistics))
    stored = np.load(finished / "tokens.npy")
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, blocks)
    sequences = blocks[8:].reshape(-1, 64)
    extractor = ActivationExtractor(teacher.model, 1, batch_size=32)
    order = np.random.default_rng(0).permutation(n_sae)
    activations = [extractor.transform(sequences[order[start : start + 8]]) for start in range(0, n_sae, 8)]
    direct = SparseAutoencoder.paper(
        expansion=4, l1_coefficient=2.0, learning_rate=3e-3, batch_size=512, random_state=0, device="cpu"
    ).fit(activations)
    sae = SparseAutoencoder.load(finished / "sae-layer-1.safetensors", device="cpu")
    np.testing.assert_array_equal(sae.encoder_, direct.encoder_)
    np.testing.assert_array_equal(sae.decoder_bias_, direct.decoder_bias_)
    held_out = extractor.transform(sequences[n_sae:])
    statistics = FeatureStatistics().fit(direct.transform(held_out))
    features = load_file(finished / "features-layer-1.safetensors")
    np.testing.assert_allclose(features["table"], statistics.table_, rtol=1e-5)
    measured = pd.read_csv(finished / "layers.csv").set_index("layer").loc[1]
    assert measured["n_tokens"] == len(held_out) == 63 * n_statistics
    assert measured["n_features"] == statistics.n_alive_
    assert measured["critical_width"] == pytest.approx(statistics.critical_width_)
    assert measured["explained_variance"] == pytest.approx(sae.score(held_out[: 2 * 8 * 63]))
    ablation = AblationPredictor(teacher.path, 1, sae, statistics, n_points=6, device="cpu").fit(blocks[:4])
    predicted = pd.read_csv(finished / "predicted.csv").set_index("layer").loc[1]
    np.testing.assert_allclose(predicted["nats"], ablation.predict(WIDTHS), rtol=1e-4)
    np.testing.assert_array_equal(pd.read_csv(finished / "ablation-layer-1.csv")["kept"], ablation.curve_["kept"])


def test_floors_and_calibrations_follow_from_the_stored_tables(finished):
    students = pd.read_csv(finished / "students.csv")
    observed = students["kl"][students["seed"] == 0].to_numpy()
    calibration = json.loads((finished / "calibration.json").read_text())
    predicted = pd.read_csv(finished / "predicted.csv")
    forecasts = pd.read_csv(finished / "forecasts.csv").set_index("predictor")
    for layer in (1, 2):
        floor = FloorPredictor().fit(load_file(finished / f"features-layer-{layer}.safetensors")["table"])
        table = predicted[predicted["layer"] == layer]
        assert table["width"].tolist() == WIDTHS
        np.testing.assert_allclose(table["floor"], floor.predict(WIDTHS))
        np.testing.assert_array_equal(table["kept"], floor.kept_features(WIDTHS))
        for name, baseline in (("free", None), ("fixed", observed[-1])):
            fit = AffineCalibrator(baseline=baseline).fit(floor.predict(WIDTHS), observed)
            found = calibration["layers"][str(layer)][name]
            assert found == pytest.approx({"slope": fit.slope_, "baseline": fit.baseline_, "r2": fit.r2_})
        assert forecasts["r2"][f"Eq. 3, layer {layer}"] == pytest.approx(
            calibration["layers"][str(layer)]["free"]["r2"]
        )
    from_two = pd.read_csv(finished / "from-two-students.csv").set_index("predictor")
    without = [f"without features, layer {layer}" for layer in (1, 2)]
    assert list(from_two.index.unique()) == ["a exp(-b d)", "L0 (1 + d)^-c exp(-b d)", *without]
    zero_width = zero_width_kl(load_teacher().path, np.load(finished / "tokens.npy")[:8], device="cpu")
    law = LossForecaster(Anchored(zero_width)).fit([8, 64], observed[[0, -1]])
    loss, interval = law.predict([16, 32], return_interval=True)
    found = from_two.loc["L0 (1 + d)^-c exp(-b d)"]
    np.testing.assert_allclose(found[["forecast", "low", "high"]], np.column_stack([loss, interval]), rtol=1e-6)
    np.testing.assert_allclose(found["observed"], observed[1:-1])
    power_law = PowerLawCalibrator().fit(WIDTHS, observed)
    assert calibration["eq_4"]["exponent"] == pytest.approx(power_law.exponent_)
    assert np.isfinite(forecasts.loc["Eq. 4", "left_out"])
    pair = students["kl"][students["width"] == 8].to_numpy()
    assert calibration["seeds"] == pytest.approx({"8": abs(pair[0] - pair[1]) / pair.mean()})


def test_no_student_ends_below_the_bottleneck(finished):
    blocks = np.load(finished / "tokens.npy")[:8]
    found = pd.read_csv(finished / "bottleneck.csv").set_index("width")
    direct = BottleneckPredictor(
        load_teacher().path, widths=WIDTHS, n_positions=100, n_steps=150, batch_size=32, random_state=0, device="cpu"
    ).fit(blocks)
    np.testing.assert_allclose(found, direct.curve_.set_index("width"), rtol=1e-4)
    students = pd.read_csv(finished / "students.csv")
    assert (students["kl"].to_numpy() > found["low"][students["width"]].to_numpy()).all()


def test_students_are_those_of_a_lone_fit(finished):
    blocks = np.load(finished / "tokens.npy")
    lone = DistilledStudent.paper(
        load_teacher().path,
        8,
        n_steps=30,
        batch_size=8,
        optimizer="muon",
        learning_rate=2e-2,
        warmup_steps=5,
        eval_every=5,
        random_state=1,
        device="cpu",
    ).fit(blocks[8:], eval_tokens=blocks[:8])
    students = pd.read_csv(finished / "students.csv")
    assert students[["width", "seed"]].to_numpy().tolist() == [*([width, 0] for width in WIDTHS), [8, 1]]
    found = students.iloc[-1]
    assert found["kl"] == pytest.approx(lone.floor_, rel=1e-12)
    assert found["raw_kl"] == pytest.approx(lone.floor_ * 32 * 4)
    assert found["n_parameters"] == lone.n_parameters_
    curves = pd.read_csv(finished / "curves.csv")
    np.testing.assert_allclose(
        curves["eval_kl"][(curves["width"] == 8) & (curves["seed"] == 1)],
        [row["eval_kl"] for row in lone.history_],
    )


def test_a_longer_training_is_a_new_fit_with_its_own_decay(finished):
    blocks = np.load(finished / "tokens.npy")
    settings = {"batch_size": 8, "optimizer": "muon", "learning_rate": 2e-2, "warmup_steps": 5, "eval_every": 5}
    lone = DistilledStudent.paper(load_teacher().path, 8, n_steps=40, random_state=0, device="cpu", **settings)
    floor = lone.fit(blocks[8:], eval_tokens=blocks[:8]).floor_
    longer = pd.read_csv(finished / "longer.csv").iloc[0]
    assert longer["width"] == 8
    assert longer["n_steps"] == 40
    assert longer["kl"] == pytest.approx(floor, rel=1e-12)
    assert longer["change"] == pytest.approx(floor / pd.read_csv(finished / "students.csv")["kl"][0] - 1)


def test_probes_are_those_of_the_pile_s_concepts(finished):
    table = pd.read_csv(finished / "probes.csv").set_index(["concept", "model"])
    assert list(table.index) == [(c, m) for c in ("legal", "code") for m in ("teacher", "width 64", "width 8")]
    legal = pile_concepts(rows(), ["legal"], n_per_class=20, max_characters=100).legal
    student = DistilledStudent.load(finished / "student-width-8-seed-0.safetensors", device="cpu")
    states = ActivationExtractor(
        student.model_, 2, tokenizer=load_teacher().tokenizer, pooling="mean", max_length=32, batch_size=32
    ).transform(legal.texts)
    probe = ConceptProbe(random_state=0).fit(states, legal.labels, groups=legal.groups)
    assert table["accuracy"]["legal", "width 8"] == probe.accuracy_
    assert table["width"]["legal", "width 8"] == 8


# Stopped and started


def content(path):
    """Read a file's bytes; parse the header of safetensors, because its entries come in any order."""
    raw = path.read_bytes()
    if path.suffix != ".safetensors":
        return raw
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def run_apart(folder, *arguments):
    sys.path.insert(0, str(JOB))
    with contextlib.chdir(folder):
        runpy.run_path(str(JOB / "__main__.py"))["main"]([*SMALL, *arguments])


@pytest.mark.slow
def test_killed_in_two_steps_and_resumed_to_the_same_bytes(job, folder, finished, server, capsys):
    killed = folder / "killed"
    killed.mkdir()
    _, _, by_step = planned(job, *SMALL)
    for step, mark, result in (
        ("sae", "autoencoders/layer-2.safetensors", "sae-layer-2.safetensors"),
        ("students", "distillation/width-8-seed-1.safetensors", "students.csv"),
    ):
        kill_at_file(server, killed / OUTPUT / mark, run_apart, killed)
        assert not (killed / OUTPUT / result).exists()
        size = sum(path.stat().st_size for path in (killed / OUTPUT / mark).parent.glob("*.safetensors"))
        assert by_step[step].checkpoints == pytest.approx(size, rel=0.1)
        if step == "sae":
            n_done = SparseAutoencoder.steps_done(killed / OUTPUT / mark)
            assert n_done % 10 == 0 < n_done
    run(job, killed)
    assert "sae: finished before" in capsys.readouterr().out
    files = sorted(path.name for path in finished.iterdir())
    assert files == sorted(path.name for path in (killed / OUTPUT).iterdir())
    for file in files:
        assert content(killed / OUTPUT / file) == content(finished / file), file


class CountingExtractor:
    skip_first = 1

    def __init__(self):
        self.read = []

    def transform(self, sequences):
        self.read.append(sequences[0, 0])
        return np.repeat(sequences[:, 1:].reshape(-1, 1), 2, axis=1).astype(np.float32)


def test_activations_that_were_trained_on_are_not_computed_again(job):
    import activations

    sequences, order = np.arange(50).reshape(10, 5), np.arange(10)[::-1]
    whole = np.concatenate(list(activations.Activations(CountingExtractor(), sequences, order, 11)))
    for row in range(42):  # batches of two sequences, which have eight rows
        extractor = CountingExtractor()
        rest = list(activations.Activations(extractor, sequences, order, 11).iter_from(row))
        assert extractor.read == [sequences[order[start], 0] for start in range(row // 8 * 2, 10, 2)]
        np.testing.assert_array_equal(np.concatenate([np.empty((0, 2)), *rest]), whole[row:])


class StoppedError(Exception):
    pass


def test_a_long_autoencoder_resumes_without_the_activations_before(job, folder, finished, monkeypatch, capsys):
    monkeypatch.setattr(data_rows, "_SAMPLE_ROWS", 2000)  # the activations are a stream, not read at once
    transform, computed, most = ActivationExtractor.transform, [], 50

    def counted(self, X):
        if len(computed) == most:
            raise StoppedError
        computed.append(len(X))
        return transform(self, X)

    monkeypatch.setattr(ActivationExtractor, "transform", counted)
    options = {**vars(job.parse_arguments(SMALL, job.STEPS)), "layers": [1], "is_main": True}
    place = folder / "long"
    place.mkdir()
    shutil.copy(finished / "tokens.npy", place)

    def train():
        computed.clear()
        job.train_autoencoders(place, **job.arguments_of(job.STEPS["sae"], options))

    with pytest.raises(StoppedError):
        train()
    n_done = SparseAutoencoder.steps_done(place / "autoencoders" / "layer-1.safetensors")
    most = None
    train()
    assert f"layer 1: resuming at step {n_done}" in capsys.readouterr().out
    assert n_done >= 30
    per_batch = 8 * 63  # rows, of which 2,001 are looked at first
    assert len(computed) == -(-2001 // per_batch) + -(-635 // 8) - n_done * 512 // per_batch
    resumed = content(place / "sae-layer-1.safetensors")
    (place / "sae-layer-1.safetensors").unlink()
    train()
    assert resumed == content(place / "sae-layer-1.safetensors")


def test_every_option_belongs_to_a_step_or_to_the_run(job):
    options = vars(job.parse_arguments([], job.STEPS))
    given = {**options, "n_blocks": 0, "is_main": True}
    of_steps = {name for step in job.STEPS.values() for name in job.arguments_of(step, given)}
    assert options.keys() - of_steps == {"output", "steps", "dry_run", "gpu", "utilization"}
    assert job.INCIDENTAL.issubset(of_steps)


def test_finished_steps_are_skipped_and_other_arguments_refused(job, folder, finished, capsys):
    times = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    run(job, folder / "whole")
    assert "sae: finished before" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    with pytest.raises(SystemExit, match="the step 'sae' with other values of expansion"):
        run(job, folder / "whole", "--expansion", "8", "--steps", "statistics")
    with pytest.raises(SystemExit, match="'probes' needs students"):
        run(job, folder / "new", "--steps", "probes")


def test_a_finished_layer_leaves_the_checkpoint_of_the_next(job, tmp_path, monkeypatch):
    import step2_autoencoders

    class Unfinished:
        steps_done = staticmethod(lambda path: int(path.stat().st_size))

        @classmethod
        def paper(cls, **_):
            raise KeyboardInterrupt

    monkeypatch.setattr(step2_autoencoders, "SparseAutoencoder", Unfinished)
    np.save(tmp_path / "tokens.npy", np.zeros((20, 8), dtype=np.uint16))
    (tmp_path / "sae-layer-1.safetensors").touch()
    checkpoint = tmp_path / "autoencoders" / "layer-2.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"...")
    options = job.parse_arguments(["--layers", "1", "2", "--sae-tokens", "70", "--sae-length", "8"], job.STEPS)
    arguments = job.arguments_of(job.STEPS["sae"], {**vars(options), "eval_sequences": 1, "is_main": True})
    with pytest.raises(KeyboardInterrupt):
        step2_autoencoders.train_autoencoders(tmp_path, **arguments)
    assert checkpoint.exists()


def run_together(folder, environment):
    os.environ.update(environment)  # as torchrun and accelerate set it
    torch.set_num_threads(1)
    printed = folder / f"printed-{environment['RANK']}"
    with open(printed, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        run_apart(folder, "--device", "auto", "--steps", "tokens", "sae", "students")


def test_several_processes_share_autoencoders_and_students(folder, finished, server):
    pytest.importorskip("accelerate")
    place = folder / "together"
    place.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    processes = [
        server.Process(target=run_together, args=(place, {**shared, "RANK": rank, "LOCAL_RANK": rank})) for rank in "01"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    printed = "".join((place / f"printed-{rank}").read_text(encoding="utf-8") for rank in "01")
    assert printed.count("students …") == printed.count("layer 1: ") == 1
    together = place / OUTPUT
    found = [pd.read_csv(each / "students.csv")["kl"] for each in (finished, together)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    assert (together / "tokens.npy").read_bytes() == (finished / "tokens.npy").read_bytes()
    alone, shared = (SparseAutoencoder.load(each / "sae-layer-2.safetensors").encoder_ for each in (finished, together))
    # Adam amplifies rounding where gradients are near zero; tests/features/test_distributed.py compares more closely.
    assert np.linalg.norm(shared - alone) < 0.1 * np.linalg.norm(alone)
    assert not (together / "autoencoders").exists()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_text_comes_from_files_and_folders(job, folder, tmp_path, kind):
    import step1_tokens

    source = tmp_path / f"pile.{kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(list(rows())).to_parquet(source)
    else:
        file = source / "train.jsonl" if kind == "folder" else source
        file.parent.mkdir(exist_ok=True)
        file.write_bytes((folder / "pile.jsonl").read_bytes())
    found = step1_tokens.open_dataset(str(source), "train")
    assert isinstance(found, datasets.IterableDataset)
    assert list(found.take(5)) == list(islice(rows(), 5))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--layers", "4"], "--layers"),
        (["--sae-length", "48"], "--sae-length"),
        (["--probe-widths", "24"], "--probe-widths"),
        (["--warmup-steps", "30"], "--warmup-steps"),
        (["--longer-widths", "24"], "--longer-widths"),
        (["--longer-steps", "30"], "--longer-steps"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(job, folder, arguments, named):
    with pytest.raises(SystemExit, match=f"{named}: out of range"):
        run(job, folder / "refused", *arguments)
    assert not (folder / "refused" / OUTPUT).exists()


# What it costs


def test_the_dry_run_knows_the_paper_s_models_without_a_connection(job, capsys, monkeypatch, tmp_path):
    def connect(*arguments, **settings):
        raise AssertionError("a dry run asked for a configuration")

    monkeypatch.setattr(AutoConfig, "from_pretrained", connect)
    monkeypatch.chdir(tmp_path)
    job.main(["--dry-run"])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:10]] == [*job.STEPS, "in"]
    assert "does not fit" not in printed
    assert not list(tmp_path.iterdir())
    config = job.teacher_config("EleutherAI/pythia-410m")
    table = load_paper_tables().students
    for row in table.itertuples():
        student = student_config(config, row.width)
        assert round(count_parameters(student) / 1e6) == row.parameters_millions
        assert job.costs.shape_of(student).n_parameters == count_parameters(student)


def test_what_does_not_fit_a_gpu_is_said_and_the_remedy_works(job, costs):
    options, _, by_step = planned(job, "--gpu", "rtx4090")
    printed = costs.table(by_step, options)
    assert "The step 'students' needs" in printed
    remedy = by_step["students"].remedy.split()
    options, _, by_step = planned(job, "--gpu", "rtx4090", *remedy)
    assert "does not fit" not in costs.table(by_step, options)


def test_hours_are_operations_over_the_peak_that_is_reached(job):
    _, plan, by_step = planned(job, "--gpu", "a100", "--utilization", "0.5", "--precision", "bf16")
    assert by_step["students"].seconds == pytest.approx(by_step["students"].flops / (0.5 * 312e12))
    assert by_step["sae"].seconds == pytest.approx(by_step["sae"].flops / (0.5 * 156e12))  # float32 in any case
    assert plan.sae_steps * 32 * 1024 == pytest.approx(300e6, rel=1e-3)


def count_operations():
    """Torch's counter, with the sums in place that it leaves out."""

    def in_place(total, left, right, **settings):
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})


def test_operations_of_an_autoencoder_are_those_counted(costs):
    X = np.random.default_rng(0).standard_normal((2048, 48)).astype(np.float32)
    with count_operations() as counter:
        SparseAutoencoder.paper(n_latents=256, batch_size=1024, random_state=0, device="cpu").partial_fit(X)
    assert counter.get_total_flops() == pytest.approx(2048 * costs.sae_training(48, 256), rel=0.02)


TINY = {"vocab_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}


def test_operations_of_extraction_and_distillation_are_those_counted(costs):
    config = GPTNeoXConfig(hidden_size=64, intermediate_size=256, **TINY)
    teacher, shape = GPTNeoXForCausalLM(config), costs.shape_of(config)
    tokens = np.random.default_rng(0).integers(512, size=(40, 32))
    extractor = ActivationExtractor(teacher, 1, batch_size=40).fit()
    with sdpa_kernel(SDPBackend.MATH), count_operations() as counter:  # of whose products it knows
        extractor.transform(tokens)
    assert counter.get_total_flops() == pytest.approx(tokens.size * costs.blocks_forward(shape, 32, 2), rel=0.02)
    widths = [16, 32]
    with sdpa_kernel(SDPBackend.MATH), count_operations() as counter:
        distill_widths(teacher, tokens[8:], widths, eval_tokens=tokens[:8], n_steps=4, eval_every=2,
                       batch_size=8, optimizer="adamw", init="random", device="cpu")  # fmt: skip
    students = [costs.shape_of(student_config(config, width)) for width in widths]
    divergences = 3 * costs.divergence(shape)  # no products of matrices
    trained = costs.distillation(shape, students, 32) - divergences
    evaluated = costs.evaluation(shape, students, 32) - divergences
    of_width_zero = costs.evaluation(shape, [], 32) - costs.divergence(shape)
    expected = 8 * 32 * (4 * trained + 3 * evaluated + of_width_zero)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_operations_of_an_ablation_are_those_counted(costs):
    config = GPTNeoXConfig(hidden_size=64, intermediate_size=256, **TINY)
    teacher, shape = GPTNeoXForCausalLM(config), costs.shape_of(config)
    tokens = np.random.default_rng(0).integers(512, size=(64, 32))
    states = ActivationExtractor(teacher, 1, batch_size=16).fit_transform(tokens)
    sae = SparseAutoencoder(n_latents=256, batch_size=128, random_state=0, device="cpu").fit(states)
    statistics = FeatureStatistics().fit(sae.transform(states))
    ablation = AblationPredictor(teacher, 1, sae, statistics, n_points=4, capacity=lambda alpha: 4.0, device="cpu")
    # The first batch is read once more, to compare the dictionary with its activations.
    with sdpa_kernel(SDPBackend.MATH), count_operations() as counter:
        ablation.fit(tokens)
    assert len(ablation.curve_) == 5
    passes = 6 * costs.divergence(shape)  # no products of matrices
    counted = tokens.size * (costs.ablation(shape, 32, 4, 256) - passes)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("kept", [True, False])
def test_operations_of_a_bottleneck_are_those_counted(costs, kept, monkeypatch):
    config = GPTNeoXConfig(hidden_size=64, intermediate_size=256, initializer_range=0.5, **TINY)
    teacher, shape = GPTNeoXForCausalLM(config), costs.shape_of(config)
    tokens = np.random.default_rng(0).integers(512, size=(16, 32))
    monkeypatch.setattr("geofloor.language_models._divergence._KEPT_BYTES", 2**32 if kept else 0)
    # The same number of steps of rows at the end, whatever they gain.
    monkeypatch.setattr("geofloor.language_models._low_rank_fit._ROW_GAIN", 0.0)

    def operations(n_steps):
        bound = BottleneckPredictor(teacher, widths=[24], n_positions=10**6, n_steps=n_steps, device="cpu")
        with sdpa_kernel(SDPBackend.MATH), count_operations() as counter:
            bound.fit(tokens)
        assert bound.curve_["width"].tolist() == [0, 24, 62]
        return counter.get_total_flops()

    divergences = 2 * costs.divergence(shape)  # no products of matrices
    counted = sum(costs.bottleneck(shape, width, 1, kept=kept) - divergences for width in (24, 62))
    assert operations(12) - operations(2) == pytest.approx(10 * 8 * 32 * counted, rel=0.02)


def saved_bytes(width, n_layers, precision):
    """Bytes that the backward pass of a forward pass over 8 × 64 tokens needs, beside weights."""
    config = GPTNeoXConfig(hidden_size=width, intermediate_size=4 * width, **{**TINY, "num_hidden_layers": n_layers})
    model = GPTNeoXForCausalLM(config).eval()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        model.base_model(torch.zeros((8, 64), dtype=torch.int64), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_a_backward_pass_is_that_counted(costs, precision):
    per_layer = saved_bytes(128, 3, precision) - saved_bytes(128, 2, precision)
    if precision == "bf16":
        per_layer -= 2 * 12 * 128**2  # copies of the weights, which count once, however many tokens
    assert per_layer / (8 * 64 * 128) == pytest.approx(costs.SAVED_BYTES[precision], rel=0.1)


def test_disk_is_what_the_miniature_wrote(job, finished):
    _, plan, by_step = planned(job, *SMALL)
    written = {
        "tokens": ["tokens.npy"],
        "sae": ["sae-*.safetensors"],
        "statistics": ["features-*.safetensors"],
        "students": ["student-*.safetensors"],
        "probes": ["concepts.json"],
    }
    for step, patterns in written.items():
        size = sum(path.stat().st_size for pattern in patterns for path in finished.glob(pattern))
        assert by_step[step].disk == pytest.approx(size, rel=0.1), step
    total = sum(path.stat().st_size for path in finished.iterdir())
    assert sum(cost.disk for cost in by_step.values()) == pytest.approx(total, rel=0.1)
    assert plan.n_blocks == len(np.load(finished / "tokens.npy", mmap_mode="r"))
