import numpy as np
import pytest

from geofloor import FloorPredictor
from geofloor.toy import predict_sweep, summarize_sweep


def test_summary_and_predictions(sweep):
    summary = summarize_sweep(sweep)
    point = sweep.query("n_features == 6 and alpha == 0.8 and teacher_width == 4 and width == 2")
    row = summary.query("n_features == 6 and alpha == 0.8 and teacher_width == 4 and width == 2").iloc[0]
    assert row.floor == pytest.approx(point.floor.mean())
    assert row.floor_std == pytest.approx(np.std(point.floor, ddof=1))
    assert row.floor_best == point.floor.min()
    assert row.standard_error**2 == pytest.approx(np.var(point.floor, ddof=1) / 3 + point.standard_error.mean() ** 2)

    def eq2(n, alpha):
        return FloorPredictor(alpha).fit(1 / np.arange(1, n + 1), second_moments=np.full(n, (1 - alpha) / 3))

    predicted = predict_sweep(summary, {"Eq. 2": eq2})
    # g(0.8) = 3.107: two dimensions keep six features, all there are; one keeps three.
    here = predicted.query("n_features == 6 and alpha == 0.8").groupby("width")["Eq. 2"].first()
    assert here[2] == 0.0
    assert here[1] == pytest.approx(0.2 / 3 * (1 / 4 + 1 / 5 + 1 / 6))
    with pytest.raises(ValueError, match="floor_std"):
        predict_sweep(summary, {"floor_std": eq2})
    with pytest.raises(ValueError, match="no column \\['kept'\\]"):
        summarize_sweep(sweep.drop(columns="kept"))


def test_wrong_kinds_of_tables_are_named(sweep):
    with pytest.raises(TypeError, match="sweep=3 is a int; give the table of toy_sweep"):
        summarize_sweep(3)
    summary = summarize_sweep(sweep)
    with pytest.raises(TypeError, match="predictors=.* is a list; give a dict"):
        predict_sweep(summary, [])
    with pytest.raises(TypeError, match=r"predictors\['a'\]=3 is no function"):
        predict_sweep(summary, {"a": 3})
    with pytest.raises(ValueError, match=r"summary has no column \['alpha'\]"):
        predict_sweep(summary.drop(columns="alpha"), {})
