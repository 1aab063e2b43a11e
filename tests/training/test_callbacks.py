import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_students import N_VOCABULARY, new_teacher, student, weights

from geofloor import BottleneckPredictor, SparseAutoencoder, ToyModel
from geofloor._training.callbacks import HAS_CALLBACKS, FitTasks
from geofloor._training.devices import one_thread
from geofloor.features import _trainer
from geofloor.students import _engine
from geofloor.toy import SparseFeatures

pytestmark = [
    pytest.mark.skipif(not HAS_CALLBACKS, reason="this scikit-learn has no callbacks"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def on_one_thread():
    with one_thread():
        yield


class Recorder:
    """Record all hooks, ask for fitted estimators, and stop at a step."""

    def __init__(self, stop_at=None, use=None):
        self.events, self.rows, self.used = [], [], []
        self.stop_at, self.use = stop_at, use

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, metadata, fitted_estimator):
        self.events.append(f"end {context.task_name}")
        if context.parent is None:
            return False
        self.rows.append(metadata)
        if self.use is not None:
            self.used.append(self.use(fitted_estimator))
        return self.stop_at is not None and metadata["step"] >= self.stop_at


TOKENS = np.random.default_rng(0).integers(N_VOCABULARY, size=(60, 12))


def distilled():
    # Twenty steps with an evaluation before them and after each five.
    return student(new_teacher()), TOKENS, lambda fitted: fitted.score(TOKENS[:4])


ACTIVATIONS = np.random.default_rng(0).normal(size=(1000, 8)) ** 3


def autoencoder(**settings):
    return SparseAutoencoder(16, l0=2, batch_size=20, n_epochs=1, random_state=0, **settings)


def dictionary():
    # 950 rows, after those held out, and 47 steps.
    return autoencoder(), ACTIVATIONS, lambda fitted: fitted.score(ACTIVATIONS[:100])


def toy():
    model = ToyModel(2, n_init=2, n_steps=30, max_rounds=3, tol=0.0, n_eval_samples=512, random_state=0)
    return model, SparseFeatures(5, alpha=0.5), lambda fitted: fitted.floor_


def bottleneck():
    predictor = BottleneckPredictor(new_teacher(), widths=[2, 4], n_positions=64, n_steps=2, random_state=0)
    return predictor, TOKENS, lambda fitted: fitted is None


# For each estimator: a new one, its data, and a use of the fitted estimator; the name and number of its tasks.
CASES = {
    "DistilledStudent": (distilled, "evaluation", 5),
    "SparseAutoencoder": (dictionary, "steps", 3),
    "ToyModel": (toy, "round", 3),
    "BottleneckPredictor": (bottleneck, "width", 4),
}


def results(fitted):
    found = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
    if "curve_" in found:
        found["curve_"] = found["curve_"].to_dict("records")
    return found | (weights(fitted) if "model_" in found else {})


@pytest.mark.parametrize("name", CASES)
def test_callbacks_see_every_task_in_order_and_change_no_bits(name):
    make, task, n_tasks = CASES[name]
    estimator, data, use = make()
    recorder = Recorder(use=use)
    plain, watched = clone(estimator).fit(data), clone(estimator.set_callbacks(recorder)).fit(data)
    each = [f"begin {task}", f"end {task}"]
    assert recorder.events == ["setup", "begin fit", *n_tasks * each, "end fit", "teardown"]
    assert len(recorder.used) == n_tasks
    if name == "BottleneckPredictor":  # needs all widths to predict
        assert recorder.rows == watched.curve_.to_dict("records")
    else:
        assert recorder.used[-1] == use(watched)
        assert recorder.used[0] != recorder.used[-1]
    assert not any("callback_fit" in attribute for attribute in vars(watched))
    expected = results(plain)
    assert expected.keys() == results(watched).keys()
    for attribute, value in results(watched).items():
        if not isinstance(value, torch.nn.Module):
            np.testing.assert_equal(value, expected[attribute], err_msg=attribute)


def test_a_stopped_student_has_the_floor_of_its_last_evaluation_and_stays_stopped(tmp_path, monkeypatch):
    recorder = Recorder(stop_at=8)
    made = student(new_teacher(), checkpoint_path=tmp_path / "checkpoint")
    stopped = clone(made).set_callbacks(recorder).fit(TOKENS)
    assert [row["step"] for row in recorder.rows] == [0, 5, 10]
    assert recorder.rows == stopped.history_
    assert stopped.n_steps_ == 10
    assert stopped.floor_ == pytest.approx(stopped.history_[-1]["eval_kl"], rel=1e-12)
    monkeypatch.setattr(_engine.Distillation, "train_step", None)  # a resumed fit takes no step
    resumed = clone(made).fit(TOKENS)
    assert (resumed.n_steps_, resumed.floor_, resumed.history_) == (10, stopped.floor_, stopped.history_)


def test_a_stopped_autoencoder_stays_stopped(tmp_path, monkeypatch):
    recorder = Recorder(stop_at=40)
    made = autoencoder(checkpoint_path=tmp_path / "checkpoint", checkpoint_every=30)
    stopped = clone(made).set_callbacks(recorder).fit(ACTIVATIONS)
    assert recorder.rows == [stopped.history_[19], stopped.history_[39]]
    assert stopped.n_steps_ == len(stopped.history_) == SparseAutoencoder.steps_done(made.checkpoint_path) == 40
    monkeypatch.setattr(_trainer, "take_step", None)  # a resumed fit takes no step
    resumed = clone(made).set_callbacks(Recorder()).fit(ACTIVATIONS)
    assert resumed.history_ == stopped.history_
    np.testing.assert_array_equal(resumed.decoder_, stopped.decoder_)
    monkeypatch.undo()
    assert stopped.partial_fit(ACTIVATIONS[:100]).n_steps_ == 45


@pytest.mark.filterwarnings("error")
def test_a_stopped_toy_model_has_the_rounds_up_to_there():
    model, features, _ = toy()
    stopped = clone(model).set_callbacks(Recorder(stop_at=60)).fit(features)
    assert (stopped.n_steps_, stopped.converged_) == (60, False)
    with pytest.warns(match="still falling"):
        shorter = clone(model).set_params(max_rounds=2).fit(features)
    np.testing.assert_equal(results(stopped), results(shorter))


def test_callbacks_are_torn_down_if_the_fit_fails():
    class FailingError(Exception):
        pass

    def fail(_):
        raise FailingError

    recorder = Recorder(use=fail)
    with pytest.raises(FailingError):
        student(new_teacher()).set_callbacks(recorder).fit(TOKENS)
    assert recorder.events[-1] == "teardown"


def test_without_callbacks_nothing_is_called():
    tasks = FitTasks(object())
    assert not tasks.is_watched
    tasks.begin(3, "step")
    tasks.begin_task()
    assert tasks.end_task({"step": 1}) is False
    tasks.end()
