"""FeatureStatistics against dense brute force."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_estimators_partial_fit_n_features,
    check_get_feature_names_out_error,
    check_set_output_transform,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    parametrize_with_checks,
)

from geofloor import FeatureStatistics, FloorPredictor
from geofloor.features import OutlierRowsWarning, power_law_tail
from geofloor.theory import capacity, critical_width

CONTAINERS = [np.asarray, sp.csr_array, sp.csr_matrix, sp.csc_array]
# Small integers are summed without rounding, so that results can be compared exactly.
integer_codes = arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 6)), elements=st.integers(-3, 9)).filter(
    lambda codes: codes.any()
)


def sparse_codes(n_tokens=200, n_latents=80, *, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    fires = rng.random((n_tokens, n_latents)) < np.linspace(0.01, 0.3, n_latents)
    return np.where(fires, 10 * rng.exponential(size=fires.shape), 0).astype(dtype)


def brute_force(codes, min_firing_rate):
    codes = np.asarray(codes, dtype=np.float64)
    columns = np.stack([(codes**2).mean(0), (codes != 0).mean(0), codes.mean(0)], axis=1)
    alive = [j for j in range(codes.shape[1]) if columns[j, 1] > min_firing_rate]
    alive.sort(key=lambda j: -columns[j, 0])
    return columns[alive], alive


# The rows of a feature table are features, so four checks that count output rows as samples cannot hold.
@parametrize_with_checks(
    [FeatureStatistics()],
    expected_failed_checks=lambda _: {
        "check_transformer_general": "asserts one output row per sample; what else it asserts is in "
        "test_transform_of_the_fitted_codes_is_the_table and test_another_number_of_latents_is_refused",
        "check_transformer_data_not_an_array": "asserts one output row per sample; covered by "
        "test_lists_and_other_array_likes_are_one_matrix",
        "check_methods_sample_order_invariance": "indexes output rows by sample; covered by "
        "test_order_of_tokens_does_not_matter",
        "check_methods_subset_invariance": "joins outputs of subsets as rows; covered by "
        "test_tables_of_subsets_average_to_that_of_the_whole",
    },
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "check",
    [
        check_dataframe_column_names_consistency,
        check_estimators_partial_fit_n_features,
        check_get_feature_names_out_error,
        check_set_output_transform,
        check_transformer_get_feature_names_out,
        check_transformer_get_feature_names_out_pandas,
    ],
)
def test_checks_that_scikit_learn_keeps_for_itself(check):
    check("FeatureStatistics", FeatureStatistics())


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32, np.int64, np.bool_])
@pytest.mark.parametrize("container", CONTAINERS)
def test_table_equals_brute_force(container, dtype):
    codes = sparse_codes(dtype=dtype)
    table, alive = brute_force(codes, 0.05)
    statistics = FeatureStatistics(min_firing_rate=0.05).fit(container(codes))
    np.testing.assert_allclose(statistics.table_, table, rtol=1e-13)
    np.testing.assert_array_equal(statistics.alive_, alive)
    assert 0 < statistics.n_alive_ == len(alive) < statistics.n_features_in_ == 80


def test_matrices_larger_than_a_chunk_equal_brute_force():
    codes = sparse_codes(3_000, 300)
    assert np.count_nonzero(codes) > 2**17 < codes.size
    table, _ = brute_force(codes, 1e-5)
    np.testing.assert_allclose(FeatureStatistics().fit(codes).table_, table, rtol=1e-12)
    np.testing.assert_allclose(FeatureStatistics().fit(sp.csr_array(codes)).table_, table, rtol=1e-12)


def test_float32_codes_are_summed_in_float64():
    codes = np.full((100_000, 1), 0.1, dtype=np.float32)
    exact = float(np.float32(0.1))
    for container in (np.asarray, sp.csr_array):
        table = FeatureStatistics().fit(container(codes)).table_
        np.testing.assert_allclose(table, [[exact**2, 1, exact]], rtol=1e-11)


def test_sparsity_and_width_follow_the_papers_definitions():
    codes = sparse_codes(500, 60)
    statistics = FeatureStatistics(min_firing_rate=0.05, capacity="minimax").fit(codes)
    alive = (codes != 0).mean(0) > 0.05
    mean_l0 = (codes[:, alive] != 0).sum(1).mean()
    assert statistics.mean_l0_ == pytest.approx(mean_l0, rel=1e-13)
    assert statistics.alpha_ == pytest.approx(1 - mean_l0 / alive.sum(), rel=1e-13)
    assert statistics.capacity_ == capacity(statistics.alpha_, "minimax")
    assert statistics.critical_width_ == critical_width(alive.sum(), statistics.alpha_, "minimax")


def test_stored_zeros_do_not_fire():
    codes = sp.csr_array(sparse_codes())
    data = codes.data.copy()
    data[::3] = 0
    codes = sp.csr_array((data, codes.indices, codes.indptr), shape=codes.shape)
    statistics = FeatureStatistics().fit(codes)
    assert codes.nnz == len(data)
    np.testing.assert_allclose(statistics.table_, brute_force(codes.toarray(), 1e-5)[0], rtol=1e-13)


def test_unsorted_and_repeated_entries_count_as_in_scipy():
    codes = sp.csr_array(([1.0, 2.0, -3.0, 4.0, 4.0], [2, 0, 2, 1, 0], [0, 3, 5]), shape=(2, 3))
    statistics = FeatureStatistics().fit(codes)
    table, alive = brute_force(codes.toarray(), 1e-5)
    np.testing.assert_array_equal(statistics.table_, table)
    np.testing.assert_array_equal(statistics.alive_, alive)
    assert codes.nnz == 5


@pytest.mark.parametrize("container", CONTAINERS)
def test_callers_arrays_are_left_alone(container):
    codes = container(sparse_codes())
    before = codes.copy()
    for array in (codes,) if isinstance(codes, np.ndarray) else (codes.data, codes.indices, codes.indptr):
        array.flags.writeable = False
    FeatureStatistics().fit(codes).partial_fit(codes).transform(codes)
    assert (codes != before).sum() == 0


@given(integer_codes, st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_batches_streams_and_merged_workers_equal_one_pass(codes, cut):
    parts = [part for part in np.split(codes, [min(cut, len(codes))]) if len(part)]
    whole = FeatureStatistics().fit(codes)
    partial, first = FeatureStatistics(), FeatureStatistics().partial_fit(parts[0])
    for part in parts:
        partial.partial_fit(sp.csr_array(part))
    for part in parts[1:]:
        assert first.merge(FeatureStatistics().partial_fit(part)) is first
    streamed = FeatureStatistics().fit(sp.csr_array(part) for part in parts)
    listed = FeatureStatistics().fit(parts)
    for other in (partial, first, streamed, listed):
        assert other.n_tokens_ == len(codes)
        np.testing.assert_array_equal(other.table_, whole.table_)
        np.testing.assert_array_equal(other.alive_, whole.alive_)


@given(integer_codes, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_renumbering_latents_renumbers_the_table(codes, random):
    new_places = np.array(random.sample(range(codes.shape[1]), codes.shape[1]))
    moved = np.empty_like(codes)
    moved[:, new_places] = codes
    before, after = FeatureStatistics().fit(codes), FeatureStatistics().fit(moved)
    np.testing.assert_array_equal(before.table_[:, 0], after.table_[:, 0])
    rows = {latent: tuple(row) for latent, row in zip(after.alive_, after.table_, strict=True)}
    assert rows == {new_places[j]: tuple(row) for j, row in zip(before.alive_, before.table_, strict=True)}


@given(integer_codes, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_of_tokens_does_not_matter(codes, random):
    order = random.sample(range(len(codes)), len(codes))
    statistics = FeatureStatistics().fit(codes)
    np.testing.assert_array_equal(statistics.transform(codes[order]), statistics.table_)


@given(integer_codes)
@settings(max_examples=50, deadline=None)
def test_importance_falls_and_ties_stand_in_order_of_latent(codes):
    statistics = FeatureStatistics().fit(codes)
    keys = [(-row[0], latent) for row, latent in zip(statistics.table_, statistics.alive_, strict=True)]
    assert keys == sorted(keys)


def test_tables_of_subsets_average_to_that_of_the_whole():
    codes = sparse_codes(30, 12)
    statistics = FeatureStatistics().fit(codes)
    tables = [statistics.transform(token[None]) for token in codes]
    np.testing.assert_allclose(np.mean(tables, axis=0), statistics.table_, rtol=1e-13)


@pytest.mark.parametrize("container", CONTAINERS)
def test_transform_of_the_fitted_codes_is_the_table(container):
    codes = container(sparse_codes())
    statistics = FeatureStatistics(min_firing_rate=0.05)
    returned = statistics.fit_transform(codes)
    np.testing.assert_array_equal(returned, statistics.table_)
    np.testing.assert_array_equal(statistics.transform(codes), statistics.table_)
    returned[:] = 0
    assert statistics.table_.any()


def test_transform_measures_the_fitted_features_on_other_codes():
    train, test = sparse_codes(seed=1), sparse_codes(50, seed=2)
    statistics = FeatureStatistics(min_firing_rate=0.1).fit(train)
    test[:, statistics.alive_[0]] = 0
    table = statistics.transform(sp.csr_array(test))
    for row, latent in zip(table, statistics.alive_, strict=True):
        column = test[:, latent]
        np.testing.assert_allclose(row, [(column**2).mean(), (column != 0).mean(), column.mean()], rtol=1e-13)
    np.testing.assert_array_equal(table[0], 0)
    np.testing.assert_array_equal(statistics.transform(iter([test[:20], test[20:]])).round(12), table.round(12))


def test_lists_and_other_array_likes_are_one_matrix():
    codes = sparse_codes(20, 5)

    class ArrayLike:
        def __array__(self, dtype=None, copy=None):
            return codes.astype(dtype or codes.dtype)

    expected = FeatureStatistics().fit(codes).table_
    for same in (codes.tolist(), tuple(map(tuple, codes.tolist())), list(codes), ArrayLike(), pd.DataFrame(codes)):
        statistics = FeatureStatistics().fit(same)
        assert statistics.n_tokens_ == 20
        np.testing.assert_allclose(statistics.table_, expected, rtol=1e-14)


def test_pandas_output_is_indexed_by_latent():
    codes = sparse_codes()
    statistics = FeatureStatistics(min_firing_rate=0.05).set_output(transform="pandas")
    expected, alive = brute_force(codes, 0.05)
    frame = pd.DataFrame(codes, index=[f"token {i}" for i in range(len(codes))]).add_prefix("latent ")
    for same in (codes, sp.csr_array(codes), frame):
        for output in (statistics.fit_transform(same), statistics.transform(same)):
            assert list(output.columns) == ["importance", "firing_rate", "mean"]
            assert list(output.index) == alive
            np.testing.assert_allclose(output, expected, rtol=1e-13)


def test_fits_a_floor_predictor_in_a_pipeline():
    codes = sp.csr_array(sparse_codes(400, 90))
    pipeline = make_pipeline(FeatureStatistics(), FloorPredictor()).fit(codes)
    statistics = FeatureStatistics().fit(codes)
    assert pipeline[-1].alpha_ == pytest.approx(statistics.alpha_, rel=1e-14)
    assert pipeline[-1].critical_width_ == pytest.approx(statistics.critical_width_, rel=1e-13)
    np.testing.assert_array_equal(pipeline[-1].importances_, statistics.table_[:, 0])


def test_attributes_follow_later_batches_and_survive_pickling():
    first, second = sparse_codes(seed=1), sparse_codes(seed=2)
    statistics = FeatureStatistics().partial_fit(first)
    before = (statistics.table_, statistics.tail_exponent_)
    restored = pickle.loads(pickle.dumps(statistics)).partial_fit(second)
    whole = FeatureStatistics().fit(np.concatenate([first, second]))
    np.testing.assert_allclose(restored.table_, whole.table_, rtol=1e-13)
    assert restored.tail_exponent_ == pytest.approx(whole.tail_exponent_, rel=1e-12)
    assert statistics.table_ is before[0]
    assert not hasattr(clone(statistics), "table_")


def test_tail_attributes_are_the_tail_of_the_importances():
    statistics = FeatureStatistics(level=0.5).fit(sparse_codes())
    tail = power_law_tail(statistics.table_[:, 0], level=0.5)
    assert statistics.tail_exponent_ == tail.exponent
    assert statistics.tail_exponent_interval_ == tail.interval
    assert statistics.tail_start_ == tail.start


# --- bad input


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_codes_that_are_not_finite_are_refused_and_nothing_is_added(container, value):
    codes = sparse_codes()
    statistics = FeatureStatistics().fit(codes)
    table = statistics.table_.copy()
    broken = codes.copy()
    broken[3, 4] = value
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        statistics.partial_fit(container(broken))
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        statistics.partial_fit(iter([container(codes), container(broken)]))
    assert statistics.n_tokens_ == len(codes)
    np.testing.assert_array_equal(statistics.table_, table)


@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_squares_that_overflow_are_refused(container):
    with pytest.raises(ValueError, match="overflow"):
        FeatureStatistics().fit(container([[1e200, 1.0]]))


@pytest.mark.parametrize("codes", [[], np.empty((0, 3)), sp.csr_array((0, 3)), iter([]), np.ones(3)])
def test_empty_or_one_dimensional_codes_are_refused(codes):
    with pytest.raises(ValueError, match=r"batch|sample|2D"):
        FeatureStatistics().fit(codes)


def test_another_number_of_latents_is_refused():
    statistics = FeatureStatistics().fit(np.ones((2, 4)))
    narrower = np.ones((2, 3))
    with pytest.raises(ValueError, match="3 features, but FeatureStatistics is expecting 4"):
        statistics.transform(narrower)
    with pytest.raises(ValueError, match="3 features, but FeatureStatistics is expecting 4"):
        statistics.partial_fit(narrower)
    with pytest.raises(ValueError, match="3 features, but FeatureStatistics is expecting 4"):
        FeatureStatistics().fit([np.ones((2, 4)), narrower])
    with pytest.raises(ValueError, match="other has 3 latents and self 4"):
        statistics.merge(FeatureStatistics().fit(narrower))


def test_merge_takes_fitted_statistics_only():
    statistics = FeatureStatistics().fit(np.ones((2, 4)))
    with pytest.raises(ValueError, match="other=3"):
        statistics.merge(3)
    with pytest.raises(NotFittedError):
        statistics.merge(FeatureStatistics())
    with pytest.raises(NotFittedError):
        FeatureStatistics().merge(statistics)


def test_merge_leaves_the_other_as_it_is():
    statistics, other = FeatureStatistics().fit(np.eye(3)), FeatureStatistics().fit(2 * np.eye(3))
    table = other.table_.copy()
    statistics.merge(other).partial_fit(np.eye(3))
    assert other.n_tokens_ == 3
    np.testing.assert_array_equal(other.table_, table)


def test_no_feature_alive_names_the_bound_the_rate_and_the_remedy():
    codes = np.eye(4)
    with pytest.raises(ValueError, match=r"largest firing rate on 4 tokens is 0\.25.*min_firing_rate=0\.5; lower it"):
        FeatureStatistics(min_firing_rate=0.5).fit(codes)


def test_features_may_all_be_dead_between_batches():
    statistics = FeatureStatistics().partial_fit(sp.csr_array((5, 3)))
    assert not hasattr(statistics, "table_")  # and so scikit-learn's HTML display does not fail
    assert "FeatureStatistics" in statistics._repr_html_()
    with pytest.raises(ValueError, match="No feature is alive"):
        statistics.transform(np.eye(3))
    assert statistics.partial_fit(np.eye(3)).n_alive_ == 3


@pytest.mark.parametrize(
    "parameters",
    [
        {"min_firing_rate": -1e-9},
        {"min_firing_rate": 1.0},
        {"min_firing_rate": np.nan},
        {"level": 0},
        {"level": 95},
        {"capacity": "exact"},
    ],
)
def test_parameters_out_of_range_are_refused_before_any_work(parameters):
    def codes():
        raise AssertionError("codes were read")
        yield

    with pytest.raises(ValueError, match=f"{next(iter(parameters))}="):
        FeatureStatistics(**parameters).fit(codes())


@pytest.mark.parametrize(
    "codes",
    [
        "codes.npy",
        {"a": 1.0},
        {1.0},
        np.ma.array([[1.0, 2.0]], mask=[[0, 1]]),
        np.array([["2020-01-01", "2020-01-02"]], dtype="datetime64[D]"),
        pd.DataFrame({"a": pd.to_datetime(["2020-01-01", "2020-01-02"])}).assign(b=lambda frame: frame["a"]),
        [[10**400, 1.0]],
        [[{}, 1.0]],
    ],
    ids=lambda codes: type(codes).__name__,
)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform"])
def test_codes_that_are_no_numbers_are_refused_by_name(codes, method):
    statistics = FeatureStatistics().fit(np.eye(2))
    with pytest.raises((ValueError, TypeError), match="codes"):
        getattr(statistics, method)(codes)


def test_tensors_of_any_dtype_and_streams_of_them_are_codes():
    codes = torch.tensor(sparse_codes(40, 12)).bfloat16()
    expected = FeatureStatistics().fit(codes.double().numpy()).table_
    for same in (codes, codes.clone().requires_grad_(), codes.float().requires_grad_(), iter(codes.split(13))):
        np.testing.assert_allclose(FeatureStatistics().fit(same).table_, expected, rtol=1e-13)


@pytest.mark.parametrize("container", [sp.csr_array, sp.csc_matrix])
@pytest.mark.parametrize("fault", ["index", "pointer"])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform"])
def test_malformed_sparse_codes_are_refused_before_compiled_code_reads_them(container, fault, method):
    codes = container(sparse_codes())
    if fault == "index":
        codes.indices[3] = 10**6
    else:
        codes.indptr[1] = 10**6
    statistics = FeatureStatistics().fit(sparse_codes())
    with pytest.raises(ValueError, match="codes is a malformed"):
        getattr(statistics, method)(codes)
    with pytest.raises(ValueError, match="codes is a malformed"):
        getattr(statistics, method)(iter([codes]))


@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_squares_that_overflow_together_or_vanish_are_refused(container):
    with pytest.raises(ValueError, match="scale them down"):
        FeatureStatistics().fit(container([[1e154, 1e154], [1e154, 1e154]]))
    with pytest.raises(ValueError, match="so small that their squares vanish"):
        FeatureStatistics().fit(container([[1e-170, 0.0], [0.0, 1e-160]]))


# --- warnings


def warnings_of(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return seen


def test_dense_codes_get_one_warning_at_fit_and_none_at_their_attributes():
    codes = np.maximum(np.random.default_rng(0).standard_normal((500, 40)), 0.0)
    for method in ("fit", "fit_transform"):
        (seen,) = warnings_of(lambda: getattr(FeatureStatistics(), method)(codes))  # noqa: B023 - called at once
        assert seen.category is ConvergenceWarning
        assert seen.filename == __file__
        for text in ("of 40 alive latents fire", "is below 0.632", "train it for longer"):
            assert text in str(seen.message)
    statistics = FeatureStatistics().fit(codes)
    assert not warnings_of(lambda: (statistics.capacity_, statistics.critical_width_, statistics.table_))
    in_batches = FeatureStatistics()
    assert not warnings_of(lambda: [in_batches.partial_fit(part) for part in np.split(codes, 5)])
    (seen,) = warnings_of(lambda: in_batches.table_)
    assert seen.filename == __file__
    assert not warnings_of(lambda: FeatureStatistics().fit(sparse_codes()))


def test_each_step_of_a_pipeline_names_its_own_consequence_of_dense_codes():
    codes = np.maximum(np.random.default_rng(0).standard_normal((500, 40)), 0.0)
    first, second = warnings_of(lambda: make_pipeline(FeatureStatistics(), FloorPredictor()).fit(codes))
    assert first.category is second.category is ConvergenceWarning
    assert first.filename == second.filename == __file__
    assert "importances are not those of single features" in str(first.message)
    assert "floors are no forecast" in str(second.message)


def codes_with_sinks(factor, n_tokens=20_000, n_sinks=20):
    codes = sp.random_array((n_tokens, 300), density=0.03, rng=np.random.default_rng(0), format="csr")
    scale = np.ones(n_tokens)
    scale[np.arange(n_sinks) * (n_tokens // n_sinks) + 7] = factor
    return sp.csr_array(codes.multiply(scale[:, None]))


def test_outlying_rows_give_a_warning():
    codes = codes_with_sinks(300.0)
    (seen,) = warnings_of(lambda: FeatureStatistics().fit(codes))
    assert seen.category is OutlierRowsWarning
    assert seen.filename == __file__
    energies = np.sort(np.square(codes.toarray()).sum(axis=1))
    assert (
        f"20 of the {np.count_nonzero(energies):,} rows with firings carry {energies[-20:].sum() / energies.sum():.0%}"
        in str(seen.message)
    )
    assert "drop them" in str(seen.message)


def test_heavy_tailed_and_rare_codes_get_no_warning():
    rng = np.random.default_rng(0)
    exponential = rng.exponential(size=(20_000, 1)) * (rng.random((20_000, 50)) < 0.02)
    rare = np.where(rng.random((50_000, 10)) < 1e-4, 1.0, 0.0)
    for codes in (codes_with_sinks(1.0), codes_with_sinks(5.0), exponential, rare):
        assert not warnings_of(lambda: FeatureStatistics().fit(codes))  # noqa: B023 - called at once


def test_the_warning_of_outlying_rows_does_not_depend_on_batches_or_format():
    codes = codes_with_sinks(300.0, n_tokens=2_000, n_sinks=2)
    parts = [codes[:700], codes[700:701], codes[701:]]
    merged = FeatureStatistics()
    for part in parts:
        merged.partial_fit(part)
    workers = [FeatureStatistics().partial_fit(part) for part in parts]
    texts = set()
    for call in (
        lambda: FeatureStatistics().fit(codes),
        lambda: FeatureStatistics().fit(codes.toarray()),
        lambda: FeatureStatistics().fit(iter(parts)),
        lambda: merged.table_,
        lambda: workers[0].merge(workers[2]).merge(workers[1]).table_,
    ):
        (seen,) = warnings_of(call)
        texts.add(str(seen.message))
    assert len(texts) == 1


@pytest.mark.parametrize(
    "attribute", ["alive_", "table_", "n_alive_", "alpha_", "critical_width_", "tail_exponent_", "tail_start_"]
)
def test_attributes_before_fit_raise_not_fitted(attribute):
    with pytest.raises(NotFittedError):
        getattr(FeatureStatistics(), attribute)


def test_the_frame_names_columns_and_latents():
    fitted = FeatureStatistics().fit(np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    frame = fitted.frame()
    assert (frame.columns.tolist(), frame.index.name, frame.index.tolist()) == (
        ["importance", "firing_rate", "mean"],
        "latent",
        [1, 0],
    )
    frame["mean"] = 0.0  # a copy
    np.testing.assert_array_equal(fitted.frame().to_numpy(), fitted.table_)
