import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_checks
from sklearn_checks import CHECKS_IN_ONE_DIMENSION

from geofloor import FloorPredictor, LossForecaster
from geofloor.forecasting import Anchored, AnchoredBothEnds, Calibrated, PowerOfWidth, forecast_errors

WIDTHS = np.array([128, 256, 512, 768, 1024])
OBSERVED = np.array([1.320, 1.008, 0.733, 0.652, 0.586])


@pytest.fixture(scope="module")
def floor():
    return FloorPredictor(alpha=0.992).fit(np.exp(-np.arange(30_000) / 6_000))


@pytest.fixture
def forecaster(floor):
    return LossForecaster(Calibrated(floor))


def by_hand(floors, widths, losses, floor, width, tau, epsilon, baseline=None):
    """Universal kriging as one linear system: no factorisation shared with the library."""
    n = len(widths)
    octaves = np.abs(np.subtract.outer(np.log2(widths), np.log2(widths)))
    scale = np.outer(losses, losses)
    covariance = (tau**2 * np.exp(-octaves / 3) + epsilon**2 * np.eye(n)) * scale
    drift = floors[:, None] if baseline is not None else np.column_stack([floors, np.ones(n)])
    response = losses - (baseline or 0.0)
    inverse = np.linalg.inv(covariance)
    parameters = np.linalg.solve(drift.T @ inverse @ drift, drift.T @ inverse @ response)
    at = np.array([floor] if baseline is not None else [floor, 1.0])
    calibrated = at @ parameters + (baseline or 0.0)
    near = tau**2 * np.exp(-np.abs(np.log2(widths / width)) / 3) * losses  # with the error as a share of calibrated
    loss = calibrated * (1 + near @ inverse @ (response - drift @ parameters))
    rest = at / calibrated - drift.T @ inverse @ near
    variance = tau**2 + epsilon**2 - near @ inverse @ near
    variance += rest @ np.linalg.solve(drift.T @ inverse @ drift, rest)
    return loss, loss * np.sqrt(variance)


@pytest.mark.parametrize("baseline", [None, 0.3])
def test_the_forecast_and_its_variance_are_those_of_universal_kriging(floor, baseline):
    fitted = LossForecaster(Calibrated(floor, baseline)).fit(WIDTHS, OBSERVED)
    losses, interval = fitted.predict([200, 900, 3000], return_interval=True, level=0.8)
    for i, width in enumerate([200, 900, 3000]):
        loss, deviation = by_hand(
            floor.predict(WIDTHS),
            WIDTHS,
            OBSERVED,
            floor.predict([width])[0],
            width,
            fitted.form_error_,
            0.03,
            baseline,
        )
        assert losses[i] == pytest.approx(loss, rel=1e-9)
        assert interval[i, 1] - losses[i] == pytest.approx(norm.ppf(0.9) * deviation, rel=1e-8)


def test_two_runs_are_met_and_lie_on_the_calibrated_curve(forecaster, floor):
    fitted = forecaster.fit([128, 1024], [1.32, 0.586])
    np.testing.assert_allclose(fitted.predict([128, 1024]), [1.32, 0.586], rtol=1e-9)
    np.testing.assert_allclose(fitted.predict(WIDTHS), calibrated(fitted, floor))
    assert fitted.form_error_ == 0.15


def calibrated(fitted, floor):
    return fitted.params_["slope"] * floor.predict(WIDTHS) + fitted.params_["baseline"]


