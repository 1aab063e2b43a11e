import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from geofloor import AffineCalibrator, FeatureStatistics, FloorPredictor, LossForecaster, PowerLawCalibrator
from geofloor.displays import CalibrationDisplay, CapacityDisplay, FloorDisplay, ForecastDisplay, SpectrumDisplay
from geofloor.features import PowerLawTail
from geofloor.forecasting import Calibrated
from geofloor.theory import capacity

WIDTHS = np.array([128, 256, 512, 768, 1024])
FLOORS = np.array([0.0795, 0.0400, 0.0111, 0.0016, 0.0001])
OBSERVED = np.array([1.320, 1.008, 0.733, 0.652, 0.586])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def predictor():
    return FloorPredictor(alpha=0.99).fit(1 / np.arange(1, 1001) ** 2)


@pytest.mark.parametrize(
    "display",
    [
        FloorDisplay(widths=WIDTHS, floors=FLOORS),
        SpectrumDisplay(importances=FLOORS),
        CapacityDisplay(alphas=[0.7, 0.9], capacities={"asymptotic": [2.8, 4.3]}),
        CalibrationDisplay(floors=FLOORS, observed=OBSERVED),
    ],
    ids=lambda display: type(display).__name__,
)
def test_plot_draws_on_the_given_axes_or_on_new_ones_and_returns_the_display(display):
    _, ax = plt.subplots()
    assert display.plot(ax=ax) is display
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert display.plot().ax_ is not ax
    assert display.ax_.get_xlabel()
    assert display.ax_.get_ylabel()


def test_floor_display_draws_predictions_critical_width_and_observed_points(predictor):
    widths = np.arange(1, 61)
    display = FloorDisplay.from_predictor(predictor, widths, observed_widths=[10, 20], observed=[0.3, 0.2])
    np.testing.assert_array_equal(display.lines_[0].get_xydata().T, [widths, predictor.predict(widths)])
    assert display.critical_lines_[0].get_xdata()[0] == predictor.critical_width_
    np.testing.assert_array_equal(display.observed_line_.get_xydata(), [[10, 0.3], [20, 0.2]])


def test_floor_display_has_one_labelled_curve_for_each_predictor(predictor):
    exact = FloorPredictor(alpha=0.99, capacity="minimax").fit(predictor.importances_)
    predictors = {"Eq. 1": predictor, "exact": exact}
    display = FloorDisplay.from_predictor(predictors, [10, 20, 40])
    for line, each in zip(display.lines_, predictors.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), each.predict([10, 20, 40]))
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == [f"{name}, d* = {each.critical_width_:,.0f}" for name, each in predictors.items()]
    assert len({(line.get_color(), line.get_linestyle()) for line in display.lines_}) == 2


def test_floor_display_takes_whatever_predicts_from_widths(predictor):
    calibrated = make_pipeline(FrozenEstimator(predictor), AffineCalibrator()).fit([10, 20, 40], [0.9, 0.7, 0.6])
    law = PowerLawCalibrator().fit(WIDTHS, OBSERVED)
    display = FloorDisplay.from_predictor({"a": calibrated, "b": law}, WIDTHS, unit="nats per token")
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), calibrated.predict(WIDTHS))
    np.testing.assert_array_equal(display.lines_[1].get_ydata(), law.predict(WIDTHS))
    assert "nats per token" in display.ax_.get_ylabel()


def test_a_far_critical_width_is_named_and_leaves_the_axis_with_the_widths():
    display = FloorDisplay(widths=WIDTHS, floors=FLOORS, critical_widths=1e5).plot()
    assert display.critical_lines_ == []
    assert display.ax_.get_xlim()[1] < 1200
    assert [text.get_text() for text in display.ax_.texts] == ["d* = 100,000 →"]


def test_floor_axis_holds_zero_and_can_be_made_logarithmic():
    ax = FloorDisplay(widths=WIDTHS, floors=FLOORS + 1).plot().ax_
    assert ax.get_ylim()[0] <= 0
    ax = FloorDisplay(widths=WIDTHS, floors=FLOORS).plot().ax_
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    assert FLOORS.min() / 10 < low <= FLOORS.min()
    assert FLOORS.max() <= high < 10 * FLOORS.max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observed": OBSERVED}, "observed_widths"),
        ({"floors": {"a": FLOORS}, "critical_widths": {"b": 100.0}}, "critical_widths"),
    ],
)
def test_floor_display_refuses_what_does_not_belong_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        FloorDisplay(**{"widths": WIDTHS, "floors": FLOORS, **arguments}).plot()


