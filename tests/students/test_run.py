import numpy as np
import pytest
from sklearn.base import clone
from small_students import assert_same, student

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


def test_the_floor_is_the_mean_of_the_last_tenth_of_evaluations(teacher, tokens):
    fitted = student(teacher, eval_every=1, n_steps=20).fit(tokens)
    curve = [row["eval_kl"] for row in fitted.history_]
    assert [row["step"] for row in fitted.history_] == list(range(21))
    assert fitted.floor_ == pytest.approx(np.mean(curve[-2:]), rel=1e-12)
    assert curve[-1] < curve[0]
    assert -fitted.score(tokens[-6:]) == pytest.approx(curve[-1], rel=1e-6)
    each = [-fitted.score(row[None]) for row in tokens[-6:]]
    assert fitted.floor_error_ == pytest.approx(np.std(each, ddof=1) / np.sqrt(6), rel=0.05)
    rates = [row["learning_rate"] for row in fitted.history_]
    assert rates[1:4] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert fitted.n_parameters_ == fitted.model_.num_parameters()
    assert fitted.n_steps_ == 20


def test_a_student_can_start_from_the_teachers_principal_directions(teacher, tokens, tmp_path):
    fitted = student(teacher, width=16, init="principal", checkpoint_path=tmp_path / "checkpoint").fit(tokens)
    assert fitted.history_[0]["eval_kl"] == pytest.approx(0, abs=1e-5)  # at the teacher's own width it is the teacher
    assert_same(clone(fitted).fit(tokens), fitted)
