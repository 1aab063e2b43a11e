from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from geofloor import FloorPredictor
from geofloor.displays._probes import FeatureStaircaseDisplay, ProbeHeatmapDisplay


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "concept": ["legal_text"] * 3 + ["code"] * 3,
            "model": ["teacher", "d = 8", "d = 4"] * 2,
            "accuracy": [0.9, 0.95, 0.6, 1.0, 1.0, 0.45],
            "p_value": [np.nan, 0.2, 0.01, np.nan, 1.0, 0.04],
        }
    )


@pytest.fixture
def features():
    rank = np.tile(np.arange(1, 201), 3)
    width = np.repeat([4, 8, 16], 200)
    kept = np.repeat([20, 40, 100], 200)
    return pd.DataFrame(
        {
            "model": np.repeat(["d = 4", "d = 8", "teacher"], 200),
            "width": width,
            "rank": rank,
            "r2": np.where(rank <= kept, 0.9, 0.1),
        }
    )


def test_plot_draws_on_the_given_axes_or_on_new_ones_and_returns_the_display(table, features):
    for display in (ProbeHeatmapDisplay.from_table(table), FeatureStaircaseDisplay.from_table(features)):
        _, ax = plt.subplots()
        assert display.plot(ax=ax) is display
        assert display.ax_ is ax
        assert display.figure_ is ax.figure
        assert display.plot().ax_ is not ax
        assert display.ax_.get_xlabel()
        assert display.ax_.get_ylabel()


def test_heatmap_writes_accuracies_changes_and_stars_in_the_order_of_the_table(table):
    display = ProbeHeatmapDisplay.from_table(table)
    assert [[text.get_text() for text in row] for row in display.texts_] == [
        ["90.0", "95.0\n+5.0", "60.0\n−30.0*"],
        ["100.0", "100.0\n+0.0", "45.0\n−55.0*"],
    ]
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["legal text", "code"]
    np.testing.assert_allclose(display.image_.get_array(), [[90, 95, 60], [100, 100, 45]])
    assert display.image_.get_clim() == pytest.approx((45, 100))


def test_heatmap_can_show_changes_and_leaves_gaps(table):
    display = ProbeHeatmapDisplay.from_table(table.drop(index=1), colors="change", level=0.02)
    assert display.texts_[0, 2].get_text() == "–"
    shown = display.image_.get_array()
    assert shown.mask.tolist() == [[True, False, True], [True, False, False]]
    np.testing.assert_allclose(shown.compressed(), [-30, -55, 0])
    assert display.image_.get_clim() == pytest.approx((-55, 55))
    assert display.texts_[1, 1].get_text() == "45.0\n−55.0"


