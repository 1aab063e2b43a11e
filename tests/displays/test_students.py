import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from geofloor import DistilledStudent
from geofloor.displays import DistillationDisplay, DistillationSummaryDisplay, DistilledFloorsDisplay


def test_students_are_drawn_as_they_were_trained(students):
    display = DistillationDisplay.from_students(students)
    assert list(display.lines_) == [(8, 0), (16, 0), (16, 3)]
    for student, key in zip(students, ((16, 3), (8, 0), (16, 0)), strict=True):
        expected = [[row["step"], row["eval_kl"]] for row in student.history_]
        np.testing.assert_array_equal(display.lines_[key].get_xydata(), expected)
        assert display.floor_lines_[key].get_ydata()[0] == student.floor_
    training = DistillationDisplay.from_students(students, loss="train_kl")
    assert training.lines_[16, 0].get_xdata().tolist() == [2, 4]  # none before the first step
    assert training.ax_.get_ylabel() == "training KL (nats per token)"

    over_width = DistilledFloorsDisplay.from_students(students)
    assert over_width.line_.get_ydata()[0] == students[1].floor_
    summary = DistillationSummaryDisplay.from_students(students)
    assert list(summary.seeds_.lines_) == [(16, 0), (16, 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda history, floors: (history.head(0), floors), "history has no rows"),
        (lambda history, floors: (history.drop(columns="eval_kl"), floors), "history lacks the columns"),
        (lambda history, floors: (history.assign(eval_kl=np.nan), floors), "are not finite"),
        (lambda history, floors: (history.drop(columns="seed"), floors), "history has several rows"),
        (lambda history, floors: (history, floors.head(0)), "floors has no rows"),
        (lambda history, floors: (history, floors.drop(columns="floor")), "floors lacks the columns"),
        (lambda history, floors: (history, floors.drop(columns="seed")), "floors has several rows for width=16"),
        (lambda history, floors: (history, floors.assign(width=64 + floors["width"])), "width=72, seed=0"),
    ],
)
def test_incomplete_tables_are_refused(history, floors, change, message):
    history, floors = change(history, floors)
    for display in (DistillationSummaryDisplay, DistillationDisplay):
        for ask in (display.plot, display.frame):
            with pytest.raises(ValueError, match=message):
                ask(display(history=history, floors=floors))


def test_students_that_cannot_be_drawn_are_refused(students):
    for display in (DistillationDisplay, DistilledFloorsDisplay, DistillationSummaryDisplay):
        with pytest.raises(ValueError, match="students is empty"):
            display.from_students([])
        with pytest.raises(ValueError, match="two of width=16 and random_state=3"):
            display.from_students([*students, students[0]])
    with pytest.raises(ValueError, match="loss='loss' is not in the history"):
        DistillationDisplay.from_students(students, loss="loss")
    with pytest.raises(NotFittedError):
        DistillationDisplay.from_students([DistilledStudent(students[0].teacher, 8)])
