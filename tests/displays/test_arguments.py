"""Every argument of every display, with what it can't take."""

import inspect
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geofloor import AffineCalibrator, FeatureStatistics, FloorPredictor, LossForecaster, displays
from geofloor.forecasting import Calibrated

FLOOR = FloorPredictor(alpha=0.9).fit(1 / np.arange(1, 101))
POINTS = pd.DataFrame(
    {
        "n_features": 10,
        "alpha": [0.8, 0.8, 0.9, 0.9],
        "teacher_width": 5,
        "width": [1, 2, 1, 2],
        "floor": [0.09, 0.07, 0.05, 0.03],
        "floor_std": 0.001,
        "Eq. 2": [0.07, 0.03, 0.03, 0.01],
        "naive": [0.08, 0.06, 0.06, 0.05],
        "total": 0.1,
        "relative_width": [0.1, 0.2, 0.1, 0.2],
        "relative_floor": [0.9, 0.7, 0.5, 0.3],
    }
)
HISTORY = pd.DataFrame({"width": 8, "seed": [0, 0, 1, 1], "step": [0, 100] * 2, "eval_kl": [1.9, 0.3, 1.8, 0.4]})
FLOORS = pd.DataFrame({"width": 8, "seed": [0, 1], "floor": [0.25, 0.24], "floor_error": 0.01})
STEPS = pd.DataFrame({"n_features": 10, "alpha": 0.9, "width": 1, "step": [1, 10], "loss": [0.09, 0.05]})
PROBES = pd.DataFrame(
    {"concept": "a", "model": ["teacher", "student"], "accuracy": [0.9, 0.8], "p_value": [np.nan, 0.01]}
)
FEATURES = pd.DataFrame({"width": 16, "rank": np.arange(1, 21), "r2": np.linspace(0.9, 0.1, 20)})
CURVES = pd.DataFrame({"model": "a", "width": 16, "rank": [1.0, 2.0], "r2": [0.9, 0.1], "low": 0.0, "high": 1.0})
STATISTICS = FeatureStatistics().fit(np.maximum(np.random.default_rng(0).normal(size=(300, 20)) - 1.5, 0))
RUNS = {"floors": [0.08, 0.04, 0.01], "observed": [1.3, 1.0, 0.7]}
FORECASTER = LossForecaster(Calibrated(FLOOR)).fit([2, 8], [1.0, 0.4])

