import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator

from geofloor import FloorPredictor, LossForecaster
from geofloor.datasets import load_paper_tables
from geofloor.forecasting import AboveBottleneck, AnchoredBothEnds, Calibrated, Decision, PowerOfWidth

FLOOR = FloorPredictor(alpha=0.992).fit(np.exp(-np.arange(30_000) / 6_000))
TABLE_3 = load_paper_tables().distillation
GO, NOT = "go at this budget", "not at this budget"


class EmbeddedTeachersBound(BaseEstimator):
    """The bottleneck of the embedded teacher, as benchmarks/results/softmax_bottleneck.txt has it."""

    zero_width_loss_, critical_width_, rank_, temperature = 1.396, 128.0, 128, 2.0
    at = np.array([0, 8, 16, 24, 32, 48, 64, 96, 128])
    low = np.array([1.396, 0.4463, 0.2654, 0.1818, 0.1293, 0.0693, 0.0372, 0.0085, 0.0])
    high = np.array([1.396, 0.4867, 0.3051, 0.2092, 0.1487, 0.0803, 0.0441, 0.0104, 0.0])
    curve_ = pd.DataFrame({"width": at, "standard_error": 0.0})

    def fit(self, tokens, y=None):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def min_width(self, loss):
        return int(self.at[np.argmax(self.high <= loss)])

    def predict(self, widths, *, return_bounds=False):
        bounds = np.column_stack([np.interp(widths, self.at, ends) for ends in (self.low, self.high)])
        middle = np.sqrt(bounds.prod(axis=1))
        return (middle, bounds) if return_bounds else middle


BOUNDED = AboveBottleneck(EmbeddedTeachersBound())


@settings(max_examples=30)
@given(target=st.floats(0.05, 2.0), width=st.integers(1, 3000))
def test_decisions_agree_with_the_interval(target, width):
    fitted = LossForecaster(Calibrated(FLOOR)).fit(TABLE_3["width"], TABLE_3["kl"])
    decision = fitted.decide(width, target)
    loss, interval = fitted.predict([width], return_interval=True)
    assert (decision.loss, decision.low, decision.high) == (loss[0], *interval[0])
    assert (decision.answer == NOT) == (decision.low > target)
    assert decision.extrapolated == (not 64 <= width <= 2048)
    if 64 <= width <= 2048:
        assert (decision.answer == GO) == (decision.high <= target)
    if width < 64:
        assert decision.answer != GO  # there is no run near
    assert decision.min_width == fitted.min_width(target)
    if decision.answer == GO:
        assert 0 < decision.safe_width <= width
    assert str(decision).startswith(f"{decision.answer}: a student of width {width} ")
    assert ("extrapolated: the runs tell about widths 64 to 2048" in str(decision)) == decision.extrapolated


def test_decisions_read_as_sentences_that_claim_no_more_than_is_known():
    decision = Decision(256, 0.8, NOT, 1.0, 0.95, 1.05, 0.9, 410, 450, None, 600, 2048, (64, 2048), (64, 2048))
    assert str(decision) == (
        "not at this budget: a student of width 256 is not forecast to reach 0.8 nats per token after 600 steps of "
        "2,048 tokens. Its forecast is 1 (0.95 to 1.05 at 90%). More steps may lower it; runs of several budgets "
        "tell by how much. The smallest width forecast to reach it is 410; with its whole interval, 450."
    )
    assert "nats per token after 600 steps. Its" in str(decision._replace(n_tokens=None))
    assert "nats per token when trained as these runs. Its" in str(decision._replace(n_steps=None))
    assert "after any number of steps" in str(decision._replace(n_steps=np.inf))
    assert "No width from 64 to 2048 is forecast to reach it." in str(decision._replace(min_width=-1, safe_width=-1))
    assert "is 64 or less; with its whole interval, none does." in str(decision._replace(min_width=64, safe_width=-1))
    assert "is 3000 (extrapolated); with" in str(decision._replace(min_width=3000, searched=(64, 4000)))
    assert "No student of this width gets below 0.3." in str(decision._replace(least=0.3))
    impossible = decision._replace(answer="impossible", least=0.9)
    assert str(impossible).startswith(
        "impossible: a student of width 256 can't reach 0.8 nats per token, however it is trained: none gets below 0.9."
        " Its forecast after 600 steps of 2,048 tokens is 1 (0.95"
    )
    assert "is forecast to reach 0.8 nats" in str(decision._replace(answer=GO))
    assert "may or may not reach 0.8 nats" in str(decision._replace(answer="uncertain"))


