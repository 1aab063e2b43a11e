import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import GroupKFold, KFold, StratifiedShuffleSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch
from sklearn.utils.estimator_checks import parametrize_with_checks
from statsmodels.stats.contingency_tables import mcnemar

from geofloor import ConceptProbe
from geofloor.probing import compare_probes, feature_probes, probe_table


@parametrize_with_checks([ConceptProbe(), ConceptProbe(cv=2)], xfail_strict=True)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture
def examples(rng):
    y = rng.permutation(np.repeat(["no", "yes"], [120, 60]))
    return rng.normal(size=(180, 6)) + 0.8 * (y == "yes")[:, None], y


def by_hand():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000))


def test_one_split_is_the_paper_s_protocol_by_hand(examples):
    X, y = examples
    probe = ConceptProbe(C=0.1, random_state=3).fit(X, y)
    train, test = next(StratifiedShuffleSplit(1, test_size=0.2, random_state=3).split(X, y))
    correct = by_hand().fit(X[train], y[train]).predict(X[test]) == y[test]
    np.testing.assert_array_equal(probe.test_indices_, np.sort(test))
    np.testing.assert_array_equal(probe.correct_, correct[np.argsort(test)])
    assert probe.accuracy_ == correct.mean()
    wilson = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    assert probe.accuracy_interval_ == pytest.approx((wilson.low, wilson.high))


def test_predictions_are_those_of_a_probe_fitted_on_all_examples(examples):
    X, y = examples
    probe, whole = ConceptProbe(C=0.1, random_state=0).fit(X, y), by_hand().fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(X), whole.predict_proba(X))
    np.testing.assert_array_equal(probe.predict(X), whole.predict(X))
    assert probe.score(X, y) == whole.score(X, y)


def test_cross_validation_tests_every_example_once(examples):
    X, y = examples
    folds = KFold(4, shuffle=True, random_state=0)
    probe = ConceptProbe(C=0.1, cv=folds).fit(X, y)
    np.testing.assert_array_equal(probe.test_indices_, np.arange(len(y)))
    np.testing.assert_array_equal(probe.correct_, cross_val_predict(by_hand(), X, y, cv=folds) == y)


@pytest.mark.parametrize("cv", [None, 3, GroupKFold(3)])
def test_no_group_is_both_learned_from_and_tested_on(examples, cv):
    _, y = examples
    groups = np.arange(len(y)) // 6
    for train, test in ConceptProbe(cv=cv, random_state=0).split(y, groups=groups):
        assert not set(groups[train]) & set(groups[test])
        assert 0.1 < len(test) / len(y) < 0.4


def test_memorising_groups_does_not_count_when_they_are_named(rng):
    groups = np.repeat(np.arange(40), 10)
    y = (np.arange(40) % 2)[groups]
    X = np.eye(40)[groups] + 0.1 * rng.normal(size=(400, 40))  # the group, and nothing of the label
    assert ConceptProbe(random_state=0).fit(X, y).accuracy_ > 0.85
    assert ConceptProbe(random_state=0).fit(X, y, groups=groups).accuracy_ < 0.7


def test_sparse_states_are_scaled_alike(examples):
    X, y = examples
    dense, sparse = (ConceptProbe(random_state=0).fit(each, y) for each in (X, sp.csr_array(X)))
    assert sparse.accuracy_ == dense.accuracy_


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": 0.0}, "C=0.0"),
        ({"C": "1"}, "C='1' must be a finite number"),
        ({"max_iter": 0}, "max_iter=0 must be a whole number"),
        ({"test_size": np.ma.masked}, "test_size="),
        ({"test_size": 1.0}, "test_size=1.0"),
        ({"confidence_level": 0.0}, "confidence_level=0.0"),
        ({"cv": 1}, "cv=1"),
        ({"cv": "five"}, "cv='five' must be a number of folds"),
        ({"cv": [0.5, 1.0]}, "cv=.* must be a number of folds"),
        ({"cv": []}, "cv=.* must be a number of folds"),
        ({"cv": [([0, 1, 120, 121], [5, 6]), ([0, 1, 120, 121], [6, 7])]}, "tests an example twice"),
    ],
)
def test_probe_refuses_bad_parameters(parameters, message):
    X, y = np.random.default_rng(0).normal(size=(180, 2)), np.repeat([0, 1], [100, 80])
    with pytest.raises(ValueError, match=message):
        ConceptProbe(**parameters).fit(X, y)