@pytest.mark.parametrize(("anchor", "own"), [(None, None), (1.4, None), (1.4, 160)])
def test_laws_of_the_width_have_a_log_normal_error(anchor, own):
    law = "exponential" if anchor is None else Anchored(anchor) if own is None else AnchoredBothEnds(anchor, own)
    fitted = LossForecaster(law).fit([8, 64, 128], [0.8, 0.16, 0.035])
    wide, tau, epsilon = np.array([8.0, 64.0, 128.0]), fitted.form_error_, 0.03
    covariance = tau**2 * np.exp(-np.abs(np.subtract.outer(np.log2(wide), np.log2(wide))) / 3) + epsilon**2 * np.eye(3)

    def columns(widths):
        first = np.ones_like(widths) if anchor is None else np.log(1 + widths)
        if own is not None:
            first = -np.log(1 - first / np.log(1 + own))
        return np.stack([first, widths], axis=-1)

    inverse, drift, at = np.linalg.inv(covariance), columns(wide), columns(np.array(32.0))
    known = 0.0 if anchor is None else np.log(anchor)
    response = np.log([0.8, 0.16, 0.035]) - known
    information = drift.T @ inverse @ drift
    parameters = np.linalg.solve(information, drift.T @ inverse @ response)
    near = tau**2 * np.exp(-np.abs(np.log2(wide / 32)) / 3)
    mean = known + at @ parameters + near @ inverse @ (response - drift @ parameters)
    rest = at - drift.T @ inverse @ near
    deviation = np.sqrt(tau**2 + epsilon**2 - near @ inverse @ near + rest @ np.linalg.solve(information, rest))
    losses, interval = fitted.predict([32], return_interval=True, level=0.8)
    assert losses[0] == pytest.approx(np.exp(mean))
    np.testing.assert_allclose(interval[0], np.exp(mean + norm.ppf([0.1, 0.9]) * deviation))
    name, value = ("scale", np.exp(parameters[0])) if anchor is None else ("exponent", -parameters[0])
    assert fitted.params_ == pytest.approx({"decay": -parameters[1], name: value})


def test_two_runs_fix_the_law():
    fitted = LossForecaster("exponential").fit([8, 128], [0.8, 0.2])
    np.testing.assert_allclose(fitted.predict([8, 68, 128]), [0.8, 0.4, 0.2])
    widths = np.array([3, 17, 128])
    losses = 1.4 * (1.0 + widths) ** -0.2 * np.exp(-0.02 * widths)
    fitted = LossForecaster(Anchored(1.4)).fit(widths[[0, 2]], losses[[0, 2]])
    np.testing.assert_allclose(fitted.predict(widths), losses)
    assert fitted.params_ == pytest.approx({"exponent": 0.2, "decay": 0.02})


@pytest.mark.filterwarnings("ignore:.*not below teacher_width")
def test_a_law_that_is_known_at_both_ends():
    widths = np.array([3, 17, 100])
    losses = 1.4 * (1 - np.log(1 + widths) / np.log(1 + 128)) ** 0.7 * np.exp(-0.01 * widths)
    fitted = LossForecaster(AnchoredBothEnds(1.4, 128)).fit(widths[[0, 2]], losses[[0, 2]])
    np.testing.assert_allclose(fitted.predict(widths), losses)
    assert fitted.params_ == pytest.approx({"exponent": 0.7, "decay": 0.01})
    assert fitted.predict([1e-9])[0] == pytest.approx(1.4)
    # From the teacher's width on a student can be the teacher, but a trained one is not.
    beyond, ends = fitted.predict([127.999, 128, 500], return_interval=True)
    assert 0 < beyond[0] < 0.02
    assert ends[0, 0] < beyond[0] < ends[0, 1]
    assert not beyond[1:].any()
    assert not ends[1:, 0].any()
    assert (ends[:, 1] >= losses[2]).all()
    assert fitted.predict([128, 200]).tolist() == [0, 0]
    narrow = LossForecaster(AnchoredBothEnds(1.4, 128)).fit(widths[:2], losses[:2])
    assert 34 < narrow.min_width(0.05) < narrow.min_width(0.0) == 128
    # For a wide teacher it is the law that is known at one end.
    far = LossForecaster(AnchoredBothEnds(1.4, teacher_width=1e300)).fit(widths, losses)
    near = LossForecaster(Anchored(1.4)).fit(widths, losses)
    np.testing.assert_allclose(far.predict([8, 50]), near.predict([8, 50]), rtol=0.01)


@pytest.mark.filterwarnings("ignore:The loss rises")
def test_laws_never_rise():
    assert LossForecaster("exponential").fit([8, 128], [0.2, 0.8]).params_["decay"] == 0.0
    held = LossForecaster(Anchored(1.4)).fit([8, 128], [1.3, 0.1])  # falls faster than any exponential
    assert held.params_["exponent"] == 0.0 < held.params_["decay"]
    flat = LossForecaster(Anchored(1.4)).fit([8, 128], [0.6, 0.5])
    assert flat.params_["decay"] == 0.0 < flat.params_["exponent"]
    for fitted in (held, flat):
        losses, interval = fitted.predict(np.arange(1, 400), return_interval=True)
        assert (interval[:, 0] < losses).all()


