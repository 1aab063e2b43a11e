import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geofloor.theory import BlockPacking


def every_packing(weights, blocks, width, empty):
    """Smallest loss over all sequences of blocks, by recursion."""
    best = empty * sum(weights)
    for size, count, distortion in blocks:
        if size <= width and count <= len(weights):
            rest = every_packing(weights[count:], blocks, width - size, empty)
            best = min(best, distortion * sum(weights[:count]) + rest)
    return best


@given(
    weights=arrays(np.float64, st.integers(1, 8), elements=st.floats(0, 10)),
    blocks=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.floats(0, 1)), min_size=1, max_size=4),
    empty=st.floats(0.5, 1),
)
def test_packing_is_the_best_of_all(weights, blocks, empty):
    ordered = sorted(weights, reverse=True)
    found = BlockPacking(weights, *zip(*blocks, strict=True), empty).floors([0, 1, 3, 5.9])
    expected = [every_packing(ordered, blocks, width, empty) for width in (0, 1, 3, 5)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_packing_any_width_beyond_what_helps_costs_what_that_width_costs():
    for blocks_ in (([1, 2], [1, 3], [0.0, 0.1]), ([2, 3], [2, 4], [0.1, 0.2])):
        packing = BlockPacking([4.0, 2.0, 1.0, 1.0], *blocks_)
        enough = packing.floors([12])[0]
        assert packing.floors([4, 13, 1e6, 2.0**31, 1e30, 1.7e308])[1:].tolist() == [enough] * 5
        shares = packing.shares(1e30)
        assert packing.charges @ shares.distortions == pytest.approx(enough)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockPacking([1.0], [1], [1], [0.0]).floors([np.nan]), "widths contains NaN"),
        (lambda: BlockPacking([1.0], [1], [1], [0.0]).shares(-1), "width=-1"),
        (lambda: BlockPacking([1.0], [0], [1], [0.0]), "block_widths: 0"),
        (lambda: BlockPacking([1.0], [1], [1.5], [0.0]), "block_features=.*whole"),
        (lambda: BlockPacking([1.0], [1], [1], [-0.5]), "block_distortions: -0.5"),
        (lambda: BlockPacking([1.0], [1], [1, 2], [0.5]), "block_widths.*shapes"),
        (lambda: BlockPacking([1.0], [1], [1], [0.0], np.nan), "empty_distortion=nan"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_packing_does_not_keep_the_callers_array():
    w = np.array([3.0, 2.0, 1.0])
    packing = BlockPacking(w, [1], [2], [0.25])
    before = packing.shares(1)
    w[:] = w[::-1].copy()
    for now, then in zip(packing.shares(1), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_features_with_dimensions_are_those_in_blocks():
    packing = BlockPacking([4.0, 2.0, 1.0], [1, 1], [1, 2], [0.0, 0.25])
    assert packing.served([0, 1, 2, 9]).tolist() == [0, 2, 3, 3]
    assert packing.critical_width == 3.0
