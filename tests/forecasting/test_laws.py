import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.stats import norm
from stand_in_bound import Bound

from geofloor import FloorPredictor, LossForecaster, PowerLawCalibrator
from geofloor.datasets import load_paper_tables, load_published_losses
from geofloor.forecasting import (
    AboveBottleneck,
    Anchored,
    AnchoredBothEnds,
    Calibrated,
    EndsAtTeacher,
    Exponential,
    PowerOfWidth,
    PowerOfWidthAboveBaseline,
    forecast_table,
)

WIDTHS = np.array([128, 256, 512, 768, 1024])
OBSERVED = np.array([1.320, 1.008, 0.733, 0.652, 0.586])
FLOOR = FloorPredictor(alpha=0.992).fit(np.exp(-np.arange(30_000) / 6_000))


# Recorded when all laws were branches of one class. Losses and intervals are those of the widths 24 and 900.
RECORDED = [
    (
        Exponential(),
        {"scale": 1.293423477701, "decay": 0.0007437249216581},
        0.1688274822384,
        [1.332216975379, 0.6173619858632],
        [[1.050812758522, 1.688980320324], [0.5736269885747, 0.6644314671038]],
    ),
    (
        Anchored(4.0),
        {"exponent": 0.236354578129, "decay": 0.0002705659679342},
        0.1300807221743,
        [1.913877551697, 0.614752986903],
        [[1.62865011759, 2.24905720592], [0.5766599694204, 0.6553623538079]],
    ),
    (
        AnchoredBothEnds(1.6, teacher_width=2048),
        {"exponent": 0.2974771674837, "decay": 0.0002736275826541},
        0.1585951584452,
        [1.433811591533, 0.6176115193949],
        [[1.184585356324, 1.735472812524], [0.5753626948664, 0.6629626708382]],
    ),
    (
        AboveBottleneck(Bound()),
        {"coefficient": 0.323136837489},
        0.4593413024578,
        [3.766884825253, 0.6285156584633],
        [[2.436002078067, 6.388487148483], [0.5350786235581, 0.7382689487887]],
    ),
    (
        Calibrated(FLOOR),
        {"slope": 0.0002131435617939, "baseline": 0.5857692068377},
        0.1191908581956,
        [1.73426431371, 0.611469579743],
        [[1.41904703983, 2.04948158759], [0.5736348687777, 0.6493042907084]],
    ),
    (
        Calibrated(FLOOR, baseline=0.3),
        {"slope": 0.0002316127820617, "baseline": 0.3},
        0.2028395964906,
        [1.663935198048, 0.4691406878064],
        [[1.128991303199, 2.198879092896], [0.4301927034234, 0.5080886721894]],
    ),
]


@pytest.mark.parametrize(("law", "params", "form_error", "losses", "interval"), RECORDED)
def test_fits_equal_the_recorded_ones(law, params, form_error, losses, interval):
    fitted = LossForecaster(law).fit(WIDTHS, OBSERVED)
    assert fitted.law_ == law
    assert fitted.params_ == pytest.approx(params, rel=1e-10)
    assert fitted.form_error_ == pytest.approx(form_error, rel=1e-10)
    found = fitted.predict([24, 900], return_interval=True, level=0.8)
    np.testing.assert_allclose(found[0], losses, rtol=1e-10)
    np.testing.assert_allclose(found[1], interval, rtol=1e-10)


def test_a_power_forecasts_the_papers_students_from_two_runs_where_an_exponential_fails():
    students = load_paper_tables().distillation
    laws = {"exponential": LossForecaster("exponential"), "default": LossForecaster(), "power": LossForecaster("power")}
    laws["power above baseline"] = LossForecaster(PowerOfWidthAboveBaseline())
    two_runs = forecast_table(laws, students["width"], students["kl"])["two_runs"]
    assert two_runs[["exponential", "power"]].round(3).tolist() == [0.176, 0.020]
    assert two_runs["default"] <= 0.04
    assert np.isnan(two_runs["power above baseline"])


def test_a_power_is_a_line_in_logarithms():
    fitted = LossForecaster("power").fit([8, 128], [0.8, 0.2])
    assert fitted.params_ == pytest.approx({"exponent": 0.5, "scale": 0.8 * 8**0.5})
    assert fitted.law_.describe(fitted.params_) == "2.263 d^-0.500"
    np.testing.assert_allclose(fitted.predict([2, 32]), [1.6, 0.4])
    assert fitted.min_width(0.4) == 32