def test_more_runs_correct_the_curve_where_they_are(forecaster, floor):
    curve = 2e-4 * floor.predict(WIDTHS) + 0.5
    losses = curve * [1.0, 1.0, 1.2, 1.0, 1.0]  # one width is off the curve, and its neighbors may be
    fitted = forecaster.fit(WIDTHS, losses)
    off = np.abs(calibrated(fitted, floor) / losses - 1).max()
    assert np.abs(fitted.predict(WIDTHS) / losses - 1).max() < 0.5 * off


def test_intervals_widen_away_from_the_runs_and_with_every_doubt(floor):
    def share(at, **settings):
        loss, interval = (
            LossForecaster(Calibrated(floor), **settings)
            .fit([128, 1024], [1.32, 0.586])
            .predict([at], return_interval=True)
        )
        return float(interval[0, 1] - loss[0]) / float(loss[0])

    assert share(128) < share(180) < share(400)
    assert share(400, form_error=0.05) < share(400) < share(400, form_error=0.3)
    assert share(128, run_error=0.01) < share(128) < share(128, run_error=0.1)


@pytest.mark.filterwarnings("ignore:The loss rises")
def test_runs_that_agree_or_disagree_with_the_curve_move_the_form_error(forecaster, floor):
    curve = 2e-4 * floor.predict(WIDTHS) + 0.5
    assert clone(forecaster).fit(WIDTHS, curve).form_error_ < 0.15
    assert clone(forecaster).fit(WIDTHS, curve * [1.5, 0.6, 1.5, 0.6, 1.5]).form_error_ > 0.15


def test_intervals_of_the_assumed_model_cover_as_often_as_they_say(floor):
    rng = np.random.default_rng(0)
    widths = np.array([32, 64, 128, 256, 512, 1024])
    octaves = np.abs(np.subtract.outer(np.log2(widths), np.log2(widths)))
    factor = np.linalg.cholesky(0.1**2 * np.exp(-octaves / 3) + 0.02**2 * np.eye(6))
    curve = 2e-4 * floor.predict(widths) + 0.5
    hits = []
    for _ in range(400):
        losses = curve * (1 + factor @ rng.normal(size=6))
        fitted = LossForecaster(Calibrated(floor), form_error=0.1, run_error=0.02).fit(widths[[0, 5]], losses[[0, 5]])
        _, interval = fitted.predict(widths[[2, 4]], return_interval=True, level=0.8)
        hits += list((interval[:, 0] <= losses[[2, 4]]) & (losses[[2, 4]] <= interval[:, 1]))
    assert 0.72 < np.mean(hits) < 0.88


def test_one_run_is_enough_with_a_baseline(floor):
    fitted = LossForecaster(Calibrated(floor, baseline=0.0)).fit([256], [1.0])
    np.testing.assert_allclose(fitted.predict([512]), floor.predict([512]) / floor.predict([256]))


@pytest.mark.filterwarnings("ignore:The loss rises")
def test_a_slope_below_zero_is_held_at_zero(forecaster):
    fitted = forecaster.fit([128, 1024], [0.5, 0.7])
    assert fitted.params_["slope"] == 0.0
    assert 0.5 < fitted.params_["baseline"] < 0.7
    _, interval = fitted.predict([300], return_interval=True)
    assert np.isfinite(interval).all()


def test_a_curve_that_has_come_down_to_zero_is_not_certain():
    floor = FloorPredictor(alpha=0.9).fit(np.ones(200))  # falls along a line to zero at the critical width
    fitted = LossForecaster(Calibrated(floor)).fit([8, 16], [1.0, 0.5])
    losses, interval = fitted.predict([24, 40], return_interval=True)
    assert fitted.params_["baseline"] < 0
    assert losses[1] == 0.0
    assert interval[1, 1] > 0.1
    assert fitted.decide(40, 0.01).answer == "uncertain"
    assert (
        LossForecaster("exponential").fit([8, 16], [1.0, 0.9]).min_width(0.5) == -1
    )  # reached only beyond twice the widest


