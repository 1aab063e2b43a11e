import itertools

import numpy as np
import pytest
from sklearn.base import clone

from geofloor import LossForecaster
from geofloor.forecasting import BudgetForecaster

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
    with pytest.warns(UserWarning, match=r"n_steps=100000 is 50 times the longest budget .* up to 16 times"):
        losses, ends = zip(
            *(fitted.predict(WIDTHS, n, return_interval=True) for n in (1000, 4000, 1e5, 1e12)), strict=True
        )
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
    with pytest.raises(ValueError, match="n_steps=49 is below half the shortest budget of the runs, 100 steps"):
        fitted.predict([8], 49)


def test_more_steps_never_forecast_a_higher_loss():
    # From the main job: without the order, width 8 lost more after ten times the steps.
    widths, steps = [32] * 3 + [96] * 3, [150, 300, 600] * 2
    losses = [0.5046, 0.4293, 0.3798, 0.1747, 0.0967, 0.0559]
    fitted = LossForecaster(zero_width_loss=1.475, teacher_width=128, students="principal").fit(
        widths, losses, n_steps=steps
    )
    at = [8, 16, 32, 64, 96, 112]
    curves = [fitted.predict(at, n_steps=n, return_interval=True) for n in (300, 600, 6000)]
    for (fewer, fewer_ends), (more, more_ends) in itertools.pairwise(curves):
        assert (more <= fewer).all()
        assert (more_ends <= fewer_ends * (1.0 + 1e-12)).all()
    for losses_, ends in curves:
        assert (ends[:, 0] <= losses_).all()
        assert (losses_ <= ends[:, 1]).all()