@pytest.mark.filterwarnings("ignore:.*not below teacher_width")
def test_a_power_that_ends_at_the_teacher_forecasts_slices_of_one():
    widths, losses = np.array([8.0, 48, 96]), 1.2 * (1 - np.log1p([8, 48, 96]) / np.log1p(128)) ** 1.5
    fitted = LossForecaster(EndsAtTeacher(128)).fit(widths[[0, 2]], losses[[0, 2]])
    np.testing.assert_allclose(fitted.predict([0, 8, 48, 96, 128]), [1.2, *losses, 0.0])
    assert fitted.params_ == pytest.approx({"exponent": 1.5, "scale": 1.2})
    assert fitted.law_.describe(fitted.params_) == "1.200 (1 - log(1 + d) / log(1 + 128))^1.500"
    table, errors = load_published_losses().query("kind == 'sliced, untrained'"), []
    for _, model in table.groupby("teacher"):
        own = model["width"].iloc[0] / model["relative_width"].iloc[0]
        law, excess = EndsAtTeacher(own), (model["loss"] - model["teacher_loss"])[::-1]
        errors.append(forecast_table({"law": LossForecaster(law)}, model["width"][::-1], excess)["two_runs"]["law"])
    assert np.round(np.median(errors), 3) == 0.028


@pytest.mark.parametrize("law", [PowerOfWidth(), PowerOfWidthAboveBaseline()])
def test_powers_are_infinite_at_width_0(law):
    losses, interval = LossForecaster(law).fit(WIDTHS, OBSERVED).predict([0, 128], return_interval=True)
    assert np.isinf(losses).tolist() == [True, False]
    assert interval[0].tolist() == [np.inf, np.inf]


@pytest.mark.filterwarnings("ignore:.*not below teacher_width")
def test_known_ends_are_met_exactly():
    for law in (Anchored(4.0), AnchoredBothEnds(4.0, 2048)):
        fitted = LossForecaster(law).fit(WIDTHS, OBSERVED)
        losses, interval = fitted.predict([0], return_interval=True)
        assert (losses.tolist(), interval.tolist()) == ([4.0], [[4.0, 4.0]])
        assert fitted.min_width(4.0) == fitted.min_width(5.0, safe=True) == 0
        assert fitted.min_width(3.99) > 0
    assert fitted.predict([2048]).tolist() == [0.0]
    # An exponential knows no loss at width 0: it is extrapolated, and no answer to a search.
    fitted = LossForecaster("exponential").fit([128, 1024], [1.32, 0.586])
    assert fitted.predict([0]) == pytest.approx(fitted.params_["scale"])
    assert fitted.min_width(10.0) == 64  # half the narrowest run


@pytest.mark.parametrize(("scale", "exponent", "baseline"), [(13.0, 0.5, 0.2), (1e3, 1.4, 0.05), (2.0, 0.3, 0.0)])
def test_a_power_above_a_baseline_is_found_again(scale, exponent, baseline):
    losses = scale * np.array([16.0, 64, 512, 1024]) ** -exponent + baseline
    for seen in (slice(0, 3), slice(0, 4)):
        fitted = LossForecaster(PowerOfWidthAboveBaseline()).fit([16, 64, 512, 1024][seen], losses[seen])
        np.testing.assert_allclose(fitted.predict([16, 64, 512, 1024]), losses, rtol=1e-6)
        expected = {"scale": scale, "exponent": exponent, "baseline": baseline}
        assert fitted.params_ == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert fitted.law_.describe(fitted.params_) == f"{scale:.3f} d^-{exponent:.3f} + {baseline:.4f}"