def test_min_width_is_the_first_that_reaches_the_target(forecaster):
    fitted = forecaster.fit(WIDTHS, OBSERVED)
    every = np.arange(1, 2049)
    losses, interval = fitted.predict(every, return_interval=True)
    for target in (1.1, 0.8, 0.7):
        assert fitted.min_width(target) == every[np.argmax(losses <= target)]
        assert fitted.min_width(target, safe=True) == every[np.argmax(interval[:, 1] <= target)]
    assert interval[:, 1].min() > 0.6 > losses.min()
    assert fitted.min_width(0.6, safe=True) == fitted.min_width(0.01) == -1
    targets = np.array([[0.8, 0.01], [1.1, 0.7]])
    for safe in (False, True):
        found = fitted.min_width(targets, safe=safe)
        assert found.dtype == np.int64
        assert found.tolist() == [[fitted.min_width(target, safe=safe) for target in row] for row in targets]
    assert type(fitted.min_width(0.8)) is int
    assert fitted.min_width([]).shape == (0,)


def test_forecasters_stand_in_comparisons(forecaster):
    errors = forecast_errors(forecaster, WIDTHS, OBSERVED)
    assert np.abs(errors.left_out[1:-1]).max() < 0.2
    assert np.isfinite(errors.two_runs[0, 1:4]).all()


def test_clones_share_the_law_and_never_change_it(forecaster, floor):
    copy = clone(forecaster)
    assert copy.law is forecaster.law
    assert copy.law.predictor is floor
    with pytest.raises(ValueError, match="would change law, which clones share"):
        copy.set_params(law__predictor=None)
    copy.fit([128, 1024], [1.32, 0.586]).set_params(law=Anchored(4.0))
    assert forecaster.law.predictor is floor
    search = GridSearchCV(LossForecaster(), {"law": ["power", Anchored(4.0)]}, cv=2).fit(
        WIDTHS[:, np.newaxis], OBSERVED
    )
    assert search.best_estimator_.law_ == PowerOfWidth()


@pytest.mark.parametrize(
    ("settings", "X", "y", "message"),
    [
        ({"run_error": 0.0}, WIDTHS, OBSERVED, "run_error=0.0 must be a finite number above 0"),
        ({"form_error": np.nan}, WIDTHS, OBSERVED, "form_error=nan"),
        ({"law": "cubic"}, WIDTHS, OBSERVED, "law='cubic' is unknown; use one of 'auto', 'exponential', 'power'"),
        ({"law": Anchored(1.2)}, WIDTHS, OBSERVED, "loss 1.32, which is not below zero_width_loss=1.2"),
        (
            {"law": AnchoredBothEnds(4.0, 1024)},
            WIDTHS,
            OBSERVED,
            "width 1024, which is not below teacher_width=1024",
        ),
        ({}, [0, 2], [1, 2], "width 0; widths must be above 0"),
        ({}, [1, 2], [1, 0], "loss 0; losses must be above 0"),
        ({}, [128, 128], [1, 1], r"needs runs of as many different widths, but X has 1 \(n_samples = 2\)"),
        ({}, [128, np.nan], [1, 1], "NaN"),
        ({}, [[1, 2], [3, 4]], [1, 1], "X has 2 columns; give one column of widths"),
        ({}, [1, 1e30], [1, 1], "X holds the width 1e.30; widths must be at most"),
        ({}, [1, 10**400], [1, 1], "X holds 1000.* which float64 can't"),
        ({}, WIDTHS, [None, 1, 1, 1, 1], "y holds None"),
        ({"form_error": 1e200}, WIDTHS, OBSERVED, "form_error=1e.200 must be a finite number above 0 and at most 100"),
        ({"run_error": 1e-200}, [8, 8, 9], [1, 1, 1], "run_error=1e-200 is too small beside form_error=0.15"),
        (
            {"law": "auto", "run_error": 1e-200},
            [8, 8, 9],
            [1, 1, 1],
            "run_error=1e-200 is too small beside form_error=0.2",
        ),
        (
            {"law": "auto", "zero_width_loss": 1.2},
            WIDTHS,
            OBSERVED,
            "loss 1.32, which is not below zero_width_loss=1.2",
        ),
        (
            {"law": "auto", "students": "narrow"},
            WIDTHS,
            OBSERVED,
            "students='narrow' is unknown; use one of 'principal'",
        ),
        ({"law": "auto", "teacher_width": -1}, WIDTHS, OBSERVED, "teacher_width=-1 must be a finite number above 0"),
        (
            {"law": "auto", "students": "principal", "teacher_width": 1024},
            WIDTHS,
            OBSERVED,
            "width 1024, which is not below teacher_width=1024",
        ),
        (
            {"students": "random"},
            WIDTHS,
            OBSERVED,
            "students='random' is used with law='auto' only, but law=Calibrated",
        ),
        (
            {"law": "power", "bound": 3},
            WIDTHS,
            OBSERVED,
            r"bound=3 is used with law='auto' only, .* AboveBottleneck\(bound",
        ),
        ({"law": None}, OBSERVED, WIDTHS, "y holds 128 to 1024, all whole like widths, .* exchange X and y"),
        ({"law": Anchored(4.0)}, [0.5], [64], "exchange X and y"),
    ],
)
def test_bad_input_is_named(floor, settings, X, y, message):
    with pytest.raises(ValueError, match=message):
        LossForecaster(**{"law": Calibrated(floor), **settings}).fit(X, y)


