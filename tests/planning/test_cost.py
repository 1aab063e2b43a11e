import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import N_LAYERS, N_VOCABULARY, WIDTH, gpt_neox, llama
from torch.optim.optimizer import register_optimizer_step_post_hook

from geofloor.features import SparseAutoencoder
from geofloor.language_models import AblationPredictor
from geofloor.planning import _cost, _stages, _timing
from geofloor.planning._cost import cost_table, estimate_cost
from geofloor.planning._settings import PlanSettings
from geofloor.planning._text import PlanTokens
from geofloor.students import DistilledStudent

LENGTH = 16
SETTINGS = PlanSettings(
    widths=(4, 8, 12), run_widths=(8, 12), budgets=(3, 40), batch_size=2, length=LENGTH, init="random"
)


@pytest.fixture
def text(rng):
    return PlanTokens(*(rng.integers(N_VOCABULARY, size=(n, LENGTH)) for n in (24, 5, 30)))


@pytest.fixture
def seconds_of(monkeypatch):
    """Return a function that lets pieces take given seconds, and all others none."""

    def set_seconds(**given):
        def pick(kind, *counted):
            names = kind._fields[: len(kind._fields) - len(counted)]
            return kind(*(float(given.get(name, 0.0)) for name in names), *counted)

        monkeypatch.setattr(_timing.Pieces, "teacher", lambda self: pick(_timing.TeacherSeconds))
        monkeypatch.setattr(_timing.Pieces, "student", lambda self, width: pick(_timing.StudentPieces, width, 0, 0, 0))
        monkeypatch.setattr(_timing.Pieces, "bottleneck", lambda self, *_: pick(_timing.BottleneckSeconds))
        monkeypatch.setattr(_timing.Pieces, "bottleneck_start", lambda self, *_: 0.0)
        monkeypatch.setattr(_timing.Pieces, "features", lambda self, *_, **__: pick(_timing.FeatureSeconds))

    return set_seconds


def estimated(module, text, settings, **options):
    return {each.stage: each for each in estimate_cost(module, text, settings, layer=1, **options)}


def sequences_read(module, run):
    """Count the sequences that the teacher reads."""
    n = 0

    def count(_, given, named):
        nonlocal n
        ids = given[0] if given else named["input_ids"]
        n += len(ids) if ids.shape[1] == LENGTH else 0  # others only probe the model

    with module.base_model.register_forward_pre_hook(count, with_kwargs=True):
        run()
    return n


@pytest.mark.filterwarnings("ignore::UserWarning")  # so few steps and rows
@pytest.mark.parametrize("stage", ["bottleneck", "students", "features"])
def test_counts_the_sequences_that_the_teacher_reads(stage, text, seconds_of, rng):
    module, settings = gpt_neox(), replace(SETTINGS, init="auto", features=stage == "features")
    weights = rng.standard_normal((4096, WIDTH)).astype(np.float32)
    sae = SparseAutoencoder.from_weights(weights, np.zeros(4096), weights, np.zeros(WIDTH), activation="topk", l0=16)
    given = {"device": "cpu", "verbose": 0}
    run = {
        "bottleneck": lambda: _stages.measure_bottleneck(module, text, settings, **given),
        "students": lambda: _stages.train_students(
            module,
            text,
            settings,
            [(w, n) for w in settings.run_widths for n in settings.budgets],
            folder=None,
            **given,
        ),
        "features": lambda: _stages.measure_features(
            module, text, settings, layer=1, autoencoder=sae, folder=None, done=lambda line: None, **given
        ),
    }[stage]
    seconds_of(forward=1, extraction=1, ablation=1)
    seconds = estimated(module, text, settings, trains_autoencoder=False)[stage].seconds
    assert sequences_read(module, run) == pytest.approx(seconds, abs=5)
    assert seconds > 20


def test_pieces_of_students_count_once_per_step_sequence_and_evaluation(text, seconds_of):
    def of(**pieces):
        seconds_of(**pieces)
        return estimated(llama(), text, replace(SETTINGS, features=False))["students"].seconds

    assert of(start=1) == 4
    assert of(update=1) == 2 * (3 + 40)
    assert of(step=1) == 2 * 2 * (3 + 40)
    assert of(evaluation=1) == 2 * 5 * (4 + 21)  # before the first step, and after each of 3 or every second of 40


