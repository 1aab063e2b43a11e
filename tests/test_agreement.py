import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_percentage_error, median_absolute_error, r2_score

from geofloor.agreement import agreement_table

RNG = np.random.default_rng(0)
MEASURED = RNG.uniform(0.1, 1.0, 50)
PREDICTED = MEASURED * RNG.uniform(0.5, 1.2, 50)


def test_figures_are_those_of_scipy_and_scikit_learn():
    row = agreement_table(MEASURED, {"p": PREDICTED}).iloc[0]
    assert row.pearson_r == pytest.approx(pearsonr(MEASURED, PREDICTED).statistic)
    assert row.r2 == pytest.approx(r2_score(MEASURED, PREDICTED))
    assert row.mean_error == pytest.approx(mean_absolute_percentage_error(MEASURED, PREDICTED))
    assert row.median_error == pytest.approx(median_absolute_error(np.ones(50), PREDICTED / MEASURED))
    assert row.bias == pytest.approx(np.mean(PREDICTED / MEASURED) - 1)
    assert row.below == np.mean(PREDICTED < MEASURED)


def test_strata_are_the_same_table_on_their_points():
    strata = np.where(MEASURED < 0.5, "low", "high").astype(object)
    strata[:3] = None
    table = agreement_table(MEASURED, {"p": PREDICTED, "q": MEASURED}, strata=strata).set_index(
        ["predictor", "stratum"]
    )
    assert table.n_points["p"].to_dict() == {
        "all": 50,
        "low": np.sum(strata == "low"),
        "high": np.sum(strata == "high"),
    }
    low = strata == "low"
    alone = agreement_table(MEASURED[low], {"p": PREDICTED[low]}).iloc[0]
    np.testing.assert_allclose(table.loc[("p", "low")].astype(float), alone[table.columns].astype(float))
    assert table.loc[("q", "all"), ["r2", "median_error"]].tolist() == [1.0, 0.0]


def test_a_constant_prediction_has_no_correlation():
    row = agreement_table(MEASURED, {"zero": np.zeros(50)}).iloc[0]
    assert np.isnan(row.pearson_r)
    assert row.r2 < 0
    assert row.mean_error == 1.0


def test_floors_of_zero_count_in_r2_but_not_in_relative_errors():
    with_zero = agreement_table([*MEASURED, 0.0], {"p": [*PREDICTED, 0.1]}).iloc[0]
    without = agreement_table(MEASURED, {"p": PREDICTED}).iloc[0]
    assert (with_zero.n_points, with_zero.n_relative) == (51, 50)
    assert with_zero.r2 == pytest.approx(r2_score([*MEASURED, 0.0], [*PREDICTED, 0.1]))
    assert with_zero.mean_error == without.mean_error
    table = agreement_table([0.2, 0.1], {"p": [0.1, 0.1]}, relative_above=0.3)
    assert table.n_relative[0] == 0
    assert np.isnan(table.median_error[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, -0.1], {"p": [1, 1]}), "measured holds -0.1"),
        (([0.1, 0.2], {}), "predictions is empty"),
        (([0.1, 0.2], {"p": [1, 1, 1]}), "p has 3 predictions for 2"),
        (([0.1, 0.2], {"p": [1, np.nan]}), "p contains NaN"),
        (([[0.1, 0.2]], {"p": [1, 1]}), "one dimension"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        agreement_table(*arguments)
    with pytest.raises(ValueError, match="strata has shape"):
        agreement_table([0.1, 0.2], {"p": [1, 1]}, strata=["a"])
