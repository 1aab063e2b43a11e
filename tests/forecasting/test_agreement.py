import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_percentage_error, median_absolute_error, r2_score

from geofloor.forecasting import agreement_table

RNG = np.random.default_rng(0)
MEASURED = RNG.uniform(0.1, 1.0, 50)
PREDICTED = MEASURED * RNG.uniform(0.5, 1.2, 50)


def test_figures_equal_those_of_scipy_and_scikit_learn():
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
        (([0.1, -0.1], {"p": [1, 1]}), "measured: -0.1 is below 0"),
        (([0.1, 0.2], {}), "predictions is empty"),
        (([0.1, 0.2], {"p": [1, 1, 1]}), "has 3 values for 2 measured"),
        (([0.1, 0.2], {"p": [1, np.nan]}), "predictions.*p.* contains NaN"),
        (([[0.1, 0.2]], {"p": [1, 1]}), "one dimension"),
        ((["0.1", "0.2"], {"p": [1, 1]}), "measured=.* text"),
        (([0.1, 10**400], {"p": [1, 1]}), "measured=.* float64"),
        (([0.1, 0.2], {"p": np.ma.masked_less(np.array([0.0, 1.0]), 0.5)}), "predictions.*p.* is a masked array"),
        (([0.1, 0.2], {"p": np.arange(2).astype("timedelta64[s]")}), "predictions.*p.* has dtype timedelta"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        agreement_table(*arguments)
    with pytest.raises(ValueError, match="strata has shape"):
        agreement_table([0.1, 0.2], {"p": [1, 1]}, strata=["a"])


def test_a_stratum_named_all_is_refused():
    with pytest.raises(ValueError, match="strata holds 'all', the name of the row of all points"):
        agreement_table(MEASURED[:4], {"p": PREDICTED[:4]}, strata=["all", "b", "b", "b"])


def test_a_wrong_kind_of_predictions_is_named():
    with pytest.raises(TypeError, match="predictions=.* is a list; give a dict"):
        agreement_table(MEASURED, [PREDICTED])


def test_floors_near_the_largest_float_do_not_overflow_to_a_number():
    with pytest.raises(ValueError, match="measured: 1e.300 is above"):
        agreement_table([1e300, 1.0], {"p": [1.0, 1.0]})
    with pytest.raises(ValueError, match="relative_above=0.0 lets measured floors of 1e-320 count"):
        agreement_table([1e-320, 1.0], {"p": [1.0, 1.0]})
    assert agreement_table([1e-320, 1.0], {"p": [1.0, 1.0]}, relative_above=1e-9).n_relative[0] == 1
