import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress
from sklearn.metrics import mean_squared_error

from geofloor import FloorPredictor
from geofloor.displays import (
    AccuracyDisplay,
    CollapseDisplay,
    ErrorDisplay,
    FloorGridDisplay,
    PredictionDisplay,
    SparsityDisplay,
    SpectrumDisplay,
    TrainingCurvesDisplay,
)
from geofloor.theory import critical_width

N_FEATURES, ALPHAS, TEACHERS = (10, 40), (0.8, 0.9, 0.99), (3, 5)


def sweep():
    """Measured floors twice those of Eq. 2 and never zero, the same for teachers of all widths."""
    rows = []
    for n_features in N_FEATURES:
        for alpha in ALPHAS:
            importances, moments = 1 / np.arange(1, n_features + 1), np.full(n_features, (1 - alpha) / 3)
            cutoff = FloorPredictor(alpha=alpha).fit(importances, second_moments=moments)
            naive = FloorPredictor(alpha=alpha, capacity=lambda _: 1.0).fit(importances, second_moments=moments)
            for teacher_width in TEACHERS:
                widths = np.arange(1, teacher_width + 1)
                floors = 2 * cutoff.predict(widths) + 0.01 * (1 - alpha) / widths
                columns = {"Eq. 2": cutoff.predict(widths), "naive": naive.predict(widths)}
                rows.append(
                    pd.DataFrame(
                        {
                            "n_features": n_features,
                            "alpha": alpha,
                            "teacher_width": teacher_width,
                            "width": widths,
                            "floor": floors,
                            "floor_std": 0.1 * floors,
                            "total": importances @ moments,
                            **columns,
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def summary():
    return sweep()


@pytest.fixture
def history():
    steps = pd.DataFrame({"step": [0, 1, 10, 100]})
    points = sweep().query("teacher_width == 3")[["n_features", "alpha", "width", "floor", "Eq. 2"]]
    curves = points.merge(steps, how="cross")
    return curves.assign(loss=curves["floor"] * (1 + 1 / (1 + curves["step"])))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def chosen(summary, n_features, alpha, teacher_width):
    return summary.query("n_features == @n_features and alpha == @alpha and teacher_width == @teacher_width")


def test_floor_grid_draws_teachers_that_make_no_difference_once(summary):
    display = FloorGridDisplay.from_summary(summary, predicted=["Eq. 2", "naive"])
    assert display.axes_.shape == (2, 3)
    for (n_features, alpha), lines in display.lines_.items():
        widest = chosen(summary, n_features, alpha, 5)
        (line,), (band,), predicted = (
            lines,
            display.bands_[n_features, alpha],
            display.predicted_lines_[n_features, alpha],
        )
        assert line.axes is display.axes_[N_FEATURES.index(n_features), ALPHAS.index(alpha)]
        np.testing.assert_array_equal(line.get_xydata(), widest[["width", "floor"]])
        for each, name in zip(predicted, ["Eq. 2", "naive"], strict=True):
            np.testing.assert_array_equal(each.get_xydata(), widest[["width", name]])
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(1.1 * widest["floor"].max())


def test_floor_grid_draws_teachers_that_make_a_difference_apart(summary):
    summary.loc[(summary["alpha"] == 0.9) & (summary["teacher_width"] == 3), "floor"] *= 1.5
    display = FloorGridDisplay.from_summary(summary, spread=None)
    assert {place: len(lines) for place, lines in display.lines_.items()} == {
        (n_features, alpha): 2 if alpha == 0.9 else 1 for n_features in N_FEATURES for alpha in ALPHAS
    }
    for line, teacher_width in zip(display.lines_[40, 0.9], TEACHERS, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), chosen(summary, 40, 0.9, teacher_width)["floor"])
    labels = [text.get_text() for text in display.figure_.legends[0].get_texts()]
    assert [label for label in labels if "teacher" in label] == ["teacher width 3", "teacher width 5"]


@pytest.mark.parametrize("method", ["asymptotic", "minimax_nonnegative"])
def test_floor_grid_marks_critical_widths_within_the_axes_and_names_all(summary, method):
    display = FloorGridDisplay.from_summary(summary, capacity=method)
    expected = {(n, alpha): critical_width(n, alpha, method) for n in N_FEATURES for alpha in ALPHAS}
    drawn = {place: line.get_xdata()[0] for place, line in display.critical_lines_.items()}
    assert drawn == {place: width for place, width in expected.items() if width <= 5.5}
    texts = [ax.texts[0].get_text() for ax in display.axes_.flat]
    assert texts == [f"d* = {width:.2f}" + (" →" if width > 5.5 else "") for width in expected.values()]


def test_floor_grid_leaves_the_panel_of_an_absent_configuration_empty(summary):
    display = FloorGridDisplay.from_summary(summary.query("not (n_features == 40 and alpha == 0.9)"))
    assert (40, 0.9) not in display.lines_
    assert [ax.axison for ax in display.axes_.flat] == [True, True, True, True, False, True]
    assert display.axes_[0, 1].xaxis.get_tick_params()["labelbottom"]


def test_sparsity_display_draws_one_teachers_students(summary):
    display = SparsityDisplay.from_summary(summary, teacher_width=3, predicted="naive")
    assert len(display.axes_) == len(N_FEATURES)
    assert set(display.lines_) == {(n_features, alpha) for n_features in N_FEATURES for alpha in ALPHAS}
    for (n_features, alpha), line in display.lines_.items():
        points = chosen(summary, n_features, alpha, 3)
        assert line.axes is display.axes_[N_FEATURES.index(n_features)]
        np.testing.assert_array_equal(line.get_xydata(), points[["width", "floor"]])
        np.testing.assert_array_equal(display.predicted_lines_[n_features, alpha].get_ydata(), points["naive"])
    assert len({line.get_color() for line in display.lines_.values()}) == len(ALPHAS)


def test_a_sparsity_has_one_colour_in_all_figures(summary):
    colors = {
        alpha: {
            SparsityDisplay.from_summary(summary).lines_[10, alpha].get_color(),
            CollapseDisplay.from_summary(summary).lines_[40, alpha][0].get_color(),
            PredictionDisplay.from_summary(summary).points_["naive", alpha].get_color(),
        }
        for alpha in ALPHAS
    }
    assert [len(each) for each in colors.values()] == [1, 1, 1]


def test_prediction_display_draws_what_is_above_zero_and_counts_the_rest(summary):
    display = PredictionDisplay.from_summary(summary)
    for (name, alpha), points in display.points_.items():
        above = summary[(summary["alpha"] == alpha) & (summary[name] > 0)]
        np.testing.assert_array_equal(points.get_xydata(), above[["floor", name]])
    n_zero = (summary[["Eq. 2", "naive"]] == 0).sum()
    assert n_zero["Eq. 2"] > 0
    assert display.statistics_["n_not_drawn"].tolist() == n_zero.tolist()
    assert display.statistics_["n_points"].tolist() == [len(summary)] * 2
    assert f"{n_zero['Eq. 2']} of them zero" in display.axes_[0].get_title(loc="left")


def test_prediction_statistics_are_those_of_all_points(summary):
    statistics = PredictionDisplay.from_summary(summary).statistics_.loc["Eq. 2"]
    measured, predicted = summary["floor"], summary["Eq. 2"]
    error = 100 * np.median(np.abs(predicted - measured) / measured)
    assert statistics["pearson_r"] == pytest.approx(linregress(measured, predicted).rvalue)
    assert statistics["r2"] == pytest.approx(1 - mean_squared_error(measured, predicted) / measured.var(ddof=0))
    assert statistics["median_absolute_error"] == pytest.approx(error)


def test_prediction_statistics_are_nan_where_they_are_not_defined():
    statistics = PredictionDisplay(measured=[0.1], predicted={"a": [0.2]}, alphas=[0.9]).plot().statistics_.loc["a"]
    assert np.isnan(statistics[["pearson_r", "r2"]].to_numpy()).all()
    assert statistics["median_absolute_error"] == pytest.approx(100)


def test_error_display_draws_signed_errors_from_extreme_to_extreme(summary):
    display = ErrorDisplay.from_summary(summary)
    assert set(display.boxes_) == {(name, alpha) for name in ("Eq. 2", "naive") for alpha in ALPHAS}
    for (name, alpha), box in display.boxes_.items():
        points = summary[summary["alpha"] == alpha]
        errors = 100 * (points[name] - points["floor"]) / points["floor"]
        drawn = [box["caps"][0], box["medians"][0], box["caps"][1]]
        np.testing.assert_allclose([line.get_ydata()[0] for line in drawn], np.quantile(errors, [0, 0.5, 1]))
    positions = [box["medians"][0].get_xdata().mean() for box in display.boxes_.values()]
    assert len(np.unique(np.round(positions, 6))) == 2 * len(ALPHAS)


@pytest.mark.parametrize(("largest", "scale"), [(900.0, "linear"), (90_000.0, "symlog")])
def test_error_axis_is_logarithmic_only_where_large_errors_ask_for_it(largest, scale):
    assert ErrorDisplay(errors={"a": [-50.0, largest]}, alphas=[0.9, 0.9]).plot().ax_.get_yscale() == scale


def test_accuracy_display_writes_the_median_of_each_cell(summary):
    display = AccuracyDisplay.from_summary(summary[summary["Eq. 2"] > 0])
    for n_features, image, texts in zip(N_FEATURES, display.images_, display.texts_, strict=True):
        for (row, column), text in np.ndenumerate(texts):
            points = chosen(summary, n_features, ALPHAS[row], TEACHERS[column]).query("`Eq. 2` > 0")
            shown = image.get_array()[row, column]
            if points.empty:
                assert text.get_text() == "–"
                assert shown is np.ma.masked
            else:
                accuracy = np.median(100 - 100 * np.abs(points["Eq. 2"] / points["floor"] - 1))
                assert shown == pytest.approx(accuracy)
                assert text.get_text() == f"{accuracy:.0f}"
    assert "–" in [text.get_text() for text in display.texts_[0].flat]


def test_accuracy_below_zero_is_written_and_the_scale_says_so():
    table = pd.DataFrame([[-5.0, -2e6, 80.0]], index=[0.9], columns=[3, 5, 8])
    display = AccuracyDisplay(accuracies={10: table}).plot()
    assert [text.get_text() for text in display.texts_[0].flat] == ["−5", "<−999", "80"]
    assert display.colorbar_.extend == "min"


def test_collapse_display_divides_by_total_and_critical_width(summary):
    display = CollapseDisplay.from_summary(summary, capacity="minimax")
    assert len(display.lines_) == len(N_FEATURES) * len(ALPHAS)
    for (n_features, alpha), (line,) in display.lines_.items():
        points = chosen(summary, n_features, alpha, 5)
        widths, floors = line.get_xydata().T
        np.testing.assert_allclose(widths * critical_width(n_features, alpha, "minimax"), points["width"])
        np.testing.assert_allclose(floors * points["total"].iloc[0], points["floor"])
    assert len({lines[0].get_marker() for lines in display.lines_.values()}) == len(N_FEATURES)
    assert display.critical_line_.get_xdata()[0] == 1


def test_training_curves_have_a_panel_a_configuration_and_a_curve_a_width(history):
    display = TrainingCurvesDisplay.from_history(history, predicted="Eq. 2", n_columns=4)
    assert set(display.axes_) == {(n_features, alpha) for n_features in N_FEATURES for alpha in ALPHAS}
    for (n_features, alpha, width), line in display.lines_.items():
        curve = history.query("n_features == @n_features and alpha == @alpha and width == @width and step > 0")
        assert line.axes is display.axes_[n_features, alpha]
        np.testing.assert_array_equal(line.get_xydata(), curve[["step", "loss"]])
        floor = curve["Eq. 2"].iloc[0]
        assert ((n_features, alpha, width) in display.predicted_lines_) == (floor > 0)
        if floor > 0:
            assert display.predicted_lines_[n_features, alpha, width].get_ydata()[0] == floor
    assert len(display.figure_.axes) == 8
    assert [ax.axison for ax in display.figure_.axes] == [True] * 6 + [False] * 2


def test_displays_draw_in_the_given_figure_or_axes(summary, history):
    in_figure = [
        FloorGridDisplay.from_summary,
        SparsityDisplay.from_summary,
        PredictionDisplay.from_summary,
        AccuracyDisplay.from_summary,
    ]
    figures = plt.figure(figsize=(12, 30), layout="constrained").subfigures(len(in_figure) + 1)
    for figure, draw in zip(figures, in_figure, strict=False):
        assert draw(summary, figure=figure).figure_ is figure
        assert figure.axes
    display = TrainingCurvesDisplay.from_history(history, figure=figures[-1])
    assert display.figure_ is figures[-1]
    assert display.plot() is display
    assert display.figure_ is not figures[-1]
    _, axes = plt.subplots(2)
    for ax, draw in zip(axes, [ErrorDisplay.from_summary, CollapseDisplay.from_summary], strict=True):
        assert draw(summary, ax=ax).ax_ is ax


@pytest.mark.parametrize(
    "draw",
    [
        FloorGridDisplay.from_summary,
        SparsityDisplay.from_summary,
        PredictionDisplay.from_summary,
        ErrorDisplay.from_summary,
        AccuracyDisplay.from_summary,
        CollapseDisplay.from_summary,
    ],
    ids=lambda draw: draw.__self__.__name__,
)
def test_summaries_that_cannot_be_drawn_are_refused(summary, draw):
    with pytest.raises(ValueError, match=r"lacks the columns \['alpha', 'floor'\]; needed are \['n_features', 'alpha'"):
        draw(summary.drop(columns=["floor", "alpha"]))
    with pytest.raises(ValueError, match="no rows"):
        draw(summary.iloc[:0])
    with pytest.raises(ValueError, match="several rows for n_features=10, alpha=0.8, teacher_width=3, width=1"):
        draw(pd.concat([summary, summary]))
    with pytest.raises(ValueError, match="'floor']: 1 of 48 values are not finite"):
        draw(summary.assign(floor=summary["floor"].where(summary.index > 0)))


def test_histories_that_cannot_be_drawn_are_refused(history):
    with pytest.raises(ValueError, match=r"history lacks the columns \['loss', 'naive'\]"):
        TrainingCurvesDisplay.from_history(history.drop(columns="loss"), predicted="naive")
    with pytest.raises(ValueError, match="several rows for n_features=10, alpha=0.8, width=1, step=0"):
        TrainingCurvesDisplay.from_history(pd.concat([history, history]))


def test_what_the_figures_cannot_hold_is_refused(summary):
    with pytest.raises(ValueError, match=r"teacher_width=8 is not in the summary; it has \[3, 5\]"):
        SparsityDisplay.from_summary(summary, teacher_width=8)
    with pytest.raises(ValueError, match="above zero"):
        PredictionDisplay.from_summary(summary.assign(naive=0.0), predicted="naive")
    with pytest.raises(ValueError, match="no value above zero"):
        ErrorDisplay.from_summary(summary.assign(floor=0.0))
    with pytest.raises(ValueError, match="total"):
        CollapseDisplay.from_summary(summary.assign(total=0.0))


def test_a_single_seed_has_no_spread(summary):
    display = SparsityDisplay.from_summary(summary.assign(floor_std=np.nan))
    assert np.isfinite(display.lines_[10, 0.8].get_ydata()).all()


def test_spectrum_can_be_drawn_on_linear_axes():
    importances = 1 / np.arange(1, 401)
    display = SpectrumDisplay.from_importances(importances, scale="linear")
    assert (display.ax_.get_xscale(), display.ax_.get_yscale()) == ("linear", "linear")
    np.testing.assert_array_equal(display.line_.get_ydata(), importances)
    ranks, law = display.tail_line_.get_xydata().T
    np.testing.assert_allclose(law, display.tail.start * (ranks / ranks[-1]) ** (-1 / (display.tail.exponent - 1)))
    assert len(ranks) > 100  # a curve, where logarithmic axes need two points
    with pytest.raises(ValueError, match="scale='sqrt'"):
        display.plot(scale="sqrt")