# Calls that draw: a display, the way in (None for the constructor and `plot`), and arguments.
CALLS = [
    (
        displays.FloorDisplay,
        None,
        {"widths": [1, 2], "floors": [2, 1], "critical_widths": 3.0, "observed_widths": [1], "observed": [1]},
    ),
    (displays.FloorDisplay, "from_predictor", {"predictor": FLOOR, "widths": [1, 2]}),
    (displays.SpectrumDisplay, None, {"importances": [3, 2, 1], "kept": {4: 2}}),
    (displays.SpectrumDisplay, "from_importances", {"importances": 1 / np.arange(1, 101), "widths": [2], "alpha": 0.9}),
    (displays.SpectrumDisplay, "from_statistics", {"statistics": STATISTICS, "widths": [2]}),
    (displays.CapacityDisplay, None, {"alphas": [0.5, 0.9], "capacities": {"a": [2, 4]}}),
    (displays.CapacityDisplay, "from_methods", {"methods": ("asymptotic",), "alphas": [0.5, 0.9]}),
    (
        displays.CalibrationDisplay,
        None,
        RUNS
        | {"grid": [0, 0.1], "line": [0.5, 1.5], "interval": [[0, 1], [1, 2]], "level": 0.9, "widths": [8, 16, 32]},
    ),
    (
        displays.CalibrationDisplay,
        "from_calibrator",
        RUNS | {"calibrator": AffineCalibrator().fit(*RUNS.values()), "level": 0.9},
    ),
    (
        displays.ForecastDisplay,
        None,
        {
            "widths": [1, 2],
            "losses": [2, 1],
            "interval": [[1, 2], [0, 1]],
            "run_widths": [1],
            "run_losses": [2],
            "least": [1, 0],
            "target": 1.0,
            "level": 0.9,
        },
    ),
    (
        displays.ForecastDisplay,
        "from_forecaster",
        {"forecaster": FORECASTER, "widths": [2, 4], "target": 0.5, "level": 0.9},
    ),
    (
        displays.ProbeHeatmapDisplay,
        None,
        {
            "accuracies": PROBES.pivot_table(index="concept", columns="model", values="accuracy"),
            "level": 0.05,
            "colors": "accuracy",
        },
    ),
    (displays.ProbeHeatmapDisplay, "from_table", {"table": PROBES, "level": 0.05, "colors": "accuracy"}),
    (displays.FeatureStaircaseDisplay, None, {"curves": CURVES, "score": "r2", "kept": {16: 2}}),
    (
        displays.FeatureStaircaseDisplay,
        "from_table",
        {"table": FEATURES, "score": "r2", "kept": {16: 10}, "n_bins": 5, "statistic": "mean"},
    ),
    (displays.FeatureStaircaseDisplay, "from_table", {"table": FEATURES, "predictor": FLOOR}),
    (displays.DistillationDisplay, None, {"history": HISTORY, "floors": FLOORS, "loss": "eval_kl"}),
    (
        displays.DistillationDisplay,
        "from_history",
        {"history": HISTORY, "floors": FLOORS, "loss": "eval_kl", "scale": "log"},
    ),
    (displays.DistillationDisplay, "from_students", {"students": []}),
    (
        displays.DistilledFloorsDisplay,
        None,
        {"floors": FLOORS, "predicted": {"a": [0.2]}, "critical_widths": 9.0, "normalized": False},
    ),
    (displays.DistilledFloorsDisplay, "from_floors", {"floors": FLOORS, "predictor": FLOOR, "scale": "log"}),
    (displays.DistillationSummaryDisplay, None, {"history": HISTORY, "floors": FLOORS, "predicted": [0.2]}),
    (
        displays.DistillationSummaryDisplay,
        "from_history",
        {"history": HISTORY, "floors": FLOORS, "predictor": FLOOR, "scale": "log"},
    ),
    (
        displays.FloorGridDisplay,
        None,
        {"points": POINTS, "measured": "floor", "spread": "floor_std", "predicted": "Eq. 2"},
    ),
    (
        displays.FloorGridDisplay,
        "from_summary",
        {"summary": POINTS, "measured": "floor", "spread": "floor_std", "predicted": "Eq. 2", "capacity": "minimax"},
    ),
    (
        displays.SparsityDisplay,
        None,
        {"points": POINTS, "measured": "floor", "spread": "floor_std", "predicted": "Eq. 2"},
    ),
    (displays.SparsityDisplay, "from_summary", {"summary": POINTS, "teacher_width": 5, "predicted": "Eq. 2"}),
    (displays.PredictionDisplay, None, {"measured": [0.1, 0.2], "predicted": {"a": [0.1, 0.2]}, "alphas": [0.8, 0.9]}),
    (displays.PredictionDisplay, "from_summary", {"summary": POINTS, "predicted": ("Eq. 2",), "measured": "floor"}),
    (displays.ErrorDisplay, None, {"errors": {"a": [-10, 10]}, "alphas": [0.8, 0.9]}),
    (displays.ErrorDisplay, "from_summary", {"summary": POINTS, "predicted": ("Eq. 2",), "measured": "floor"}),
    (displays.AccuracyDisplay, None, {"accuracies": {10: pd.DataFrame({3: [50.0]}, index=[0.9])}}),
    (displays.AccuracyDisplay, "from_summary", {"summary": POINTS, "predicted": "Eq. 2", "measured": "floor"}),
    (displays.CollapseDisplay, None, {"points": POINTS}),
    (displays.CollapseDisplay, "from_summary", {"summary": POINTS, "total": "total", "measured": "floor"}),
    (displays.TrainingCurvesDisplay, None, {"history": STEPS, "n_columns": 2}),
    (displays.TrainingCurvesDisplay, "from_history", {"history": STEPS, "predicted": None, "n_columns": 2}),
]
IDS = [f"{display.__name__}-{way or 'plot'}" for display, way, _ in CALLS]
# What no argument takes, each of another kind.
WRONG = {
    "number": 3.5,
    "text": "nothing of the kind",
    "object": object(),
    "huge": 10**400,
    "set": {1.5},
    "iterator": iter([1.0]),
    "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "complex": np.array([1j, 2j]),
    "mapping": {object(): object()},
}
FREE = {"unit", "label", "reference", "statistic"}  # any text, or anything with a name, stands in a label