def test_a_power_above_a_baseline_is_kriging_linearized_at_the_weighted_optimum():
    fitted = LossForecaster(PowerOfWidthAboveBaseline()).fit(WIDTHS, OBSERVED)
    tau, logs, near = fitted.form_error_, np.log(WIDTHS), np.abs(np.log2(WIDTHS / 200))
    covariance = tau**2 * np.exp(-np.abs(np.subtract.outer(np.log2(WIDTHS), np.log2(WIDTHS))) / 3) + 0.03**2 * np.eye(5)
    inverse, between = np.linalg.inv(covariance), tau**2 * np.exp(-near / 3)
    root = np.linalg.cholesky(inverse).T

    def curve(values, logs):
        return np.log(np.exp(values[0] - values[1] * logs) + values[2])

    def left(values):
        return np.log(OBSERVED) - curve(values, logs)

    start = PowerLawCalibrator().fit(WIDTHS, OBSERVED)
    best = least_squares(
        lambda values: root @ left(values),
        [np.log(start.scale_), start.exponent_, start.offset_],
        xtol=1e-15,
        ftol=1e-15,
    )
    params = dict(zip(["scale", "exponent", "baseline"], [np.exp(best.x[0]), *best.x[1:]], strict=True))
    assert fitted.params_ == pytest.approx(params, rel=1e-4)

    def derivatives(logs):
        steps = 1e-6 * np.eye(3)
        return np.stack([(curve(best.x + step, logs) - curve(best.x - step, logs)) / 2e-6 for step in steps], axis=-1)

    drift, at = derivatives(logs), derivatives(np.log(200.0))
    mean = curve(best.x, np.log(200.0)) + between @ inverse @ left(best.x)
    rest = at - drift.T @ inverse @ between
    variance = tau**2 + 0.03**2 - between @ inverse @ between
    variance += rest @ np.linalg.solve(drift.T @ inverse @ drift, rest)
    losses, interval = fitted.predict([200], return_interval=True)
    np.testing.assert_allclose(losses, np.exp(mean), rtol=1e-5)
    np.testing.assert_allclose(interval[0], np.exp(mean + norm.ppf([0.05, 0.95]) * np.sqrt(variance)), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The loss rises")
@pytest.mark.parametrize("losses", [[0.2, 0.3, 0.8], [0.5, 0.5, 0.5], [0.8, 0.2, 0.2], [3.0, 1.0, 1e-9]])
def test_a_power_above_a_baseline_never_rises_nor_overflows(losses):
    fitted = LossForecaster(PowerOfWidthAboveBaseline()).fit([8, 64, 128], losses)
    found, interval = fitted.predict(np.geomspace(1, 1e6, 40), return_interval=True)
    assert np.isfinite(found).all()
    assert not np.isnan(interval).any()
    assert 0.0 <= fitted.params_["exponent"] <= 10.0
    assert fitted.params_["baseline"] >= 0.0
    curve = fitted.law_.linearize(np.geomspace(1, 1e6, 40), fitted._values)[0]
    assert (np.diff(curve) <= 1e-12).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Anchored(0.0), "zero_width_loss=0.0 must be a finite number above 0"),
        (lambda: Anchored("4"), "zero_width_loss='4' must be"),
        (lambda: AnchoredBothEnds(4.0, teacher_width=0), "teacher_width=0 must be a finite number above 0"),
        (lambda: EndsAtTeacher(0), "teacher_width=0 must be a finite number above 0"),
        (lambda: AnchoredBothEnds(np.nan, 8), "zero_width_loss=nan must be"),
        (lambda: Calibrated(FLOOR, baseline=np.inf), "baseline=inf must be a finite number"),
        (lambda: AboveBottleneck(Bound(), exponent=-1), "exponent=-1 must be a finite number above 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Calibrated(3), "predictor=3 has no predict; give a fitted "),
        (lambda: Calibrated(FloorPredictor), "has no predict; give a fitted "),
        (lambda: AboveBottleneck(3), "bound=3 is no bound; give a fitted "),
    ],
)
def test_a_wrong_kind_of_object_is_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_laws_describe_themselves_with_their_numbers():
    both = AnchoredBothEnds(1.4, 128)
    assert Exponential().describe({"scale": 1.25, "decay": 0.01}) == "1.250 exp(-0.0100 d)"
    assert Anchored(4).describe({"exponent": 0.3, "decay": 0.01}) == "4.000 (1 + d)^-0.300 exp(-0.0100 d)"
    assert both.describe({"exponent": 0.7, "decay": 0}) == "1.400 (1 - log(1 + d) / log(1 + 128))^0.700 exp(-0.0000 d)"
    assert AboveBottleneck(Bound()).describe({"coefficient": 0.5}) == "9.000 exp(-0.500 log(9.000 / R(d))^1.25)"
    assert Calibrated(FLOOR).describe({"slope": 0.604, "baseline": -0.0242}) == "0.604 x floor -0.0242"
    assert repr(both) == "AnchoredBothEnds(zero_width_loss=1.4, teacher_width=128.0)"
