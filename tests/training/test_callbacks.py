import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_students import N_VOCABULARY, new_teacher, student, weights

from geofloor._training.callbacks import HAS_CALLBACKS, FitTasks
from geofloor._training.devices import one_thread
from geofloor.students import _engine

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


# For each estimator: a new one, its data, and a use of the fitted estimator; the name and number of its tasks.
CASES = {"DistilledStudent": (distilled, "evaluation", 5)}


def results(fitted):
    found = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
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