def test_the_error_of_a_measurement_adds_to_that_of_its_run_and_not_to_a_forecasts():
    losses, half = {}, {}
    for name, run_error, loss_error in (("both", 0.03, 0.04), ("each", 0.03, [0.04] * 5), ("run", 0.05, None)):
        fitted = LossForecaster("power", run_error=run_error).fit(WIDTHS, OBSERVED, loss_error=loss_error)
        losses[name], ends = fitted.predict([200, 2000], return_interval=True, level=0.9)
        half[name] = np.log(ends[:, 1] / ends[:, 0]) / 2
        assert fitted.run_error_ == run_error
    np.testing.assert_allclose(losses["both"], losses["run"], rtol=1e-9)
    np.testing.assert_array_equal(half["each"], half["both"])
    np.testing.assert_allclose(half["run"] ** 2 - half["both"] ** 2, (1.6448536 * 0.04) ** 2, rtol=1e-6)


@pytest.mark.parametrize("law", ["auto", "power"])
def test_a_loss_with_a_larger_error_moves_the_forecast_less(law):
    losses = OBSERVED * [1, 1, 1.3, 1, 1]

    def at_512(loss_error):
        fitted = LossForecaster(law).fit(WIDTHS, losses, loss_error=loss_error)
        return fitted.predict([512])[0] / OBSERVED[2] - 1

    assert at_512(None) == at_512(0)
    assert abs(at_512([0, 0, 0.5, 0, 0])) < 0.08 < at_512(None)


def test_errors_of_measurements_excuse_a_rise_and_are_checked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LossForecaster().fit([8, 16], [1.0, 1.1], loss_error=0.1)
    with pytest.warns(UserWarning, match="rises with width"):
        LossForecaster().fit([8, 16], [1.0, 1.1])
    for wrong, message in (
        ([0.1, 0.1, 0.1], r"loss_error has shape \(3,\) for 2 runs; give one share per run, or one for all"),
        ([0.1, -0.1], "loss_error"),
        ([0.1, np.nan], "loss_error contains NaN"),
        (101, "loss_error"),
    ):
        with pytest.raises(ValueError, match=message):
            LossForecaster().fit([8, 16], [1.0, 0.9], loss_error=wrong)
    with pytest.raises(ValueError, match="loss_error=0.1 is for runs of one budget, but n_steps holds several"):
        LossForecaster().fit([8, 16, 8], [1.0, 0.9, 0.95], n_steps=[10, 10, 20], loss_error=0.1)


def test_what_is_no_law_is_named(floor):
    with pytest.raises(TypeError, match=r"law=3 is no law; give one of geofloor.forecasting"):
        LossForecaster(3).fit(WIDTHS, OBSERVED)
    with pytest.raises(TypeError, match=r"law=FloorPredictor.* is no law; put a predictor in Calibrated\(...\)"):
        LossForecaster(floor).fit(WIDTHS, OBSERVED)