def test_heatmap_without_a_reference_writes_accuracies_alone(table):
    display = ProbeHeatmapDisplay.from_table(table, reference=None)
    assert display.texts_[1, 2].get_text() == "45.0"
    with pytest.raises(ValueError, match="colors='change' needs changes"):
        ProbeHeatmapDisplay.from_table(table, reference=None, colors="change")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda table: table.drop(columns="accuracy"), {}, "lacks the columns"),
        (lambda table: table.head(0), {}, "no rows"),
        (lambda table: table.assign(accuracy=90.0), {}, "not per cent"),
        (lambda table: pd.concat([table, table]), {}, "twice"),
        (lambda table: table, {"reference": "d = 2"}, "reference='d = 2'"),
        (lambda table: table.drop(index=0), {}, "no accuracy of the reference"),
        (lambda table: table, {"colors": "blue"}, "colors='blue'"),
    ],
)
def test_heatmap_refuses_what_it_cannot_draw(table, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        ProbeHeatmapDisplay.from_table(change(table), **arguments)


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_staircase_bins_hold_every_feature_once(features, rng, statistic):
    features = features.assign(r2=rng.random(len(features)))
    display = FeatureStaircaseDisplay.from_table(features, n_bins=5, statistic=statistic)
    edges = np.unique(np.rint(np.geomspace(1, 201, 6)))
    for model, its in features.groupby("model"):
        line = display.lines_[model]
        for (low, high), x, y in zip(pairwise(edges), *line.get_data(), strict=True):
            inside = its[(low <= its["rank"]) & (its["rank"] < high)]
            assert y == pytest.approx(inside.r2.agg(statistic))
            assert low <= x < high


def test_staircase_marks_what_each_width_keeps_but_not_the_reference_s(features):
    predictor = FloorPredictor(alpha=0.9).fit(1 / np.arange(1, 201))
    display = FeatureStaircaseDisplay.from_table(features, predictor=predictor, reference="teacher", band=True)
    kept = predictor.kept_features([4, 8])
    assert {width: line.get_xdata()[0] for width, line in display.kept_lines_.items()} == dict(
        zip([4, 8], kept, strict=True)
    )
    assert display.kept_lines_[4].get_color() == display.lines_["d = 4"].get_color()
    assert display.lines_["teacher"].get_color() not in {line.get_color() for line in display.kept_lines_.values()}
    assert set(display.bands_) == set(display.lines_)
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == [f"d = 4, F_S = {kept[0]}", f"d = 8, F_S = {kept[1]}", "teacher", "predicted F_S"]


def test_staircase_names_what_lies_beyond_the_ranks_without_a_line(features):
    display = FeatureStaircaseDisplay.from_table(features, kept={4: 20, 8: 5000})
    assert list(display.kept_lines_) == [4]
    assert display.ax_.get_xlim()[1] <= 200
    assert "d = 8, F_S = 5,000" in [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_staircase_without_names_has_a_curve_for_each_width_and_leaves_nan_out(features):
    features = features.drop(columns="model")
    features.loc[features["rank"] > 150, "r2"] = np.nan
    display = FeatureStaircaseDisplay.from_table(features)
    assert list(display.lines_) == ["d = 4", "d = 8", "d = 16"]
    assert all(line.get_xdata().max() <= 150 for line in display.lines_.values())
    assert display.lines_["d = 4"].get_ydata()[[0, -1]].tolist() == [0.9, 0.1]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda table: table.drop(columns="rank"), {}, "lacks the columns"),
        (lambda table: table.assign(r2=np.nan), {}, "no row with a finite r2"),
        (lambda table: table.assign(rank=0), {}, "ranks below 1"),
        (lambda table: table.assign(model="one"), {}, "with a rank twice"),
        (lambda table: table, {"reference": "student"}, "reference='student'"),
        (lambda table: table, {"n_bins": 0}, "n_bins=0"),
        (lambda table: table, {"statistic": "mode"}, "statistic='mode'"),
        (lambda table: table, {"kept": {4: 2}, "predictor": FloorPredictor()}, "give one of them"),
    ],
)
def test_staircase_refuses_what_it_cannot_draw(features, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureStaircaseDisplay.from_table(change(features), **arguments)


def test_the_staircase_of_firing_has_chance_for_its_ground(features):
    table = features.assign(auc=np.where(features["rank"] <= 40, 0.95, 0.6))
    display = FeatureStaircaseDisplay.from_table(table, score="auc", statistic="mean")
    for line in display.lines_.values():
        assert set(np.round(line.get_ydata()[[0, -1]], 9)) == {0.95, 0.6}
    assert display.ax_.get_lines()[0].get_ydata()[0] == 0.5
    assert "ROC" in display.ax_.get_ylabel()
    with pytest.raises(ValueError, match="score='gini' is unknown; use one of 'r2', 'auc'"):
        FeatureStaircaseDisplay.from_table(table, score="gini")


def test_a_staircase_without_bands_needs_no_ends_of_them():
    curves = pd.DataFrame({"model": ["a", "a"], "width": 4, "rank": [1, 2], "r2": [0.9, 0.8]})
    display = FeatureStaircaseDisplay(curves=curves).plot()
    assert not display.bands_
    with pytest.raises(ValueError, match=r"curves lacks the columns \['low', 'high'\]"):
        FeatureStaircaseDisplay(curves=curves, band=True).plot()
