import re

import numpy as np
import pytest
from small_students import N_VOCABULARY, new_teacher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from geofloor import DistilledStudent, SparseAutoencoder
from geofloor._training.reports import check_report_to
from geofloor.features import _together, fit_autoencoders
from geofloor.students import distill_widths

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
ACTIVATIONS = np.random.default_rng(0).normal(size=(1000, 8)) ** 3
TOKENS = np.random.default_rng(0).integers(N_VOCABULARY, size=(60, 12))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def curves(run):
    """Return the steps and values of each curve of a run."""
    events = EventAccumulator(str(run)).Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def close_to(rows, name):
    return [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if row[name] is not None]


def test_tensorboard_gets_the_history_of_an_autoencoder(folder):
    sae = SparseAutoencoder(16, l0=2, batch_size=20, n_epochs=1, random_state=0)
    reported = SparseAutoencoder(**sae.get_params() | {"report_to": ["tensorboard"]}).fit(ACTIVATIONS)
    (run,) = folder.iterdir()
    assert re.fullmatch(r"SparseAutoencoder-\d{8}-\d{6}-[0-9a-f]{4}", run.name)
    assert reported.n_steps_ == 47
    read = [reported.history_[step - 1] for step in (20, 40, 47)]
    assert curves(run) == {f"train/{name}": close_to(read, name) for name in read[0] if name != "step"}
    np.testing.assert_array_equal(reported.decoder_, sae.fit(ACTIVATIONS).decoder_)


def test_students_of_one_pass_share_a_run_and_have_curves_of_their_own(folder):
    settings = {"n_steps": 8, "eval_every": 2, "batch_size": 4, "warmup_steps": 1}
    students = distill_widths(new_teacher(), TOKENS, [4, (8, 1)], report_to="tensorboard", **settings)
    (run,) = folder.iterdir()
    expected = {}
    for student, label in zip(students, ["width_4_seed_0", "width_8_seed_1"], strict=True):
        for name, curve in {
            "eval_kl": "eval/kl",
            "train_kl": "train/kl",
            "learning_rate": "train/learning_rate",
        }.items():
            expected[f"{curve}/{label}"] = close_to(student.history_, name)
    assert curves(run) == expected


def test_a_fit_that_only_reads_its_checkpoint_leaves_no_run(folder, tmp_path):
    settings = {"n_steps": 4, "eval_every": 2, "batch_size": 4, "warmup_steps": 1, "random_state": 0}
    student = DistilledStudent(new_teacher(), 4, checkpoint_path=tmp_path / "checkpoint", **settings).fit(TOKENS)
    again = DistilledStudent(**student.get_params() | {"report_to": "tensorboard"}).fit(TOKENS)
    assert again.floor_ == student.floor_
    assert not folder.exists()


def test_each_fit_has_a_run_of_its_own(folder):
    sae = SparseAutoencoder(16, l0=2, batch_size=200, n_epochs=1, random_state=0, report_to="tensorboard")
    fit_autoencoders([sae, SparseAutoencoder(**sae.get_params() | {"random_state": 1})], ACTIVATIONS)
    first, second = folder.iterdir()
    assert curves(first).keys() == curves(second).keys()
    assert curves(first) != curves(second)


@pytest.mark.parametrize(
    ("report_to", "error", "message"),
    [
        ("tensorbord", ValueError, "report_to='tensorbord' is no tracker that transformers knows; .*tensorboard"),
        (["tensorboard", 3], ValueError, "report_to=.*3.* is no tracker"),
        (3, TypeError, "report_to=3 is a int; give a name, a list of names, or None"),
        ("comet_ml", ImportError, "report_to='comet_ml' needs comet_ml, which is not installed"),
    ],
)
def test_unknown_trackers_are_refused_before_any_work(report_to, error, message):
    with pytest.raises(error, match=message):
        SparseAutoencoder(report_to=report_to).fit(ACTIVATIONS)
    with pytest.raises(error, match=message):
        DistilledStudent(new_teacher(), 4, report_to=report_to).fit(TOKENS)


def test_a_tracker_of_one_run_follows_one_autoencoder_at_a_time(monkeypatch):
    monkeypatch.setattr(_together, "check_report_to", lambda name: [name])
    sae = SparseAutoencoder(16, report_to="wandb")
    with pytest.raises(ValueError, match="report_to='wandb' follows one fit at a time; use 'tensorboard'"):
        fit_autoencoders([sae, SparseAutoencoder(**sae.get_params())], ACTIVATIONS)


def test_none_names_no_tracker():
    assert check_report_to("none") == check_report_to(None) == check_report_to([]) == []
