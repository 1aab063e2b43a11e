import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from geofloor import ConceptProbe
from geofloor.probing import feature_probes, probe_table


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
