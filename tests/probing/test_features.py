import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from geofloor.probing import feature_probes


def halves(groups, seed=0, sizes=(0.2, 0.1)):
    """Draw test and validation rows by whole groups, in the order of draws that results depend on."""
    names = np.unique(groups)
    order = np.random.RandomState(seed).permutation(len(names))
    test, validation = order[: round(sizes[0] * len(names))], order[round(sizes[0] * len(names)) :]
    validation = validation[: round(sizes[1] * len(names))]
    return np.isin(groups, names[test]), np.isin(groups, names[validation])


def fitted_by_hand(states, codes, train, ridge):
    scaler = StandardScaler().fit(states[train])
    model = Ridge(alpha=ridge * train.sum(), solver="svd").fit(scaler.transform(states[train]), codes[train])
    return lambda rows: model.predict(scaler.transform(states[rows]))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("ridge", [1e-6, 0.3])
def test_feature_probes_equal_ridge_regression_and_its_scores(superposition, ridge, grouped):
    states, codes = superposition
    groups = np.arange(3000) // (10 if grouped else 1)
    table = feature_probes(
        states, sp.csr_array(codes), groups=groups if grouped else None, ridges=[ridge], auc=True, random_state=0
    ).set_index("latent")
    states, codes = states.astype(np.float64), codes.astype(np.float64)
    test, _ = halves(groups)
    predicted = fitted_by_hand(states, codes, ~test, ridge)(test)
    assert 7 not in table.index
    for latent, row in table.iterrows():
        assert row.r2 == pytest.approx(r2_score(codes[test, latent], predicted[:, latent]), abs=1e-9)
        assert row.auc == pytest.approx(roc_auc_score(codes[test, latent] > 0, predicted[:, latent]))
        assert row.importance == pytest.approx(np.square(codes[:, latent]).mean())
        assert row.firing_rate == pytest.approx((codes[:, latent] > 0).mean())
        assert row.n_test_firings == (codes[test, latent] > 0).sum()
    assert table["rank"].tolist() == list(range(1, 12))
    assert table.importance.is_monotonic_decreasing


def test_the_strength_is_the_best_on_the_validation_rows(rng):
    codes = rng.random((150, 3)) * (rng.random((150, 3)) < 0.5)
    states = np.c_[codes @ rng.normal(size=(3, 4)) + 0.3 * rng.normal(size=(150, 4)), rng.normal(size=(150, 30))]
    ridges = [1e-6, 1e-2, 1.0, 1e3]
    chosen = feature_probes(states, codes, ridges=ridges, validation_size=0.3, random_state=0).ridge.unique()
    test, validation = halves(np.arange(150), sizes=(0.2, 0.3))
    scores = [
        r2_score(codes[validation], fitted_by_hand(states, codes, ~test & ~validation, ridge)(validation))
        for ridge in ridges
    ]
    assert chosen.tolist() == [ridges[int(np.argmax(scores))]]
    assert 1e-6 < chosen[0] < 1e3


def test_several_models_share_the_split_and_latents_can_be_chosen(superposition):
    states, codes = superposition
    table = feature_probes({"a": states, "b": states[:, :2]}, codes, latents=[4, 7, 2], random_state=1)
    assert table.columns[:2].tolist() == ["model", "latent"]
    assert table.groupby("model").width.first().to_dict() == {"a": 5, "b": 2}
    whole = feature_probes(states, codes, random_state=1).set_index("latent")
    chosen = table[table.model == "a"].set_index("latent")
    assert set(chosen.index) == {2, 4, 7}
    assert np.isnan(chosen.r2[7])
    narrow = feature_probes(states[:, :2], codes, random_state=1).set_index("latent")
    assert whole.r2.sum() > narrow.r2.sum()
    few = feature_probes(states, codes, latents=[4, 2], ridges=[0.01], random_state=1).set_index("latent").r2
    every = feature_probes(states, codes, ridges=[0.01], random_state=1).set_index("latent").r2
    np.testing.assert_allclose(few[[2, 4]], every[[2, 4]], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ridges": [0.0]}, "ridges="),
        ({"ridges": []}, "ridges is empty"),
        ({"ridges": ["1"]}, "ridges=.* text"),
        ({"ridges": 3}, r"ridges has shape \(\)"),
        ({"test_size": "0.2"}, "test_size='0.2' must be"),
        ({"validation_size": np.ma.masked}, "validation_size=.* must be"),
        ({"auc": "yes"}, "auc='yes' must be True or False"),
        ({"latents": [-1]}, "latents reach from -1 to -1; count from 0"),
        ({"latents": np.array([2**64 - 1], dtype=np.uint64)}, "latents reach from"),
        ({"latents": {1, 2}}, "latents is a set"),
        ({"groups": [None, "a", 1] * 1000}, "groups=.* can't be sorted"),
        ({"groups": np.ma.masked_less(np.arange(3000), 3)}, "groups is a masked array"),
        ({"test_size": 0.95}, "test_size=0.95"),
        ({"latents": [0, 0]}, "latents must be different numbers"),
        ({"latents": [12]}, "latents must be different numbers"),
        ({"latents": [0.5]}, "latents must be a vector of whole numbers"),
        ({"groups": np.zeros(3000)}, "1 groups are too few"),
        ({"groups": np.zeros(10)}, "groups has shape"),
    ],
)
def test_feature_probes_refuse_bad_arguments(superposition, arguments, message):
    with pytest.raises(ValueError, match=message):
        feature_probes(*superposition, **arguments)


def test_feature_probes_refuse_data_that_are_not_finite_or_do_not_match(superposition):
    states, codes = superposition
    with pytest.raises(ValueError, match="give .n_tokens, width."):
        feature_probes(states[:-1], codes)
    broken = states.copy()
    broken[5, 0] = np.nan
    with pytest.raises(ValueError, match="states.'b'. holds values that are not finite"):
        feature_probes({"a": states, "b": broken}, codes)
    with pytest.raises(ValueError, match="codes"):
        feature_probes(states, np.where(codes > 0, np.nan, 0.0))
    with pytest.raises(ValueError, match="codes holds 1e.200, which is too large to square"):
        feature_probes(states, np.where(codes > 0, 1e200, 0.0))
    with pytest.raises(ValueError, match="no latent fires"):
        feature_probes(states, np.zeros_like(codes))