def test_comparison_is_mcnemar_s_exact_test(examples, rng):
    X, y = examples
    teacher, student = (ConceptProbe(cv=3, random_state=0).fit(each, y) for each in (X, rng.normal(size=X.shape)))
    comparison = compare_probes(student, teacher)
    gained, lost = comparison.n_gained, comparison.n_lost
    assert gained == sum(student.correct_[~teacher.correct_])
    assert comparison.change == pytest.approx(student.accuracy_ - teacher.accuracy_)
    assert comparison.p_value == pytest.approx(binomtest(gained, gained + lost).pvalue)
    assert comparison.p_value == mcnemar([[0, gained], [lost, 0]], exact=True).pvalue < 0.01
    assert compare_probes(teacher, teacher) == (0.0, 1.0, 0, 0)


def test_probes_of_different_examples_are_not_compared(examples):
    X, y = examples
    probes = [ConceptProbe(random_state=seed).fit(X, y) for seed in (0, 1)]
    with pytest.raises(ValueError, match="different examples"):
        compare_probes(*probes)


@pytest.mark.parametrize("random_state", [0, None])
def test_table_has_the_same_held_out_examples_for_all_models(examples, rng, random_state):
    X, y = examples
    states = {"teacher": X, "copy": X.copy(), "noise": rng.normal(size=(len(y), 3))}
    chosen = np.flatnonzero(np.arange(len(y)) % 3 > 0)
    concepts = {"all": y, "some": (chosen, y[chosen])}
    table = probe_table(states, concepts, probe=ConceptProbe(random_state=random_state))
    assert list(zip(table.concept, table.model, strict=True)) == [(c, m) for c in concepts for m in states]
    table = table.set_index(["model", "concept"])
    np.testing.assert_array_equal(table.loc["copy", "accuracy"], table.loc["teacher", "accuracy"])
    assert (table.loc["copy", ["change", "p_value"]].to_numpy() == [0.0, 1.0]).all()
    assert table.loc["teacher", "p_value"].isna().all()
    assert (table.loc["noise", "change"] < 0).all()
    assert table.loc["noise", "width"].tolist() == [3, 3]
    if random_state is not None:
        probe = ConceptProbe(random_state=0).fit(X[chosen], y[chosen])
        row = table.loc["teacher", "some"]
        assert (row.accuracy, row.low, row.high) == (probe.accuracy_, *probe.accuracy_interval_)
        assert row.n_test == len(probe.correct_)


def test_table_takes_what_the_loaders_give_and_states_by_concept(examples):
    X, y = examples
    groups = np.arange(len(y)) // 5
    concepts = {"a": Bunch(texts=[], labels=y, groups=groups), "b": {"labels": y[:100]}}
    table = probe_table({"teacher": {"a": X, "b": X[:100]}}, concepts, reference="teacher")
    assert table.accuracy[0] == ConceptProbe(random_state=0).fit(X, y, groups=groups).accuracy_
    assert table.accuracy[1] == ConceptProbe(random_state=0).fit(X[:100], y[:100]).accuracy_


@pytest.mark.parametrize(
    ("states", "concepts", "reference", "message"),
    [
        ({}, {"a": [0, 1]}, None, "states has 0 models"),
        ({"t": np.zeros((2, 1))}, {"a": [0, 1]}, "teacher", "reference='teacher'"),
        ({"t": np.zeros((5, 1))}, {"a": [0, 1] * 10}, None, "5 rows for 20 labels"),
        ({"t": {"b": np.zeros((20, 1))}}, {"a": [0, 1] * 10}, None, "no concept 'a'"),
        ({"t": np.zeros((4, 1))}, {"a": np.eye(4)}, None, "labels of shape"),
    ],
)
def test_table_refuses_what_does_not_fit_together(states, concepts, reference, message):
    with pytest.raises(ValueError, match=message):
        probe_table(states, concepts, reference=reference)


# Single features


@pytest.fixture
def superposition(rng):
    codes = (rng.random((3000, 12)) * (rng.random((3000, 12)) < 0.15)).astype(np.float32)
    codes[:, 7] = 0.0  # dead
    states = codes @ rng.normal(size=(12, 5)) + 0.05 * rng.normal(size=(3000, 5)) + 3.0
    return states.astype(np.float32), codes


