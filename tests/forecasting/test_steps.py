import pickle

import numpy as np
import pytest

from geofloor import LossForecaster
from geofloor.forecasting import Anchored, StepsNeeded

# Principal starts of the embedded teacher (benchmarks/results): a test set that the priors were not fitted to.
EMBEDDED = {
    1000: {16: 0.6051, 32: 0.3811, 48: 0.2387, 64: 0.1472},
    2000: {16: 0.5836, 32: 0.3541, 48: 0.2202, 64: 0.1343},
    4000: {16: 0.5645, 32: 0.3326, 48: 0.2070, 64: 0.1265},
    8000: {16: 0.5507, 32: 0.3179, 48: 0.1979, 64: 0.1216},
}


def runs_of(budgets, widths=(16, 32, 64)):
    runs = [(width, EMBEDDED[n][width], n) for n in budgets for width in widths]
    return np.transpose(runs)


@pytest.fixture(scope="module")
def several():
    widths, losses, steps = runs_of((1000, 2000, 4000))
    return LossForecaster(Anchored(1.396)).fit(widths, losses, n_steps=steps, n_tokens=2048)


def test_runs_of_several_budgets_forecast_other_widths_and_budgets(several):
    for n in (4000, 8000):
        losses, ends = several.predict(list(EMBEDDED[n]), n_steps=n, return_interval=True)
        truth = np.array(list(EMBEDDED[n].values()))
        np.testing.assert_allclose(losses, truth, rtol=0.05)  # 48 has no run
        np.testing.assert_allclose(losses[[0, 1, 3]], truth[[0, 1, 3]], rtol=0.02)
        assert ((ends[:, 0] < truth) & (truth < ends[:, 1])).all()
    np.testing.assert_array_equal(several.predict([16, 48]), several.predict([16, 48], n_steps=4000))
    spreads = [np.ptp(np.log(several.predict([48], n_steps=n, return_interval=True)[1])) for n in (4000, 8000, 64000)]
    assert spreads[0] < spreads[1] < spreads[2]
    assert several.min_width(0.3) > several.min_width(0.3, n_steps=16000) > 0
    assert several.decide(48, 0.2).n_steps == 4000
    assert several.decide(48, 0.2, n_steps=16000).loss < several.decide(48, 0.2).loss
    again = pickle.loads(pickle.dumps(several))
    np.testing.assert_array_equal(again.predict([48], n_steps=8000), several.predict([48], n_steps=8000))


def test_a_budget_alone_changes_nothing():
    widths, losses, _ = runs_of((4000,))
    plain = LossForecaster(Anchored(1.396)).fit(widths, losses)
    fitted = LossForecaster(Anchored(1.396)).fit(widths, losses, n_steps=4000)
    for mine, other in zip(*(each.predict([48], return_interval=True) for each in (plain, fitted)), strict=True):
        np.testing.assert_array_equal(mine, other)
    for each in (plain, fitted):
        with pytest.raises(ValueError, match="n_steps=8000 can't be forecast.*give it runs of two budgets or more"):
            each.predict([48], n_steps=8000)
        with pytest.raises(ValueError, match="runs of two budgets or more"):
            each.min_steps(0.2, 48)
    np.testing.assert_array_equal(fitted.predict([48], n_steps=4000), plain.predict([48]))


def test_errors_of_the_steps_enter_the_intervals():
    """A long run at one width leaves the others uncertain, together and each for itself."""
    widths, losses, steps = runs_of((1000,))
    one, all_ = (
        LossForecaster(Anchored(1.396)).fit(
            [*widths, *long],
            [*losses, *(EMBEDDED[8000][width] for width in long)],
            n_steps=[*steps, *[8000] * len(long)],
        )
        for long in ([32], [16, 32, 64])
    )
    spreads = [np.ptp(np.log(each.predict([32, 64], return_interval=True)[1]), axis=1) for each in (one, all_)]
    assert spreads[0][1] > 1.15 * spreads[1][1]
    assert spreads[0][0] < 1.05 * spreads[1][0]


def test_steps_needed_invert_the_forecast(several):
    needed = several.min_steps(0.3, 32, level=0.8)
    assert several.predict([32], n_steps=needed.n_steps)[0] == pytest.approx(0.3, rel=2e-3)
    _, ends = several.predict([32], n_steps=needed.low, return_interval=True, level=0.8)
    assert ends[0, 0] == pytest.approx(0.3, rel=1e-2)
    assert needed.low < needed.n_steps < needed.high
    assert 16_000 < needed.n_steps < 64_000  # 32,000 steps ended at 0.3008
    never = several.min_steps(0.15, 32)
    assert never.n_steps == np.inf
    assert 0.15 < never.limit == several.predict([32], n_steps=np.inf)[0]
    assert several.min_steps(0.5, 32).n_steps == 1000


def test_steps_needed_read_as_sentences():
    needed = StepsNeeded(48, 0.2, 8123.0, 4321.0, 16200.0, 0.9, 0.15, 150.0, 6e5)
    start = "a student of width 48 is forecast to reach 0.2 nats per token after"
    assert str(needed) == f"By the trend over the steps {start} about 8,100 steps (4,300 to 16,000 at 90%)."
    assert "(4,300 or more, perhaps never, at 90%)" in str(needed._replace(high=np.inf))
    assert str(needed._replace(n_steps=150.0)).endswith(f"{start} 150 steps or fewer.")
    assert str(needed._replace(n_steps=np.inf, low=np.inf, high=np.inf, limit=0.24)) == (
        "Not by more steps: the forecast for a student of width 48 falls toward 0.24 nats per token, and is above 0.2 "
        "after 600,000 steps."
    )
    assert "Not by more steps, or perhaps after 4,300 steps or more: the" in str(needed._replace(n_steps=np.inf))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"n_steps": [100]}, r"n_steps has shape \(1,\) for 2 runs"),
        ({"n_steps": 0}, "n_steps: 0 is below 1"),
        ({"n_steps": [100, 150.5]}, "n_steps holds 150.5; steps are whole"),
        ({"n_tokens": 0.5}, "n_tokens=0.5 must be a whole number"),
        ({"n_steps": [100, 200]}, "gives each width one budget"),
    ],
)
def test_bad_budgets_are_named(budget, message):
    with pytest.raises(ValueError, match=message):
        LossForecaster("power").fit([8, 16], [0.8, 0.5], **budget)
