import warnings

import numpy as np
import pytest

from geofloor.displays import CapacityDisplay
from geofloor.theory import capacity


@pytest.mark.parametrize("method", ["asymptotic", "minimax", "minimax_nonnegative"])
def test_capacity_display_draws_each_method_where_it_holds(method):
    alphas, drawn = CapacityDisplay.from_methods().lines_[method].get_xydata().T
    np.testing.assert_array_equal(drawn, capacity(alphas, method))
    assert alphas.min() == (0 if method != "asymptotic" else pytest.approx(1 - np.exp(-1), abs=0.01))
    assert alphas.max() == pytest.approx(0.999)


def test_capacity_axis_is_in_alpha_and_keeps_given_points_apart():
    display = CapacityDisplay.from_methods()
    positions = display.ax_.transData.transform([(alpha, 1) for alpha in (0.0, 0.9, 0.99, 0.999)])[:, 0]
    np.testing.assert_allclose(np.diff(positions), np.diff(positions)[0])


def test_equation_1_below_its_minimum_is_drawn_apart():
    display = CapacityDisplay.from_methods(["asymptotic"], alphas=[0.0, 0.2, 0.5, 0.8, 0.9])
    assert display.non_monotone_line_.get_xdata().tolist() == [0.2, 0.5]
    assert display.lines_["asymptotic"].get_xdata().tolist() == [0.8, 0.9]


def test_capacities_are_drawn_without_warnings_and_without_changing_their_filters():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display = CapacityDisplay.from_methods(["asymptotic"], alphas=[0.0, 0.3, 0.7])
    sparsities = np.array([0.3, 0.7])
    expected = [1.0, *(-1 / ((1 - sparsities) * np.log1p(-sparsities)))]
    np.testing.assert_array_equal(display.capacities["asymptotic"], expected)


def test_frame_holds_each_method_where_it_holds():
    display = CapacityDisplay.from_methods(alphas=[0.0, 0.2, 0.5, 0.8, 0.9])
    frame = display.frame()
    for method, line in display.lines_.items():
        curve = frame[(frame["method"] == method) & frame["holds"]]
        np.testing.assert_array_equal(curve[["alpha", "capacity"]], line.get_xydata())
    faint = frame[~frame["holds"] & (frame["alpha"] > 0)]
    np.testing.assert_array_equal(faint[["alpha", "capacity"]], display.non_monotone_line_.get_xydata())
