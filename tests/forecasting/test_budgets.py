import pickle

import numpy as np
import pytest
from sklearn.base import clone

from geofloor import LossForecaster
from geofloor.forecasting import Anchored, BudgetForecaster, StepsNeeded

ZERO = 1.4
WIDTHS = np.array([8, 16, 48, 96])
LONG = np.array([0.8, 0.55, 0.2, 0.04])  # after 8,000 steps


def made(n_steps, *, power=0.6, rate=0.06):
    """Losses of the model's own mean: one factor for all widths, and a power of the steps."""
    factor = 1 + rate * (1 - (n_steps / 8000) ** -power) / power
    return ZERO * (LONG / ZERO) ** factor


def test_short_runs_and_one_long_run_forecast_the_other_long_runs():
    widths, losses = np.append(WIDTHS, 16), np.append(made(1000), LONG[1])
    fitted = BudgetForecaster(ZERO).fit(widths, losses, [1000, 1000, 1000, 1000, 8000])
    forecast, interval = fitted.predict(WIDTHS, 8000, return_interval=True)
    np.testing.assert_allclose(forecast, LONG, rtol=0.025)  # priors take a little of the fall
    assert (interval[:, 0] < LONG).all()
    assert (interval[:, 1] > LONG).all()
    half = np.log(interval[:, 1] / forecast)
    assert half[1] == half.min() < 0.01  # the width with a long run is known up to the run's own error
    np.testing.assert_allclose(fitted.predict(WIDTHS, 1000), made(1000), rtol=2e-3)


def test_three_budgets_forecast_a_fourth_by_a_power_of_the_steps():
    runs = [(width, loss, n) for n in (1000, 2000, 4000) for width, loss in zip(WIDTHS, made(n), strict=True)]
    fitted = BudgetForecaster(ZERO, run_error=1e-4).fit(*np.transpose(runs))
    np.testing.assert_allclose(fitted.predict(WIDTHS, 8000), LONG, rtol=2e-3)
    assert fitted.power_ == pytest.approx(0.6, rel=0.05)
    # A width alone: each doubling lowers the log loss by the same share of the fall before.
    alone = BudgetForecaster(ZERO, run_error=1e-6).fit([48, 48, 48], np.exp([-1.0, -1.08, -1.136]), [100, 200, 400])
    assert np.log(alone.predict([48], 800)[0]) == pytest.approx(-1.136 - 0.056 * 0.7, abs=2e-3)


def test_more_steps_lower_the_loss_toward_a_limit():
    fitted = BudgetForecaster(ZERO).fit(np.tile(WIDTHS, 2), [*made(1000), *made(2000)], np.repeat([1000, 2000], 4))
    losses, ends = zip(*(fitted.predict(WIDTHS, n, return_interval=True) for n in (1000, 4000, 1e5, 1e12)), strict=True)
    assert (np.diff(losses, axis=0) < 0).all()
    spread = [np.log(each[:, 1] / each[:, 0]) for each in ends]
    assert (np.diff(spread, axis=0) > 0).all()
    np.testing.assert_allclose(fitted.predict(WIDTHS, np.inf), losses[-1], rtol=1e-3)


def test_the_loss_at_width_zero_is_estimated_if_it_is_not_given():
    runs = [np.tile(WIDTHS, 2), [*made(1000), *made(4000)], np.repeat([1000, 4000], 4)]
    known, unknown = BudgetForecaster(ZERO).fit(*runs), BudgetForecaster().fit(*runs)
    assert known.zero_width_loss_ == pytest.approx(ZERO)
    assert unknown.zero_width_loss_ > made(1000).max()
    np.testing.assert_allclose(unknown.predict(WIDTHS, 8000), LONG, rtol=0.03)


def test_intervals_of_the_assumed_model_cover_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), []
    for _ in range(60):
        growth = (1 - (np.array([[1 / 8], [1.0], [2.0]]) ** -0.5)) / 0.5 * 0.06 * np.exp(rng.normal(0, 0.3, 4))
        losses = ZERO * (LONG / ZERO) ** (1 + growth) * np.exp(rng.normal(0, 0.004, (3, 4)))
        runs = [*WIDTHS, *WIDTHS[1:3]], [*losses[0], *losses[1, 1:3]], [1000] * 4 + [8000] * 2
        _, ends = BudgetForecaster(ZERO).fit(*runs).predict([8, 96], 8000, return_interval=True, level=0.8)
        hits += list((ends[:, 0] <= losses[1, [0, 3]]) & (losses[1, [0, 3]] <= ends[:, 1]))
    assert 0.7 < np.mean(hits) < 0.95


def test_runs_that_contradict_the_model_widen_the_intervals():
    steps = np.repeat([1000, 2000, 4000], 4)
    runs = np.concatenate([made(1000), made(2000), made(4000)])
    off = runs * np.tile([1.1, 0.9], 6)[np.argsort(steps, kind="stable")] ** np.repeat([1, -1, 1], 4)
    regular, irregular = (BudgetForecaster(ZERO).fit(np.tile(WIDTHS, 3), losses, steps) for losses in (runs, off))
    ends = [each.predict(WIDTHS, 8000, return_interval=True)[1] for each in (regular, irregular)]
    assert (np.log(ends[1][:, 1] / ends[1][:, 0]) > 3 * np.log(ends[0][:, 1] / ends[0][:, 0])).all()


@pytest.mark.parametrize(
    ("settings", "runs", "message"),
    [
        ({}, ([8, 16], [0.8, 0.5], [100, 200]), "gives each width one budget; give a run of another budget"),
        ({}, ([8, 8], [0.8, 0.5], [100]), r"n_steps has shape \(1,\) for 2 runs"),
        ({}, ([8, 8], [0.8, 0.5], [100, 150.5]), "n_steps holds 150.5; steps are whole"),
        ({}, ([8, 8], [0.8, 0.5], [0, 100]), "n_steps: 0 is below 1"),
        ({}, ([8, 8], [0.8, 0.0], [100, 200]), "must be above 0, but hold 8 and 0"),
        ({}, ([8, 8], [0.8], [100, 200]), "widths has 2 values and losses 1"),
        ({}, ([0.8, 0.7], [16, 16], [100, 200]), "exchange widths and losses"),
        ({"zero_width_loss": 0.7}, ([8, 8], [0.8, 0.5], [100, 200]), "0.8, which is not below zero_width_loss=0.7"),
        ({"fall_error": 0}, ([8, 8], [0.8, 0.5], [100, 200]), "fall_error=0 must be"),
    ],
)
def test_bad_runs_are_named(settings, runs, message):
    with pytest.raises(ValueError, match=message):
        BudgetForecaster(**settings).fit(*runs)


def test_bad_questions_are_named():
    fitted = BudgetForecaster().fit([8, 8], [0.8, 0.7], [100, 200])
    assert clone(fitted).get_params() == fitted.get_params()
    with pytest.raises(ValueError, match=r"widths holds 9, which has no run; give widths among \[8.0\], or fit LossF"):
        fitted.predict([9], 400)
    with pytest.raises(ValueError, match="n_steps=0 must be a finite number of at least 1"):
        fitted.predict([8], 0)


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
