import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold, StratifiedShuffleSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from geofloor import ConceptProbe


@parametrize_with_checks([ConceptProbe(), ConceptProbe(cv=2)], xfail_strict=True)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


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
    wilson = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.9, method="wilson")
    assert probe.accuracy_interval_ == pytest.approx((wilson.low, wilson.high))
    assert ConceptProbe(C=0.1, level=0.99, random_state=3).fit(X, y).accuracy_interval_[0] < wilson.low


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


@pytest.mark.parametrize(
    "probe",
    [ConceptProbe(random_state=0), ConceptProbe(cv=3, random_state=0), ConceptProbe(cv=GroupKFold(3))],
)
def test_no_group_is_both_learned_from_and_tested_on(examples, probe):
    _, y = examples
    groups = np.arange(len(y)) // 6
    for train, test in probe.split(y, groups=groups):
        assert not set(groups[train]) & set(groups[test])
        assert 0.1 < len(test) / len(y) < 0.4


def test_a_splitter_that_separates_a_group_is_refused(examples):
    X, y = examples
    half = np.arange(90)
    with pytest.raises(ValueError, match="puts a group into training and test examples"):
        ConceptProbe(cv=[(half, half + 90)]).fit(X, y, groups=np.arange(180) % 90)
    assert len(ConceptProbe(cv=[(half, half + 90)]).fit(X, y, groups=np.arange(180) // 90).correct_) == 90


@pytest.mark.parametrize("groups", [[None, "a", 1] * 60, [None] * 180])
def test_groups_that_cannot_be_sorted_are_refused(examples, groups):
    with pytest.raises(ValueError, match="groups=.* can't be sorted"):
        ConceptProbe().fit(*examples, groups=groups)


def test_memorizing_groups_does_not_count_when_they_are_named(rng):
    groups = np.repeat(np.arange(40), 10)
    y = (np.arange(40) % 2)[groups]
    X = np.eye(40)[groups] + 0.1 * rng.normal(size=(400, 40))  # of the group alone, not of the label
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
        ({"level": 0.0}, "level=0.0"),
        ({"test_size": 0.2, "cv": 3}, "test_size=0.2 has no effect with cv=3"),
        ({"random_state": 0, "cv": KFold(3)}, "random_state=0 has no effect with cv=KFold"),
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