def test_runs_whose_losses_rise_with_width_are_named(floor):
    for forecaster in (LossForecaster(), LossForecaster(Calibrated(floor))):
        with pytest.warns(UserWarning, match=r"rises with width: 0.2 at width 16, 0.3 at width 128\. Wider") as caught:
            forecaster.fit([128, 8, 16, 64, 16], [0.3, 0.25, 0.2, 0.21, 0.22])
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LossForecaster().fit([8, 16, 16, 128], [0.3, 0.2, 0.21, 0.205])  # no more than seeds differ


def test_a_student_as_wide_as_its_teacher_is_not_forecast_in_silence():
    fitted = LossForecaster(AnchoredBothEnds(1.4, 128)).fit([32, 96], [0.4, 0.06])
    with pytest.warns(
        UserWarning, match=r"width 256, which is not below teacher_width=128\. .* ends above 0"
    ) as caught:
        assert fitted.predict([256])[0] == 0
    assert [each.filename for each in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.decide(127, 0.01)
    # A law without an end is told the teacher's width.
    fitted = LossForecaster("power", teacher_width=128).fit([32, 128], [0.4, 0.06])
    with pytest.warns(UserWarning, match=r"width 129, which is over teacher_width=128, where a student could be"):
        fitted.predict([128, 129])
    assert fitted.min_width(0.05) == -1


def test_intervals_do_not_close_at_the_teachers_width():
    fitted = LossForecaster(AnchoredBothEnds(1.4, 128)).fit([32, 64], [0.4, 0.15])
    with pytest.warns(UserWarning, match="not below teacher_width"):
        losses, interval = fitted.predict([96, 100, 127, 128], return_interval=True)
    assert losses[3] == interval[3, 0] == 0 < losses[2] < losses[0]
    assert (interval[1:, 1] >= losses[0]).all()
    assert (interval[:, 0] <= losses).all()


@pytest.mark.parametrize("law", ["auto", "exponential", Anchored(1.4)])
def test_intervals_hold_no_nan_however_wide_the_student(law):
    fitted = LossForecaster(law).fit([8, 64, 128], [0.8, 0.16, 0.035])
    losses, interval = fitted.predict([1e5, 1e10, 2.0**53], return_interval=True)
    np.testing.assert_allclose(losses, 0.0, atol=1e-5)
    assert not np.isnan(interval).any()
    assert (interval[:, 0] <= losses).all()
    assert (losses <= interval[:, 1]).all()


def test_numbers_of_other_libraries_are_read(floor):
    plain = LossForecaster(Calibrated(floor), run_error=0.03125).fit([8, 64, 128], [0.75, 0.25, 0.125])
    X, y = torch.tensor([8, 64, 128]), torch.tensor([0.75, 0.25, 0.125], requires_grad=True)
    other = LossForecaster(Calibrated(floor), run_error=np.float32(0.03125)).fit(X.bfloat16(), y.bfloat16())
    assert other.decide(np.int8(9), torch.tensor(0.5), level=np.float64(0.9)) == plain.decide(9, 0.5)
    for width in ("64", 10**400, [64], None, True, -3):
        with pytest.raises(ValueError, match="^width="):
            plain.decide(width, 0.5)
    for target in ("0.5", 10**400, np.ma.masked, 1j):
        with pytest.raises(ValueError, match="^target="):
            plain.decide(64, target)
        with pytest.raises(ValueError, match="^target"):
            plain.min_width(target)


def test_bad_questions_are_named(forecaster):
    fitted = forecaster.fit(WIDTHS, OBSERVED)
    with pytest.raises(ValueError, match="target: -1 is below 0"):
        fitted.min_width([0.5, -1])
    with pytest.raises(ValueError, match="level=1.0 must be a finite number above 0 and below 1"):
        fitted.predict([3], return_interval=True, level=1.0)
    with pytest.raises(ValueError, match="widths: -1 is below 0"):
        fitted.predict([-1])


@pytest.mark.parametrize("check", CHECKS_IN_ONE_DIMENSION)
def test_scikit_learn_checks(forecaster, check):
    for each in (forecaster, LossForecaster()):
        getattr(estimator_checks, check)("LossForecaster", clone(each))