def draw(display, way, arguments, **drawing):
    if way is not None:
        return getattr(display, way)(**arguments, **drawing)
    return display(**arguments).plot(**drawing)


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    plt.close("all")


@pytest.mark.parametrize(("display", "way", "arguments"), CALLS, ids=IDS)
def test_wrong_arguments_are_refused_by_name(display, way, arguments):
    if "students" not in arguments:
        draw(display, way, arguments)
    for name in arguments.keys() - FREE:
        for kind, value in WRONG.items():
            fits = kind == "number" and np.isscalar(arguments[name]) and not isinstance(arguments[name], str)
            if fits or (name == "students" and kind in ("set", "iterator")):
                continue
            with pytest.raises((ValueError, TypeError)) as caught:
                draw(display, way, arguments | {name: value})
            # A column is named by its own name, which is the value.
            assert name in str(caught.value) or repr(value)[:15] in str(caught.value), (name, kind)


@pytest.mark.parametrize(("display", "way", "arguments"), CALLS, ids=IDS)
def test_what_is_no_axes_no_figure_and_no_style_is_refused_before_drawing(display, way, arguments):
    places = inspect.signature(getattr(display, way or "plot")).parameters.keys() & {"ax", "figure", "line_kwargs"}
    assert places & {"ax", "figure"}
    if "students" in arguments:
        return
    for name in places:
        with pytest.raises(TypeError, match=f"{name}=3 is a int; give a "):
            draw(display, way, arguments, **{name: 3})
    assert isinstance(draw(display, way, arguments).figure_, Figure)
    assert all(isinstance(ax, Axes) for ax in plt.gcf().axes)


@pytest.mark.parametrize(("display", "way", "arguments"), CALLS, ids=IDS)
def test_tables_with_pandas_own_dtypes_draw_the_same(display, way, arguments):
    tables = {name: value for name, value in arguments.items() if isinstance(value, pd.DataFrame)}
    if not tables:
        return
    drawn = [
        draw(display, way, arguments | {name: change(table) for name, table in tables.items()}).figure_
        for change in (pd.DataFrame.copy, pd.DataFrame.convert_dtypes)
    ]
    lines, others = ([line.get_xydata() for ax in figure.axes for line in ax.lines] for figure in drawn)
    assert len(lines) == len(others)
    for line, other in zip(lines, others, strict=True):
        np.testing.assert_array_equal(line, np.asarray(other, dtype=float))


def test_no_predictor_is_no_figure():
    with pytest.raises(ValueError, match="errors is empty; give at least one"):
        displays.ErrorDisplay(errors={}, alphas=[0.9]).plot()
    with pytest.raises(ValueError, match="predicted is empty; give at least one"):
        displays.PredictionDisplay(measured=[0.1], predicted={}, alphas=[0.9]).plot()
    with pytest.raises(ValueError, match="predicted=.* must name at least one column"):
        displays.ErrorDisplay.from_summary(POINTS, predicted=[])


def test_a_missing_value_in_a_column_is_counted():
    holed = POINTS.convert_dtypes()
    holed.loc[1, "floor"] = pd.NA
    with pytest.raises(ValueError, match=r"summary\['floor'\]: 1 of 4 values are not finite"):
        displays.FloorGridDisplay.from_summary(holed)
    with pytest.raises(ValueError, match=r"summary\['floor'\]=.* holds text"):
        displays.FloorGridDisplay.from_summary(POINTS.astype({"floor": str}))


def test_capacities_are_drawn_without_a_word_and_without_a_change_of_the_warning_filters():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display = displays.CapacityDisplay.from_methods(["asymptotic"], alphas=[0.0, 0.3, 0.7])
    sparsities = np.array([0.3, 0.7])
    expected = [1.0, *(-1 / ((1 - sparsities) * np.log1p(-sparsities)))]
    np.testing.assert_array_equal(display.capacities["asymptotic"], expected)
