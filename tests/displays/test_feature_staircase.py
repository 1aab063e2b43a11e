from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from geofloor import FloorPredictor
from geofloor.displays import FeatureStaircaseDisplay


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


def test_staircase_marks_kept_features_except_those_of_the_reference(features):
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


def test_staircase_names_counts_beyond_the_ranks_without_a_line(features):
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
def test_staircase_refuses_wrong_tables_and_options(features, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureStaircaseDisplay.from_table(change(features), **arguments)


def test_the_staircase_of_firing_starts_at_chance(features):
    table = features.assign(auc=np.where(features["rank"] <= 40, 0.95, 0.6))
    display = FeatureStaircaseDisplay.from_table(table, score="auc", statistic="mean")
    for line in display.lines_.values():
        assert set(np.round(line.get_ydata()[[0, -1]], 9)) == {0.95, 0.6}
    assert display.ax_.get_lines()[0].get_ydata()[0] == 0.5
    assert "ROC" in display.ax_.get_ylabel()
    with pytest.raises(ValueError, match="score='gini' is unknown; use one of 'r2', 'auc'"):
        FeatureStaircaseDisplay.from_table(table, score="gini")


def test_a_staircase_without_bands_needs_no_quartiles():
    curves = pd.DataFrame({"model": ["a", "a"], "width": 4, "rank": [1, 2], "r2": [0.9, 0.8]})
    display = FeatureStaircaseDisplay(curves=curves).plot()
    assert not display.bands_
    with pytest.raises(ValueError, match=r"curves lacks the columns \['low', 'high'\]"):
        FeatureStaircaseDisplay(curves=curves, band=True).plot()


def test_frame_holds_curves_bands_and_kept_features(features):
    display = FeatureStaircaseDisplay.from_table(features, kept={4: 20}, band=True, reference="teacher")
    frame = display.frame()
    for model, line in display.lines_.items():
        curve = frame[frame["model"] == model]
        np.testing.assert_array_equal(curve[["rank", "r2"]], line.get_xydata())
        edges = display.bands_[model].get_paths()[0].vertices[:, 1]
        assert (edges.min(), edges.max()) == (curve["low"].min(), curve["high"].max())
    assert frame.groupby("model")["n_kept"].first().dropna().to_dict() == {"d = 4": 20}
    assert "low" not in FeatureStaircaseDisplay.from_table(features).frame().columns
