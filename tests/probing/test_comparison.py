import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.model_selection import KFold
from sklearn.utils import Bunch
from statsmodels.stats.contingency_tables import mcnemar

from geofloor import ConceptProbe
from geofloor.probing import compare_probes, probe_table


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


@pytest.mark.parametrize("probe", [ConceptProbe(test_size=0.3, random_state=0), ConceptProbe(cv=KFold(3))])
def test_table_keeps_the_probe_s_way_to_hold_out_examples(examples, probe):
    X, y = examples
    table = probe_table({"teacher": X}, {"a": y}, probe=probe)
    assert table.n_test[0] == len(probe.fit(X, y).correct_)
    assert table.accuracy[0] == probe.accuracy_


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