def test_spectrum_display_draws_positive_importances_over_rank():
    display = SpectrumDisplay(importances=[0.1, 0.0, 0.4, 0.2]).plot()
    np.testing.assert_array_equal(display.line_.get_xydata(), [[1, 0.4], [2, 0.2], [3, 0.1]])
    assert display.tail_line_ is None


def test_spectrum_display_thins_long_spectra_without_moving_points():
    importances = 1 / np.arange(1.0, 50_001)
    display = SpectrumDisplay(importances=importances).plot()
    ranks, drawn = display.line_.get_xydata().T
    assert len(ranks) <= 2000
    assert ranks[[0, -1]].tolist() == [1, 50_000]
    np.testing.assert_array_equal(drawn, importances[ranks.astype(int) - 1])


def test_the_tail_of_an_exact_power_law_lies_on_the_spectrum():
    exponent = 3.0
    ranks = np.arange(1, 1002)
    importances = ranks ** (-1 / (exponent - 1))
    tail = PowerLawTail(exponent, (2.8, 3.2), importances[1000], 1001)
    display = SpectrumDisplay(importances=importances, tail=tail).plot()
    drawn = np.interp(np.log(ranks), *np.log(display.tail_line_.get_xydata().T))
    np.testing.assert_allclose(drawn, np.log(importances), atol=1e-12)


def test_spectrum_boundaries_are_the_kept_features(predictor):
    display = SpectrumDisplay.from_importances(predictor.importances_, widths=[4, 16, 64], alpha=0.99)
    drawn = [line.get_xdata()[0] for line in display.kept_lines_]
    assert drawn == predictor.kept_features([4, 16]).tolist()  # width 64 drops nothing


def test_spectrum_from_statistics_shows_their_tail_and_capacity(rng):
    codes = rng.exponential(size=(400, 300)) ** 3 * (rng.random((400, 300)) < 0.05)
    statistics = FeatureStatistics(capacity="minimax_nonnegative").fit(codes)
    display = SpectrumDisplay.from_statistics(statistics, widths=[10])
    assert display.kept == {10: int(10 * statistics.capacity_)}
    np.testing.assert_array_equal(display.line_.get_ydata(), statistics.table_[:, 0])
    assert display.tail_line_.get_ydata()[1] == pytest.approx(statistics.tail_start_)
    assert f"{statistics.tail_exponent_:.2f}" in display.tail_line_.get_label()


def test_spectrum_refuses_widths_without_sparsity_and_all_zeros():
    with pytest.raises(ValueError, match="alpha=None"):
        SpectrumDisplay.from_importances(FLOORS, widths=[4])
    with pytest.raises(ValueError, match="above zero"):
        SpectrumDisplay(importances=np.zeros(3)).plot()


@pytest.mark.parametrize("method", ["asymptotic", "minimax", "minimax_nonnegative"])
def test_capacity_display_draws_each_method_where_it_holds(method):
    alphas, drawn = CapacityDisplay.from_methods().lines_[method].get_xydata().T
    np.testing.assert_array_equal(drawn, capacity(alphas, method))
    assert alphas.min() == (0 if method != "asymptotic" else pytest.approx(1 - np.exp(-1), abs=0.01))
    assert alphas.max() == pytest.approx(0.999)


def test_capacity_axis_is_in_alpha_and_keeps_given_points_apart():
    display = CapacityDisplay.from_methods()
    positions = display.ax_.transData.transform([(alpha, 1) for alpha in (0.0, 0.9, 0.99, 0.999)])[:, 0]
    np.testing.assert_allclose(np.diff(positions), np.diff(positions)[0])


def test_equation_1_below_its_minimum_is_drawn_apart():
    display = CapacityDisplay.from_methods(["asymptotic"], alphas=[0.0, 0.2, 0.5, 0.8, 0.9])
    assert display.non_monotone_line_.get_xdata().tolist() == [0.2, 0.5]
    assert display.lines_["asymptotic"].get_xdata().tolist() == [0.8, 0.9]


