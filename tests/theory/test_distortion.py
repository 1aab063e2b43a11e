import numpy as np
import pytest

from geofloor.theory import blocks, distortion_curve, distortion_curves, empty_distortion
from geofloor.theory._distortion import check_amplitude


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 2.0, np.nan, None, "0.9", 1j, 10**400, [0.9], True])
@pytest.mark.parametrize("function", [empty_distortion, blocks, distortion_curve])
def test_what_is_no_sparsity_is_refused_by_name(function, alpha):
    with pytest.raises(ValueError, match="alpha=.* must be a finite number of at least 0 and below 1"):
        function(alpha)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distortion_curves([0.5, 1.0]), "alphas holds 1"),
        (lambda: distortion_curves([0.5, np.nan]), "alphas contains NaN"),
        (lambda: distortion_curves([0.5], empty=[0.5, 0.5]), "empty has 2 values for 1 alphas"),
        (lambda: distortion_curves([0.5], empty=[1.5]), "empty: 1.5 is above 1"),
        (lambda: distortion_curve(0.5, empty=-1), "empty=-1"),
        (lambda: distortion_curve(0.5, curve=["relu"]), "curve=.* is unknown; use one of 'relu', 'deep'"),
        (lambda: blocks(0.5, starts=None), "starts=None is unknown"),
        (lambda: check_amplitude(3), "amplitude=3 is unknown"),
        (lambda: empty_distortion(0.5, "gamma"), "amplitude='gamma' is unknown"),
    ],
)
def test_other_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_feature_without_variance_loses_nothing_whatever_it_gets():
    assert distortion_curve(0.0, empty=0.0)([0.0, 0.5, 1.0]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 0.4, 0.6])
def test_the_mean_of_several_starts_is_never_below_the_best_of_them(alpha):
    assert (blocks(alpha, starts="mean").distortions >= blocks(alpha, starts="best").distortions).all()
