import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from geofloor.theory import NonMonotoneCapacityWarning, capacity, critical_width, kept_features

EXACT = ["minimax", "minimax_nonnegative"]


@pytest.mark.parametrize(
    ("density", "signed", "nonnegative", "asymptotic"),
    [
        (0.5, 0.831300, 0.695631, 2.885),
        (0.1, 0.328794, 0.265304, 4.343),
        (0.05, 0.203900, 0.167082, 6.676),
        (0.01, 0.061244, 0.052219, 21.72),
        (0.008, 0.051432, 0.044071, 25.89),
        (0.001, 0.009458, 0.008415, 144.8),
    ],
)
@pytest.mark.filterwarnings("ignore::geofloor.theory.NonMonotoneCapacityWarning")
def test_reference_values(density, signed, nonnegative, asymptotic):
    assert 1 / capacity(1 - density, "minimax") == pytest.approx(signed, abs=6e-7)
    assert 1 / capacity(1 - density, "minimax_nonnegative") == pytest.approx(nonnegative, abs=6e-7)
    assert capacity(1 - density) == pytest.approx(asymptotic, rel=3e-4)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 2.0, 3.0, 4.0])
def test_exact_capacity_on_the_parametric_curve(method, tau):
    n_tails = 2 if method == "minimax" else 1
    excess = n_tails * (norm.pdf(tau) - tau * norm.sf(tau))
    density = excess / (tau + excess)
    risk = density * (1 + tau**2) + (1 - density) * n_tails * ((1 + tau**2) * norm.sf(tau) - tau * norm.pdf(tau))
    assert capacity(1 - density, method) == pytest.approx(1 / risk, rel=1e-9)


@given(density=st.floats(1e-6, 1))
def test_exact_capacity_is_the_infimum_over_thresholds(density):
    def risk(tau):
        return density * (1 + tau**2) + (1 - density) * ((1 + tau**2) * norm.sf(tau) - tau * norm.pdf(tau))

    found = minimize_scalar(risk, bounds=(0, 12), method="bounded", options={"xatol": 1e-10})
    # Density is passed on as alpha = 1 - density, which rounds.
    assert capacity(1 - density, "minimax_nonnegative") == pytest.approx(1 / found.fun, rel=1e-7)


@pytest.mark.parametrize("method", EXACT)
def test_exact_capacity_is_one_at_zero_and_increases(method):
    values = capacity(np.concatenate([np.linspace(0, 0.998, 500), 1 - np.geomspace(1e-3, 1e-12, 50)]), method)
    assert values[0] == 1
    assert (np.diff(values) > 0).all()


def test_equation_1_as_the_paper_writes_it():
    alpha = np.array([0.7, 0.9, 0.99, 0.999])
    np.testing.assert_allclose(capacity(alpha), 1 / ((1 - alpha) * np.log(1 / (1 - alpha))), rtol=1e-12)
    assert capacity(0.0) == 1


def test_equation_1_warns_where_it_is_not_monotone():
    with pytest.warns(NonMonotoneCapacityWarning, match="minimax_nonnegative"):
        assert capacity(0.3) > capacity(1 - np.exp(-1))


def test_scalar_in_scalar_out_and_arrays_keep_their_shape():
    assert isinstance(capacity(0.9), float)
    assert isinstance(kept_features(7, 0.9), int)
    assert isinstance(critical_width(100, 0.9), float)
    for method in ("asymptotic", *EXACT):
        assert capacity(np.full((2, 3), 0.9), method).shape == (2, 3)
    assert kept_features([1, 2, 3], 0.9).dtype == np.int64


def test_capacity_by_a_callable():
    assert capacity(0.5, method=lambda alpha: 2 / (1 - alpha)) == 4
    with pytest.raises(ValueError, match="above 0"):
        capacity(0.5, method=lambda alpha: -1.0)


def test_kept_features_is_the_floor_of_width_times_capacity():
    assert kept_features(10, 0.9) == 43  # 10 * 4.3429...
    assert kept_features(10, 0.0, "minimax") == 10


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 2.0, [0.5, 1.0]])
def test_sparsity_outside_its_range_is_named(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* is no sparsity"):
        capacity(alpha)


@pytest.mark.parametrize(
    "alpha",
    [np.nan, np.inf, None, "0.9", 0.9j, 10**400, {0.9}, np.ma.array([0.5, 0.9], mask=[0, 1]), np.timedelta64(1)],
)
def test_what_is_no_sparsity_at_all_is_named(alpha):
    for function in (capacity, lambda given: kept_features(3, given), lambda given: critical_width(3, given)):
        with pytest.raises(ValueError, match="alpha"):
            function(alpha)


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match="method='exact' is unknown"):
        capacity(0.9, "exact")
    with pytest.raises(ValueError, match=r"width: -1"):
        kept_features(-1, 0.9)
    with pytest.raises(ValueError, match=r"n_features contains NaN"):
        critical_width(np.nan, 0.9)
    with pytest.raises(ValueError, match=r"width has shape \(2,\) and alpha \(3,\)"):
        kept_features([1, 2], [0.9, 0.9, 0.9])
    with pytest.raises(ValueError, match="d\\* overflows"):
        critical_width(10, 0.9, lambda _: 1e-308)


@pytest.mark.filterwarnings("ignore::geofloor.theory.NonMonotoneCapacityWarning")
@pytest.mark.parametrize("alpha", [5e-324, 1e-320, 1e-310])
def test_equation_1_next_to_zero_is_the_largest_float_or_near_it(alpha):
    with np.errstate(all="raise", under="ignore"):
        assert capacity(alpha) == min(1 / alpha if alpha > 5.6e-309 else np.inf, np.finfo(float).max)
        assert kept_features([0, 1, 1e300], alpha).tolist() == [0, 2**62, 2**62]
        assert critical_width(0, alpha) == 0


def test_a_complex_capacity_is_refused():
    with pytest.raises(ValueError, match=r"method\(0.5\)=\(1\+1j\) must be a finite number above 0"):
        capacity(0.5, lambda _: 1 + 1j)


def test_tensors_of_any_dtype_are_sparsities():
    exact = torch.tensor([0.5, 0.75])
    for alpha in (exact, exact.bfloat16(), exact.clone().requires_grad_()):
        np.testing.assert_array_equal(capacity(alpha, "minimax"), capacity([0.5, 0.75], "minimax"))


def test_an_empty_result_shares_no_memory_with_the_caller():
    alpha = np.empty(0)
    assert capacity(alpha, lambda _: 2.0) is not alpha
