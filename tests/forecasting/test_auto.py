import pickle

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from sklearn.base import clone
from stand_in_bound import Bound

from geofloor import LossForecaster
from geofloor.datasets import load_published_losses
from geofloor.forecasting import forecast_errors
from geofloor.forecasting._candidates import CANDIDATES, Known, candidates
from geofloor.forecasting._mixture import Evidence, Mixture
from geofloor.forecasting._priors import FORM_ERRORS, RUN_ERRORS, STUDENTS, load_priors

# The paper's Table 3.
WIDTHS = np.array([128, 256, 512, 768, 1024])
OBSERVED = np.array([1.320, 1.008, 0.733, 0.652, 0.586])
ALL_KNOWN = Known(Bound(), 9.0, 2000.0)


def two_runs(forecaster, widths, losses):
    """Median over the other widths, then over the second run, of forecasts from the widest run and one more."""
    errors = forecast_errors(forecaster, widths, losses).two_runs
    return np.median(np.nanmedian(np.abs(errors), axis=1))


@pytest.mark.parametrize(("name", "known"), [(name, ALL_KNOWN) for name in CANDIDATES] + [("ends at teacher", Known())])
def test_curves_and_directions_are_those_of_the_law_that_they_stand_for(name, known):
    law, widths = candidates(900.0, -0.3, known)[name], np.array([20.0, 300.0, 900.0])
    means, directions = law.curves(widths)
    # A law above the bottleneck takes the bottleneck midway between its bounds: every third point.
    points = np.arange(1, len(means), 3) if name == "above bottleneck" else np.arange(1, len(means), len(means) // 7)
    for point in points:

        def curve(step, point=point):
            shifts = np.zeros((len(means), directions.shape[2]))
            shifts[point] = step
            chosen, params = law.chosen(shifts, np.eye(len(means))[point])
            values = [np.log(params[key]) if key == "scale" else params[key] for key in chosen.parameters]
            return chosen.linearize(widths, np.array(values))[0]

        np.testing.assert_allclose(means[point], curve(0.0), rtol=1e-9, atol=1e-9)
        for i in range(2 if name == "above bottleneck" else directions.shape[2]):
            step = 1e-5 * np.eye(directions.shape[2])[i]
            slope = (curve(step) - curve(-step)) / 2e-5
            if name == "above bottleneck" and i == 1:  # at the mean coefficient
                assert np.sign(slope).tolist() == np.sign(directions[point, :, i]).tolist()
            np.testing.assert_allclose(directions[point, :, i], slope, rtol=1e-4, atol=1e-7)


def by_hand(evidence, priors, kinds, width):
    """Weights, means and deviations of the forecast, each point and noise as one joint normal distribution."""
    both = np.append(evidence.widths, width)
    octaves = np.abs(np.subtract.outer(np.log2(both), np.log2(both)))
    own = evidence.known.teacher_width
    if own is not None:
        octaves += np.abs(np.subtract.outer(np.log2(own - both), np.log2(own - both)))
    rows = []
    for name, law in evidence.laws.items():
        means, directions = law.curves(both)
        prior = np.mean([np.exp(priors.log_weights(kind, evidence, name, (True, True))) for kind in kinds], axis=0)
        for i, tau in enumerate(FORM_ERRORS):
            for j, epsilon in enumerate(RUN_ERRORS):
                for point in range(0, len(means), 5):
                    covariance = tau**2 * np.exp(-octaves / 3) + epsilon**2 * np.eye(len(both))
                    covariance += directions[point] @ directions[point].T
                    seen, new = covariance[:-1, :-1], covariance[:-1, -1]
                    left = evidence.logs - means[point, :-1]
                    density = multivariate_normal(cov=seen).logpdf(left)
                    assert evidence.log_likelihoods[name][i, j, point] == pytest.approx(density, rel=1e-6, abs=1e-6)
                    gain = np.linalg.solve(seen, new)
                    rows.append(
                        [
                            prior[i, j, point] * np.exp(density),
                            means[point, -1] + gain @ left,
                            np.sqrt(covariance[-1, -1] - gain @ new),
                        ]
                    )
    weights, centers, deviations = np.transpose(rows)
    return weights / weights.sum(), centers, deviations


@pytest.mark.parametrize(("known", "students"), [(Known(), None), (ALL_KNOWN, "principal")])
def test_forecasts_are_mixtures_of_conditional_normal_distributions(monkeypatch, known, students):
    # Every fifth grid point, so that each can be taken as one joint distribution of runs and forecast.
    evidence = Evidence(np.array([128.0, 512.0, 1024.0]), np.array([1.32, 0.73, 0.586]), known)
    for likelihood in evidence.log_likelihoods.values():
        likelihood[:, :, np.arange(likelihood.shape[2]) % 5 > 0] = -np.inf
    mixture = Mixture(evidence, load_priors(), students)
    weights, means, deviations = by_hand(evidence, load_priors(), [students] if students else STUDENTS, 300.0)
    found_weights, found_means, found_deviations = mixture.components(np.array([300.0]))
    assert found_weights.sum() == pytest.approx(1)
    mean = weights @ means
    assert found_weights @ found_means[:, 0] == pytest.approx(mean, abs=1e-4)
    variance = found_weights @ (found_deviations[:, 0] ** 2 + (found_means[:, 0] - mean) ** 2)
    assert variance == pytest.approx(weights @ (deviations**2 + (means - mean) ** 2), rel=0.01)
    for probability, quantile in zip(
        [0.05, 0.5, 0.95], mixture.quantiles(np.array([300.0]), [0.05, 0.5, 0.95]), strict=True
    ):
        # Points of one law are taken together as one normal distribution.
        assert weights @ norm.cdf((quantile[0] - means) / deviations) == pytest.approx(probability, abs=0.02)


def test_the_papers_students_and_others_are_forecast_without_any_option():
    assert two_runs(LossForecaster(), WIDTHS, OBSERVED) <= 0.04
    grid = load_published_losses().query("series == 'depth 8' and variant == 'best of the grid'")
    with pytest.warns(UserWarning, match="The loss rises with width"):
        assert two_runs(LossForecaster(), grid["width"], grid["loss"]) <= 0.03
    suite = load_published_losses().query("series == 'Cerebras-GPT'")  # of which the priors know nothing
    assert two_runs(LossForecaster(), suite["width"], suite["loss"]) <= 0.03


@pytest.mark.parametrize(
    ("losses", "laws"),
    [
        (8.0 * WIDTHS**-0.4, ("power", "power above baseline")),
        (1.4 * np.exp(-0.003 * WIDTHS), ("exponential", "ends at teacher")),
        (1.5 * (1 - np.log1p(WIDTHS) / np.log1p(1200)) ** 1.3, ("ends at teacher",)),
    ],
)
def test_runs_choose_the_law_that_made_them(losses, laws):
    fitted = LossForecaster().fit(WIDTHS, losses)
    assert sum(fitted.probabilities_.values()) == pytest.approx(1)
    assert sum(fitted.probabilities_[name] for name in laws) > 0.9
    assert fitted.params_["exponent" if "exponent" in fitted.params_ else "decay"] > 0
    assert fitted.law_.describe(fitted.params_) == fitted.law_.chosen.describe(fitted.params_)
    np.testing.assert_allclose(LossForecaster().fit(WIDTHS[1:], losses[1:]).predict(WIDTHS), losses, rtol=0.12)


def test_laws_that_disagree_widen_the_interval():
    runs = [128, 1024], [1.32, 0.586]
    _, alone = LossForecaster("power").fit(*runs).predict([4096], return_interval=True)
    _, together = LossForecaster(form_error=0.15, run_error=0.03).fit(*runs).predict([4096], return_interval=True)
    assert np.log(together[0, 1] / together[0, 0]) > 1.2 * np.log(alone[0, 1] / alone[0, 0])


def test_what_is_known_narrows_the_forecast_and_is_kept_to():
    bound = Bound()
    losses = 9.0 * np.exp(-0.5 * np.log(9.0 / bound.predict(WIDTHS)) ** 1.2)
    runs, half = (WIDTHS[[0, 4]], losses[[0, 4]]), {}
    for name, known in {
        "nothing": {},
        "start": {"students": "principal"},
        "zero": {"zero_width_loss": 9.0, "students": "principal"},
        "bound": {"bound": bound, "students": "principal"},
    }.items():
        fitted = LossForecaster(**known).fit(*runs)
        _, ends = fitted.predict([32], return_interval=True)
        half[name] = np.log(ends[0, 1] / ends[0, 0])
    assert half["bound"] < half["zero"] < half["start"] < half["nothing"]
    np.testing.assert_allclose(fitted.predict(WIDTHS), losses, rtol=0.03)
    every = np.arange(1, 1900)
    predicted, ends = fitted.predict(every, return_interval=True)
    least = bound.predict(every, return_bounds=True)[1][:, 0]
    assert (ends[:, 0] >= least).all()
    assert (predicted >= least).all()
    assert fitted.predict([0]).tolist() == [9.0]
    assert fitted.min_width(9.0) == 0
    with pytest.warns(UserWarning, match=r"not below bound\.critical_width_=2000"):
        assert fitted.predict([2000]).tolist() == [0.0]
    assert LossForecaster().fit(*runs).predict([0]).tolist() == [np.inf]
    assert fitted.law_.least(np.array([128.0])) == bound.predict([128], return_bounds=True)[1][:, 0]
    with pytest.raises(ValueError, match=r"no student of this teacher gets below"):
        LossForecaster(bound=bound).fit([128, 1024], [1.0, 1e-3])
    with pytest.raises(TypeError, match="bound=3 is no bound"):
        LossForecaster(bound=3).fit(*runs)


def test_a_teachers_width_counts_only_where_students_end_at_it():
    def at_900(**known):
        return LossForecaster(**known).fit([128, 512], [1.32, 0.733]).predict([900])[0]

    assert at_900(teacher_width=1024, students="principal") < 0.9 * at_900()
    reached = LossForecaster(teacher_width=1024, students="random").fit(WIDTHS, OBSERVED)
    np.testing.assert_array_equal(
        reached.predict([900]), LossForecaster(students="random").fit(WIDTHS, OBSERVED).predict([900])
    )


def test_given_errors_are_used_and_others_come_from_the_runs():
    given = LossForecaster(form_error=0.07, run_error=0.02).fit(WIDTHS, OBSERVED)
    assert (given.form_error_, given.run_error_) == (pytest.approx(0.07), pytest.approx(0.02))
    smooth = LossForecaster().fit(WIDTHS, 8.0 * WIDTHS**-0.4)
    with pytest.warns(UserWarning, match="rises"):
        rough = LossForecaster().fit(WIDTHS, 8.0 * WIDTHS**-0.4 * [1, 1.3, 0.8, 1.2, 0.9])
    assert smooth.form_error_ < 0.6 * rough.form_error_
    assert smooth.run_error_ < 0.6 * rough.run_error_


def test_forecasts_do_not_depend_on_the_units_of_widths_and_losses():
    fitted = LossForecaster().fit([128, 1024], [1.32, 0.586])
    scaled = LossForecaster().fit([128, 1024], [1320.0, 586.0])
    np.testing.assert_allclose(scaled.predict(WIDTHS), 1000 * fitted.predict(WIDTHS), rtol=1e-9)


def test_one_run_is_enough_and_says_little():
    losses, interval = LossForecaster().fit([256], [1.0]).predict([64, 256, 1024], return_interval=True)
    assert losses[0] > losses[1] > losses[2]
    assert losses[1] == pytest.approx(1.0, rel=0.05)
    assert interval[2, 0] < 0.5 * losses[2]


def test_clones_share_the_bound_and_pickles_forecast_alike():
    bound = Bound()
    fitted = LossForecaster(bound=bound, students="principal").fit([128, 1024], [1.32, 0.586])
    assert clone(fitted).bound is bound
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.predict(WIDTHS), fitted.predict(WIDTHS))


def test_priors_are_probabilities_of_every_law():
    priors = load_priors()
    assert set(priors.form_errors) == set(CANDIDATES)
    for kind in STUDENTS:
        assert set(priors.odds[kind]) == set(priors.coordinates[kind]) == set(CANDIDATES)
        assert sum(priors.run_errors[kind]) == pytest.approx(1, abs=1e-3)
    for form_errors in priors.form_errors.values():
        assert sum(form_errors) == pytest.approx(1, abs=1e-3)
    evidence = Evidence(WIDTHS.astype(float), OBSERVED, ALL_KNOWN)
    for kind in STUDENTS:
        logs = [priors.log_weights(kind, evidence, name, (True, True)) for name in CANDIDATES]
        assert sum(np.exp(each).sum() for each in logs) == pytest.approx(1, abs=2e-3)