def halves(groups, seed=0, sizes=(0.2, 0.1)):
    """Test and other rows for whole groups, the order of draws being part of what is promised to be stable."""
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
    ).set_index("feature")
    states, codes = states.astype(np.float64), codes.astype(np.float64)
    test, _ = halves(groups)
    predicted = fitted_by_hand(states, codes, ~test, ridge)(test)
    assert 7 not in table.index
    for feature, row in table.iterrows():
        assert row.r2 == pytest.approx(r2_score(codes[test, feature], predicted[:, feature]), abs=1e-9)
        assert row.auc == pytest.approx(roc_auc_score(codes[test, feature] > 0, predicted[:, feature]))
        assert row.importance == pytest.approx(np.square(codes[:, feature]).mean())
        assert row.firing_rate == pytest.approx((codes[:, feature] > 0).mean())
        assert row.n_test_firings == (codes[test, feature] > 0).sum()
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


def test_more_dimensions_than_tokens_and_constant_ones_do_no_harm(rng):
    codes = rng.random((60, 2)) * (rng.random((60, 2)) < 0.5)
    states = np.c_[codes @ rng.normal(size=(2, 80)), np.full((60, 3), 1e4), np.zeros((60, 2))]
    r2 = feature_probes(states, codes, random_state=0).r2
    assert (r2 > 0.999).all()


def test_far_from_zero_the_sums_lose_no_digits(superposition):
    states, codes = superposition
    near, far = (feature_probes(states.astype(np.float64) + shift, codes, random_state=0).r2 for shift in (0.0, 1e5))
    np.testing.assert_allclose(far, near, atol=1e-6)


def test_several_models_share_the_split_and_features_can_be_chosen(superposition):
    states, codes = superposition
    table = feature_probes({"a": states, "b": states[:, :2]}, codes, features=[4, 7, 2], random_state=1)
    assert table.columns[:2].tolist() == ["model", "feature"]
    assert table.groupby("model").width.first().to_dict() == {"a": 5, "b": 2}
    whole = feature_probes(states, codes, random_state=1).set_index("feature")
    chosen = table[table.model == "a"].set_index("feature")
    assert set(chosen.index) == {2, 4, 7}
    assert np.isnan(chosen.r2[7])
    narrow = feature_probes(states[:, :2], codes, random_state=1).set_index("feature")
    assert whole.r2.sum() > narrow.r2.sum()
    few = feature_probes(states, codes, features=[4, 2], ridges=[0.01], random_state=1).set_index("feature").r2
    every = feature_probes(states, codes, ridges=[0.01], random_state=1).set_index("feature").r2
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
        ({"features": [-1]}, "features reach from -1 to -1; count from 0"),
        ({"features": np.array([2**64 - 1], dtype=np.uint64)}, "features reach from"),
        ({"features": {1, 2}}, "features is a set"),
        ({"groups": [None, "a", 1] * 1000}, "groups=.* can't be sorted"),
        ({"groups": np.ma.masked_less(np.arange(3000), 3)}, "groups is a masked array"),
        ({"test_size": 0.95}, "test_size=0.95"),
        ({"features": [0, 0]}, "different numbers"),
        ({"features": [12]}, "different numbers"),
        ({"features": [0.5]}, "features must be a vector of whole numbers"),
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


