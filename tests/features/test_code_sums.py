import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geofloor.features._code_sums import count_by_power, largest_rows, sum_dense, sum_sparse


def test_rows_that_chunks_cut_in_two_keep_their_norm():
    rng = np.random.default_rng(0)
    codes = rng.exponential(size=(3_000, 300)) * (rng.random((3_000, 300)) < np.linspace(0.01, 0.3, 300))
    codes[1::7] = 0.0
    expected = np.square(codes).sum(axis=1)
    totals, squared_norms = sum_sparse(sp.csr_array(codes))
    np.testing.assert_allclose(squared_norms, expected[expected > 0.0], rtol=1e-12)
    np.testing.assert_allclose(sum_dense(codes)[1], expected, rtol=1e-12)
    assert squared_norms.sum() == pytest.approx(totals[0].sum())


@given(arrays(np.float64, st.integers(1, 3_000), elements=st.floats(0, 1e6)))
@settings(max_examples=40, deadline=None)
def test_the_share_of_the_largest_rows_is_theirs_to_a_power_of_2(squared_norms):
    few, n_rows, share = largest_rows(count_by_power(squared_norms))
    firing = np.sort(squared_norms[squared_norms > 0.0])
    assert n_rows == len(firing)
    if n_rows:
        exact = firing[-few:].sum() / firing.sum()
        assert exact / 2 <= share <= exact * (1 + 1e-9)
