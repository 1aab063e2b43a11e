import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from geofloor import FeatureStatistics, FloorPredictor


def test_every_form_of_the_same_features_gives_the_same_floor(rng):
    importances, rates = rng.random(50), rng.random(50) * 0.1
    table = np.column_stack([importances, rates, rng.random(50) * np.sqrt(importances * rates)])
    frame = pd.DataFrame({"mean": table[:, 2], "firing_rate": rates, "importance": importances})
    widths = [1, 5, 9]
    expected = FloorPredictor(alpha=1 - rates.mean()).fit(importances).predict(widths)
    for form in (table, frame):
        np.testing.assert_array_equal(FloorPredictor().fit(form).predict(widths), expected)
    alpha = 1 - rates.mean()
    for form in (importances.tolist(), importances[:, np.newaxis], pd.Series(importances), frame[["importance"]]):
        np.testing.assert_array_equal(FloorPredictor(alpha).fit(form).predict(widths), expected)


@pytest.mark.parametrize(
    ("importances", "message"),
    [
        ([1.0, np.nan], "importances contains NaN"),
        ([1.0, np.inf], "importances contains infinity"),
        ([1.0, -1.0], "Negative values in data"),
        ([], "importances is empty"),
        (np.ones((4, 2)), r"importances has shape \(4, 2\)"),
        (pd.DataFrame({"a": [1.0], "b": [2.0]}), "without 'importance'"),
        (np.array([[1.0, -0.1, 1.0]]), "Negative values in data passed to firing_rate"),
        (np.array([[1.0, 1.1, 1.0]]), "firing_rate: 1.1 is above 1"),
        (np.array([[0.1, 0.05, 1.0]]), "no codes have its row 0.*in this order"),  # columns in another order
        (pd.DataFrame({"mean": [0.5, 3.0], "firing_rate": 0.2, "importance": 2.0}), "no codes have its row 1"),
        (sp.csr_array(np.eye(4)), "importances is a sparse matrix.*FeatureStatistics"),
        (np.ones((4, 64)), "codes go through FeatureStatistics|Codes go through FeatureStatistics"),
        ([1.7e308, 1.7e308], r"importances add up to inf, .*divide them"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "importances is a masked array"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "importances has dtype datetime64"),
        ([1.0, 10**400], "importances.*what float64 can't"),
        (["a", "b"], "importances.*holds text"),
        ({"a": 1.0}, "importances is a dict"),
    ],
)
def test_bad_importances_are_named(importances, message):
    with pytest.raises(ValueError, match=message):
        FloorPredictor(alpha=0.9).fit(importances)


def test_statistics_in_place_of_their_table_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"give its feature table, \.table_"):
        FloorPredictor().fit(FeatureStatistics().fit(np.eye(4)))