def test_more_steps_are_never_called_impossible():
    """After 600 steps width 48 was far from 0.2 nats per token; it reached 0.198 after 8,000 (README, findings)."""
    quick = LossForecaster(BOUNDED).fit([32, 96], [0.3798, 0.0559], n_steps=600, n_tokens=2048).decide(48, 0.2)
    assert quick.answer == NOT
    assert "can't" not in str(quick)
    assert "after 600 steps of 2,048 tokens" in str(quick)
    assert "More steps may lower it" in str(quick)
    longer = LossForecaster(BOUNDED).fit([32, 96], [0.3179, 0.0320], n_steps=8000).decide(48, 0.2)
    assert longer.answer == "uncertain"
    # With the runs of two budgets the steps are forecast.
    widths, losses = [32, 96] * 2, [0.3811, 0.0500, 0.3541, 0.0390]
    both = LossForecaster(BOUNDED).fit(widths, losses, n_steps=[1000, 1000, 2000, 2000])
    assert both.decide(48, 0.2).steps.low < 8000 < both.decide(48, 0.2).steps.high
    assert "after about" in str(both.decide(48, 0.2))
    assert both.decide(48, 0.068).answer == NOT  # the bound of 0.0693 can itself be 5% too high
    impossible = both.decide(48, 0.06)
    assert impossible.answer == "impossible"
    assert "can't reach 0.06 nats per token, however it is trained: none gets below 0.0693" in str(impossible)


@pytest.mark.parametrize("law", ["power", "auto"])
def test_no_width_that_the_papers_students_reached_is_refused(law):
    fitted = LossForecaster(law, teacher_width=1024).fit([128, 1024], [1.320, 0.586])
    assert fitted.decide(512, 0.75).answer == "uncertain"  # it ended at 0.733
    students = list(zip(TABLE_3["width"], TABLE_3["kl"], strict=True))
    for runs in itertools.combinations(students, 2):
        fitted = LossForecaster(law, teacher_width=1024).fit(*zip(*runs, strict=True))
        widths, losses = zip(*({*students} - {*runs}), strict=True)
        _, ends = fitted.predict(widths, return_interval=True)  # decisions go by these
        assert (ends[:, 0] <= losses).all()
        for width, loss, (_, high) in zip(widths, losses, ends, strict=True):
            assert high > 0.95 * loss or fitted.decide(width, 0.95 * loss).answer != GO


@pytest.mark.parametrize("law", ["auto", "power"])
def test_no_narrow_student_safely_reaches_anything(law):
    fitted = LossForecaster(law, teacher_width=1024).fit(TABLE_3["width"], TABLE_3["kl"])
    for target in (1.4, 2.0, 50.0):
        decision = fitted.decide(1, target)
        assert decision.answer != GO
        assert decision.min_width >= 64
        assert decision.safe_width >= 64
        assert "It is extrapolated: the runs tell about widths 64 to 2048." in str(decision)
    assert "64 or less" in str(fitted.decide(64, 50.0))
    with pytest.raises(ValueError, match="width=2048 is over the teacher's, teacher_width=1024"):
        fitted.decide(2048, 0.5)
    assert fitted.decide(1024, 0.5).searched == (64, 1024)


def test_runs_and_questions_that_contradict_the_bound_are_named():
    with pytest.raises(ValueError, match=r"loss 0.001 at width 96, where no student .* below 0.0085.*temperature"):
        LossForecaster(BOUNDED).fit([32, 96], [0.05, 0.001])
    with pytest.raises(ValueError, match=r"loss 1.52, which is not below .*without the factor T² \(4 at temp"):
        LossForecaster(BOUNDED).fit([32, 96], [4 * 0.38, 4 * 0.056])
    fitted = LossForecaster(BOUNDED).fit([32, 96], [0.38, 0.056])
    with pytest.warns(UserWarning, match="width 128, which is not below bound.critical_width_=128"):
        decision = fitted.decide(128, 1e-4)
    assert decision.answer == "uncertain"
    assert decision.high > 0.05
    assert "0 to 0 " not in str(decision)
    with pytest.raises(ValueError, match="width=256 is over the teacher's, bound.critical_width_=128"):
        fitted.decide(256, 0.01)


@pytest.mark.parametrize(
    ("law", "X", "y", "message"),
    [
        (
            BOUNDED,
            [32, 256],
            [0.38, 0.05],
            "X holds the width 256, and the teacher has bound.critical_width_=128. A st",
        ),
        (AnchoredBothEnds(1.4, 128), [32, 200], [0.38, 0.05], "width 200, and the teacher has teacher_width=128"),
        (PowerOfWidth(), [32, 2000], [0.38, 0.05], "width 2000, and the teacher has teacher_width=1024"),
    ],
)
def test_runs_wider_than_the_teacher_are_refused(law, X, y, message):
    with pytest.raises(ValueError, match=message):
        LossForecaster(law, teacher_width=1024).fit(X, y)


def test_the_factor_of_the_temperature_is_suspected():
    with pytest.warns(UserWarning, match=r"width 32 have the losses 0.38 and 1.5, which differ by about T² = 4"):
        LossForecaster("power").fit([32, 32, 8], [0.38, 1.5, 2.0])
    with pytest.warns(UserWarning, match=r"rises with width.*factor T² in none"):
        LossForecaster("power").fit([32, 96], [0.38, 4 * 0.1])


def test_exchanged_questions_are_named():
    fitted = LossForecaster("power").fit([32, 96], [0.38, 0.056])
    with pytest.raises(ValueError, match="width=0.2 and target=48 seem to be exchanged; the width comes first"):
        fitted.decide(0.2, 48)
    with pytest.raises(ValueError, match="teacher_width=0 must be"):
        LossForecaster(teacher_width=0).fit([32, 96], [0.38, 0.056])