def test_the_bottleneck_grows_with_its_widths(text, seconds_of):
    seconds_of(step=1)
    few, more = (
        estimated(llama(), text, replace(SETTINGS, widths=widths, run_widths=(), features=False))["bottleneck"].seconds
        for widths in ((4,), (4, 8, 12))
    )
    assert (few, more) == (2 * 200, 4 * 200)  # those of the table and one below the teacher's


@pytest.mark.filterwarnings("ignore::UserWarning")  # so few steps and rows
@pytest.mark.parametrize("teacher", [gpt_neox, llama])
def test_students_have_the_numbers_that_their_optimizers_keep(teacher, text):
    pieces = _timing.Pieces(teacher(), text, SETTINGS, itertools.count().__next__)
    found = pieces.student(8)
    student = DistilledStudent(pieces.module, 8, n_steps=1, batch_size=2, init="random", device="cpu")
    kept = {}

    def count(optimizer, *_):
        kept[id(optimizer)] = sum(
            value.numel() for state in optimizer.state.values() for name, value in state.items() if name != "step"
        )

    handle = register_optimizer_step_post_hook(count)
    student.fit(text.trained)
    handle.remove()
    assert (found.n_parameters, found.n_moments) == (student.n_parameters_, sum(kept.values()))
    assert found.saved >= LENGTH * 8 * N_LAYERS * 4  # at least one number per dimension of each block


@pytest.mark.parametrize("teacher", [gpt_neox, llama])
def test_estimates_are_positive_for_the_stages_asked_for(teacher, text, monkeypatch):
    monkeypatch.setattr(_timing, "_FILLED", 0.01)
    module = teacher()
    weights, drawn = {name: each.clone() for name, each in module.state_dict().items()}, torch.get_rng_state()
    costs = estimate_cost(module, text, replace(SETTINGS, init="auto"), layer=1)
    assert all(torch.equal(weights[name], each) for name, each in module.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert cost_table(costs)["stage"].tolist() == ["bottleneck", "students", "features"]
    assert all(np.isfinite(each[1:3]).all() and min(each[1:3]) > 0 for each in costs)
    assert [each.disk > 0 for each in costs] == [False, True, True]
    some = estimated(module, text, replace(SETTINGS, run_widths=(), features=False))
    assert list(some) == ["bottleneck"]


def test_a_teacher_without_students_has_no_cost_of_them(text, seconds_of, monkeypatch):
    seconds_of()
    monkeypatch.setattr(_stages, "reason_for_no_students", lambda *_: "there is no rule")
    assert list(estimated(gpt_neox(), text, replace(SETTINGS, features=False))) == ["bottleneck"]


def test_memory_and_disk_grow_with_what_is_held(text, seconds_of):
    seconds_of()
    module = gpt_neox()
    base, longer = (
        estimated(module, text, replace(SETTINGS, budgets=budgets)) for budgets in ((3, 40), (3, 40, 80, 160))
    )
    assert longer["students"].disk == 2 * base["students"].disk
    assert longer["students"].memory > base["students"].memory
    more = estimated(module, text._replace(measured=np.tile(text.measured, (2, 1))), SETTINGS)
    assert more["features"].disk - base["features"].disk >= 4 * WIDTH * text.measured[:, 1:].size
    assert more["bottleneck"].memory > base["bottleneck"].memory


def test_numbers_are_those_of_the_stages():
    assert (_cost._POSITIONS, _cost._FITTED, _cost._ROWS) == (_stages._POSITIONS, _stages._FITTED, _stages._ROWS)
    assert _timing._FORWARD == _stages._FORWARD
    assert DistilledStudent(None, 8).eval_sequences == _cost._EVALUATED
    assert AblationPredictor(None, 0).n_points + 2 == _cost._ABLATIONS


def test_a_timer_leaves_out_the_first_short_call():
    taken = iter([0.5, *[0.01] * 100])
    now = 0.0

    def piece():
        nonlocal now
        now += next(taken)

    assert _timing.Timer(torch.device("cpu"), lambda: now).mean(piece) == pytest.approx(0.01)
