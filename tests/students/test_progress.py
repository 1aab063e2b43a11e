import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from small_students import curve, new_teacher

from geofloor import DistilledStudent
from geofloor.students import distill_widths
from geofloor.students._progress import remaining_fall, warn_of_training

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


def test_the_remaining_fall_is_measured_before_the_decay():
    falling = curve((0, 9.0), (25, 2.0), (50, 1.5), (75, 0.2), (100, 0.1))
    assert remaining_fall(falling, 100) == pytest.approx(0.25)
    assert remaining_fall(curve((0, 9.0), (20, 2.0), (60, 1.0), (100, 0.1)), 100) == pytest.approx(0.5)
    assert remaining_fall(curve((0, 9.0), (25, 1.0), (50, 1.5), (100, 0.1)), 100) == 0.0
    assert remaining_fall(curve((0, 0.0), (25, 0.0), (50, 0.0), (100, 0.0)), 100) == 0.0
    for sparse in (curve((0, 9.0), (100, 1.0)), curve((0, 9.0), (50, 1.0), (100, 1.0))):
        assert np.isnan(remaining_fall(sparse, 100))


def test_twice_the_steps_took_off_no_more_in_the_runs_on_record():
    ratios = []
    for path in (Path(__file__).parents[2] / "benchmarks" / "results").glob("*_floors*.json"):
        runs = {(run["width"], run["seed"], run["n_steps"]): run for run in json.loads(path.read_text())["runs"]}
        for (width, seed, n_steps), run in runs.items():
            longer = runs.get((width, seed, 2 * n_steps))
            if longer is not None:
                fall = remaining_fall(curve(*run["history"]), n_steps)
                ratios.append((1 - longer["floor"] / run["floor"]) / fall)
    assert len(ratios) > 40
    assert max(ratios) < 1.0


@pytest.fixture(scope="module")
def trained():
    """Train a student of a one-block teacher until it has nothing left to learn."""
    simple = new_teacher(num_hidden_layers=1, vocab_size=16, intermediate_size=16)
    text = np.random.default_rng(0).integers(16, size=(400, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DistilledStudent(simple, 8, n_steps=1500, random_state=0, device="cpu").fit(text)


def test_a_student_that_more_steps_would_not_lower_has_converged(trained):
    assert trained.converged_ is True
    assert 0 <= trained.remaining_fall_ <= 0.05
    assert trained.zero_width_loss_ > 2 * trained.floor_ > 0


def test_a_student_that_is_its_teacher_has_converged(teacher, tokens):
    fitted = DistilledStudent(teacher, 16, n_steps=100, learning_rate=1e-6, device="cpu").fit(tokens)
    assert fitted.floor_ < 1e-3 * fitted.zero_width_loss_
    assert fitted.converged_ is True


def test_ten_steps_converge_nowhere_and_say_so(teacher, tokens):
    with pytest.warns(ConvergenceWarning, match="width 16: n_steps=10 are too few to learn from") as record:
        fitted = DistilledStudent(teacher, 16, n_steps=10, learning_rate=1e-6, device="cpu").fit(tokens)
    assert fitted.converged_ is False
    assert [each.filename for each in record] == [__file__]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16, "learning_rate": 3e-2}, r"at step 0 and rose to floor_=[\d.]+; lower learning_rate=0.03"),
        ({"init": "random", "learning_rate": 3e-4, "optimizer": "adamw"}, "no better than one distribution for all"),
    ],
)
def test_badly_trained_students_are_named_once_with_a_remedy(teacher, tokens, changes, message):
    settings = {"width": 8, "n_steps": 100, "random_state": 0, "device": "cpu", **changes}
    with pytest.warns(ConvergenceWarning, match=message) as record:
        fitted = DistilledStudent(teacher, **settings).fit(tokens)
    assert fitted.converged_ is False
    assert [each.filename for each in record] == [__file__]


def test_several_students_give_one_warning(teacher, tokens):
    with pytest.warns(ConvergenceWarning) as record:
        distill_widths(teacher, tokens, [8, 16], n_steps=10, device="cpu")
    assert [each.filename for each in record] == [__file__]
    assert str(record[0].message).startswith("Students of widths 8, 16: n_steps=10 are too few")


def lesson(**changes):
    values = {
        "width": 8, "n_steps_": 400, "learning_rate_": 0.01, "floor_": 0.2, "zero_width_loss_": 1.0,
        "remaining_fall_": 0.3, "history_": curve((0, 0.9), (200, 0.4), (400, 0.2)),
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"remaining_fall_": 0.6}, "still falling, by 60% .* loss after n_steps=400, not the floor. Set n_steps=800"),
        ({"remaining_fall_": float("nan")}, None),
        (
            {"floor_": 1.1, "history_": curve((0, 1.2), (400, 1.1))},
            "which loses 1 nats per token. Change learning_rate",
        ),
        (
            {"history_": curve((0, 0.9), (200, 0.1), (400, 0.2))},
            "0.1 at step 200 and rose to floor_=0.2; give more text",
        ),
        ({"history_": curve((0, 0.9), (200, 0.195), (400, 0.2))}, None),
        ({"n_steps_": 99}, "n_steps=99 are too few"),
    ],
)
def test_each_fault_of_a_learning_curve_has_its_remedy(changes, message):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        warn_of_training([lesson(**changes)])
    if message is None:
        assert record == []
    else:
        assert re.search(message, str(record[0].message))
