import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geofloor.theory import DistortionCurve, cutoff_curve, lower_hull

CURVE = DistortionCurve([0, 0.1, 0.3, 0.6, 1], [0.9, 0.6, 0.3, 0.1, 0])


@given(
    points=st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=20, unique_by=lambda p: p[0])
)
def test_hull_is_the_lower_convex_hull(points):
    c, d = np.array([(0.0, 1.0), *points, (1.0, 0.0)]).T
    hull = lower_hull(c, d)
    for x in np.linspace(0, 1, 23):  # the lowest chord between any two points
        chords = [
            np.interp(x, [c[i], c[j]], [d[i], d[j]]) for i in range(len(c)) for j in range(len(c)) if c[i] <= x <= c[j]
        ]
        assert hull(x) == pytest.approx(min(chords), abs=1e-9)


def test_a_hull_whose_points_lose_no_less_with_dimensions_is_level():
    hull = lower_hull([0, 0.5, 1], [0.2, 0.3, 0.2])
    assert hull([0.0, 0.5, 2.0]).tolist() == [0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DistortionCurve([0, 1], [1, 0, 0]), "shapes"),
        (lambda: DistortionCurve([0.1, 1], [1, 0]), "increase from 0"),
        (lambda: DistortionCurve([0, 0.5, 1], [1, 0.9, 0]), "lower_hull makes them so"),
        (lambda: DistortionCurve([0, 1], [0, 1]), "non-increasing"),
        (lambda: cutoff_curve(0.0), "capacity=0.0"),
        (lambda: DistortionCurve([0, 5e-324, 1], [1, 0.5, 0]), "overflows float64"),
        (lambda: DistortionCurve([0, 1], ["a", "b"]), "distortions.*text"),
        (lambda: CURVE([-1.0]), "capacities: -1"),
        (lambda: lower_hull([0.5, 1], [1, 0]), "with a capacity of 0"),
        (lambda: lower_hull([0, 0], [1, 0]), "with a capacity of 0 and others"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_curve_does_not_keep_the_callers_arrays():
    c, d = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.25, 0.0])
    curve = DistortionCurve(c, d)
    before = curve([0.25, 0.75])
    c[:], d[:] = c[::-1].copy(), 0.0
    np.testing.assert_array_equal(curve([0.25, 0.75]), before)
