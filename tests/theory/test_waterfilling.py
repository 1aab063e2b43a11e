import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog

from geofloor import FloorPredictor
from geofloor.theory import DistortionCurve, Waterfilling, capacity, cutoff_curve

CURVES = [
    DistortionCurve([0, 0.1, 0.3, 0.6, 1], [0.9, 0.6, 0.3, 0.1, 0]),
    DistortionCurve([0, 0.05, 1], [0.95, 0.2, 0]),
]
charges = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1e3, allow_subnormal=False))
widths = st.lists(st.floats(0, 40), min_size=3, max_size=3).map(sorted)


def smallest_loss(weights, curves, width):
    """The same by linear programming: a variable for each piece of each feature's curve."""
    pieces = [
        (w * s, length)
        for w, curve in zip(weights, curves, strict=True)
        for s, length in zip(*curve.segments, strict=True)
    ]
    costs, lengths = np.array(pieces).T
    result = linprog(-costs, A_ub=[np.ones(len(costs))], b_ub=[width], bounds=[(0, length) for length in lengths])
    return sum(w * curve.distortions[0] for w, curve in zip(weights, curves, strict=True)) + result.fun


@pytest.mark.parametrize("seed", range(5))
def test_floors_are_those_of_linear_programming(seed):
    rng = np.random.default_rng(seed)
    weights, which = rng.pareto(1.0, 8), rng.integers(0, 2, 8)
    weights[:2] = weights[2]  # ties
    at = np.array([0.0, 0.07, 1.0, 2.3, 5.0, 8.0, 9.0])
    expected = [smallest_loss(weights, [CURVES[i] for i in which], width) for width in at]
    np.testing.assert_allclose(Waterfilling(weights, CURVES, which).floors(at), expected, rtol=1e-9, atol=1e-12)


@given(weights=charges, at=widths, factor=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_floors_fall_convexly_to_zero_scale_and_know_no_order(weights, at, factor, seed):
    filling = Waterfilling(weights, CURVES[0])
    first, middle, last = at
    low, center, high = filling.floors(at)
    tolerance = 1e-9 * (weights.sum() + 1e-300)
    assert 0.0 <= high <= center + tolerance <= low + 2 * tolerance <= 0.9 * weights.sum() + 3 * tolerance
    if last > first:
        share = (middle - first) / (last - first)
        assert center <= (1 - share) * low + share * high + tolerance
    assert filling.floors([len(weights)])[0] == 0.0
    shuffled = np.random.default_rng(seed).permutation(weights)
    np.testing.assert_array_equal(Waterfilling(shuffled, CURVES[0]).floors(at), filling.floors(at))
    np.testing.assert_allclose(
        Waterfilling(weights * factor, CURVES[0]).floors(at),
        filling.floors(at) * factor,
        rtol=1e-9,
        atol=tolerance * factor,
    )


@given(weights=charges.filter(lambda w: w.max() > 0), alpha=st.floats(0.7, 0.999))
def test_the_cut_off_is_eq_2_where_no_feature_is_kept_in_part(weights, alpha):
    # Between whole numbers of features Eq. 2 rounds down, and water-filling goes on in a straight line.
    predictor = FloorPredictor(alpha).fit(weights)
    filling = Waterfilling(weights, cutoff_curve(capacity(alpha)))
    whole = (np.arange(len(weights) + 1) + 1e-9) / capacity(alpha)
    np.testing.assert_allclose(filling.floors(whole), predictor.predict(whole), rtol=1e-6, atol=1e-6 * weights.sum())
    between = np.linspace(0, len(weights) / capacity(alpha), 50)
    assert (filling.floors(between) <= predictor.predict(between) + 1e-9 * weights.sum()).all()


def test_curves_are_objects_of_their_class():
    with pytest.raises(TypeError, match="curves=3 is a int; give a DistortionCurve"):
        Waterfilling([1.0], 3)
    with pytest.raises(TypeError, match="curves='relu'"):
        Waterfilling([1.0], ["relu"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Waterfilling([1.0, -1.0], CURVES[0]), "charges"),
        (lambda: Waterfilling([], CURVES[0]), "charges"),
        (lambda: Waterfilling([1.0, 2.0], CURVES, [0, 2]), "one of 2 curves"),
        (lambda: Waterfilling([1.0, 2.0], CURVES, [0.0, 1.5]), "one of 2 curves"),
        (lambda: Waterfilling([1.7e308, 1.7e308], CURVES[0]), "charges add up to inf"),
        (lambda: Waterfilling([1.0], CURVES[0]).floors([-1.0]), "widths: -1"),
        (lambda: Waterfilling([1.0], CURVES[0]).floors([np.nan]), "widths contains NaN"),
        (lambda: Waterfilling([1.0], CURVES[0]).levels([np.inf]), "widths contains infinity"),
        (lambda: Waterfilling([1.0], CURVES[0]).served(["a"]), "widths"),
        (lambda: Waterfilling([1.0], CURVES[0]).shares(np.nan), "width=nan"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_solver_keeps_the_callers_arrays():
    w, which = np.array([3.0, 2.0, 1.0]), np.array([0, 1, 0])
    filling = Waterfilling(w, CURVES, which)
    before = filling.shares(1.0)
    w[:], which[:] = w[::-1].copy(), 0
    for now, then in zip(filling.shares(1.0), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_width_from_which_on_water_filling_gains_nothing_is_where_all_curves_end():
    filling = Waterfilling([2.0, 1.0, 3.0], [cutoff_curve(1.0), cutoff_curve(4.0)], [0, 1, 1])
    assert filling.critical_width == 1.5