@pytest.mark.parametrize(
    "container",
    [
        pd.DataFrame,
        lambda a: pd.DataFrame(a).convert_dtypes(),
        lambda a: pd.DataFrame(a, columns=list("abcde")),
        lambda a: pd.DataFrame(a, index=np.arange(len(a))[::-1]),
        torch.tensor,
        lambda a: torch.tensor(a, requires_grad=True),
        np.ndarray.tolist,
        np.ma.masked_array,
    ],
)
def test_states_in_any_container_give_what_arrays_give(superposition, container):
    states, codes = superposition
    expected = feature_probes(states, codes, random_state=0)
    pd.testing.assert_frame_equal(feature_probes(container(states), codes, random_state=0), expected)
    rows, labels = np.arange(0, 3000, 10), (codes[::10, 0] > 0).astype(int)
    expected = probe_table({"t": states}, {"c": (rows, labels)}, reference=None)
    table = probe_table({"t": container(states)}, {"c": (rows.tolist(), labels)}, reference=None)
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize("container", [sp.csr_array, sp.coo_matrix])
def test_a_table_of_sparse_states_is_that_of_dense_ones(superposition, container):
    _, codes = superposition
    rows, labels = np.arange(300), np.arange(300) % 2
    dense, sparse = (
        probe_table({"t": each}, {"c": (rows, labels)}, reference=None, probe=ConceptProbe(C=1e-3, random_state=0))
        for each in (codes, container(codes))
    )
    assert dense.accuracy[0] == pytest.approx(sparse.accuracy[0], abs=0.1)
    with pytest.raises(ValueError, match=r"states is sparse; give a dense array, such as states.toarray\(\)"):
        feature_probes(container(codes), codes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([0, -1] * 10, [0, 1] * 10), r"indices of concepts\['c'\] reach from -1 to 0; count from 0"),
        (([0, 30] * 10, [0, 1] * 10), r"concepts\['c'\] has the index 30, and states\['t'\] 30 rows"),
        (([0.5, 1] * 10, [0, 1] * 10), "must be a vector of whole numbers"),
        (([True, False] * 10, [0, 1] * 10), "must be a vector of whole numbers"),
        (([0, 1, 2], [0, 1]), "has 3 indices for 2 labels"),
        (([0, 1],), "is a tuple of 1"),
        ({"texts": []}, "has no labels"),
        (iter([0, 1]), "is a list_iterator"),
    ],
)
def test_rows_that_are_not_there_are_refused_and_not_taken_from_elsewhere(given, message):
    with pytest.raises(ValueError, match=message):
        probe_table({"t": np.zeros((30, 1))}, {"c": given}, reference=None)


@pytest.mark.parametrize("container", [sp.csr_array, sp.csc_matrix])
def test_a_sparse_matrix_that_points_outside_itself_does_not_end_the_interpreter(examples, container):
    X, y = examples
    broken = container(X)
    broken.indices[0] = 10**6
    with pytest.raises(ValueError, match="X is a malformed"):
        ConceptProbe().fit(broken, y)
    with pytest.raises(ValueError, match="X is a malformed"):
        ConceptProbe().fit(X, y).predict(broken)
    with pytest.raises(ValueError, match=r"states\['teacher'\] is a malformed"):
        probe_table({"teacher": broken}, {"c": y})
    with pytest.raises(ValueError, match="codes is a malformed"):
        feature_probes(X, broken)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda a: np.ma.masked_less(a, 0.0), "masked"),
        (lambda a: a + 1j, "Complex"),
        (lambda a: a.astype(str), "text"),
        (lambda a: {1.0, 2.0}, "is a set"),
        (iter, "iterator"),
        (lambda a: "states.npy", "is text"),
        (lambda a: 1e300 * a, "too large to square"),
        (lambda a: np.full(a.shape, 10**400), "float64"),
    ],
)
def test_states_that_are_no_numbers_are_named(examples, values, message):
    X, y = examples
    with pytest.raises(ValueError, match=f"^X.*{message}"):
        ConceptProbe().fit(values(X), y)
    with pytest.raises(ValueError, match=f"states.*{message}"):
        feature_probes(values(X), np.abs(X))


def test_wrong_kinds_of_objects_are_named(examples):
    X, y = examples
    with pytest.raises(TypeError, match="probe=3 is a int; give a fitted ConceptProbe"):
        compare_probes(3, ConceptProbe().fit(X, y))
    with pytest.raises(TypeError, match="states=.* is a ndarray; give a dict of states by model"):
        probe_table(X, {"c": y})
    with pytest.raises(TypeError, match="concepts=.* is a ndarray; give a dict of labels"):
        probe_table({"teacher": X}, y)
    with pytest.raises(TypeError, match="probe=3 is a int; give a ConceptProbe"):
        probe_table({"teacher": X}, {"c": y}, probe=3)
    with pytest.raises(ValueError, match=r"states\['teacher'\] has shape \(\); give two dimensions"):
        probe_table({"teacher": np.int8(3)}, {"c": y})
    with pytest.raises(ValueError, match="n_jobs='2' must be a whole number"):
        probe_table({"teacher": X}, {"c": y}, n_jobs="2")