def test_calibration_display_draws_points_line_and_interval():
    calibrator = AffineCalibrator().fit(FLOORS, OBSERVED)
    display = CalibrationDisplay.from_calibrator(calibrator, FLOORS, OBSERVED, widths=WIDTHS, level=0.9)
    np.testing.assert_array_equal(display.points_.get_xydata().T, [FLOORS, OBSERVED])
    grid, line = display.line_.get_xydata().T
    expected, interval = calibrator.predict(grid, return_interval=True, level=0.9)
    np.testing.assert_array_equal(line, expected)
    edges = display.band_.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (interval.min(), interval.max())
    assert len(display.ax_.texts) == len(WIDTHS)
    assert display.line_.get_label() == "C = 8.96, B = 0.623, R² = 0.993"


def test_calibration_display_has_no_band_where_nothing_is_left_to_judge_by():
    calibrator = AffineCalibrator().fit(FLOORS[:2], OBSERVED[:2])
    assert CalibrationDisplay.from_calibrator(calibrator, FLOORS, OBSERVED).band_ is None
    assert CalibrationDisplay.from_calibrator(calibrator, FLOORS, OBSERVED, level=None).interval is None


def test_calibration_display_refuses_several_terms():
    terms = np.column_stack([FLOORS, FLOORS**2])
    calibrator = AffineCalibrator().fit(terms, OBSERVED)
    with pytest.raises(ValueError, match="2 terms"):
        CalibrationDisplay.from_calibrator(calibrator, FLOORS, OBSERVED)


def test_styles_reach_the_line():
    kwargs = {"color": "red", "linewidth": 3.0}
    lines = [
        FloorDisplay(widths=WIDTHS, floors=FLOORS).plot(line_kwargs=kwargs).lines_[0],
        SpectrumDisplay(importances=FLOORS).plot(line_kwargs=kwargs).line_,
        CapacityDisplay(alphas=[0.7], capacities={"mine": [2.0]}).plot(line_kwargs=kwargs).lines_["mine"],
        CalibrationDisplay(floors=FLOORS, observed=OBSERVED, grid=[0, 1], line=[0, 1]).plot(line_kwargs=kwargs).line_,
    ]
    assert [(line.get_color(), line.get_linewidth()) for line in lines] == [("red", 3.0)] * 4


def test_forecasts_have_their_interval_runs_and_target():
    floor = FloorPredictor(alpha=0.99).fit(np.exp(-np.arange(3000) / 600))
    forecaster = LossForecaster(Calibrated(floor)).fit([8, 64], [1.0, 0.4])
    widths = np.array([64, 8, 16])
    display = ForecastDisplay.from_forecaster(forecaster, widths, target=0.5, level=0.8)
    losses, interval = forecaster.predict([8, 16, 64], return_interval=True, level=0.8)
    np.testing.assert_array_equal(display.line_.get_xydata(), np.column_stack([[8, 16, 64], losses]))
    outline = display.band_.get_paths()[0].vertices
    for width, ends in zip([8, 16, 64], interval, strict=True):
        assert set(ends) <= set(outline[outline[:, 0] == width, 1])
    np.testing.assert_array_equal(display.runs_.get_xydata(), [[8, 1.0], [64, 0.4]])
    assert set(display.target_line_.get_ydata()) == {0.5}
    assert "80% interval" in [text.get_text() for text in display.ax_.get_legend().get_texts()]
    with pytest.raises(ValueError, match=r"shapes \(0,\)"):
        ForecastDisplay(widths=[], losses=[], interval=[]).plot()
    assert display.least_band_ is None
    narrow = ForecastDisplay(widths=[2, 1], losses=[1, 2], interval=[[1, 2], [2, 3]], least=[0.5, 1.5]).plot()
    assert narrow.least_band_.get_datalim(narrow.ax_.transData).extents.tolist() == [1, 0, 2, 1.5]
    with pytest.raises(ValueError, match=r"least has the shape \(1,\), and widths \(2,\)"):
        ForecastDisplay(widths=[2, 1], losses=[1, 2], interval=[[1, 2], [2, 3]], least=[0.5]).plot()
