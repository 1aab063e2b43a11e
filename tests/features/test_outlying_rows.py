import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from geofloor import FeatureStatistics, SparseAutoencoder
from geofloor.features import OutlierRowsWarning, _outlying_rows, drop_outliers
from geofloor.features._outlying_rows import RowView


@pytest.fixture
def rows():
    """Rows with outliers, their numbers, and 20 of 20,000 as in the report of this fault."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20_000, 8)).astype(np.float32)
    at = np.sort(rng.choice(len(rows), 20, replace=False))
    rows[at] *= 300
    return rows, at


def on_disk(rows, path):
    rows.tofile(path)
    return np.memmap(path, dtype=rows.dtype, mode="r", shape=rows.shape)


def test_rows_far_above_the_median_norm_are_left_out(rows):
    values, at = rows
    for container in (values, values.tolist(), torch.from_numpy(values)):
        np.testing.assert_array_equal(drop_outliers(container), np.delete(values, at, axis=0))
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    found = drop_outliers(values, max_norm_ratio=1.5)
    np.testing.assert_array_equal(found, values[norms <= 1.5 * np.median(norms)])
    assert len(drop_outliers(values, max_norm_ratio=1)) == 10_000


def test_rows_on_disk_are_read_as_they_are_needed(rows, tmp_path, monkeypatch):
    values, at = rows
    expected = np.delete(values, at, axis=0)
    view = drop_outliers(on_disk(values, tmp_path / "rows"))
    assert isinstance(view, RowView)
    assert (view.shape, view.dtype, view.ndim, len(view)) == (expected.shape, np.float32, 2, len(expected))
    np.testing.assert_array_equal(view.index, np.delete(np.arange(len(values)), at))
    for key in (0, -1, slice(5, 900, 7), [3, 1, 3], expected[:, 0] > 1, (slice(4), slice(2)), (slice(4), 1), ...):
        np.testing.assert_array_equal(view[key], expected[key])
    np.testing.assert_array_equal(np.concatenate(list(view.iter_batches(999))), expected)
    np.testing.assert_array_equal(np.asarray(view, dtype=np.float64), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(view))[:], expected)
    with pytest.raises(IndexError):
        view[len(view)]


@pytest.mark.parametrize("cut", [1, 37, 8192, 20_000])
def test_streams_do_not_depend_on_their_cuts(rows, cut, monkeypatch):
    monkeypatch.setattr(_outlying_rows, "_ROWS", 1000)
    values, _ = rows
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    expected = values[norms <= 1.2 * np.median(norms[:1000])]
    batches = [values[start : start + cut] for start in range(0, len(values), cut)][: 3000 if cut == 1 else None]
    expected = expected[: (norms[: 3000 if cut == 1 else None] <= 1.2 * np.median(norms[:1000])).sum()]
    listed = drop_outliers(batches, max_norm_ratio=1.2)
    assert isinstance(listed, list)
    np.testing.assert_array_equal(np.concatenate(listed), expected)
    once = drop_outliers(iter(batches), max_norm_ratio=1.2)
    assert iter(once) is once  # for SparseAutoencoder, which refuses to read it twice
    np.testing.assert_array_equal(np.concatenate(list(once)), expected)

    class Stream:
        def __iter__(self):
            return iter(batches)

    stream = drop_outliers(Stream(), max_norm_ratio=1.2)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(stream)), expected)


def test_dictionary_and_table_are_those_without_the_rows(rows, tmp_path):
    values, at = rows
    autoencoder = SparseAutoencoder(12, l0=3, n_epochs=1, random_state=0)
    with pytest.warns(OutlierRowsWarning, match="20 row.*drop_outliers"):
        autoencoder.fit(values)
    expected = autoencoder.fit(np.delete(values, at, axis=0)).decoder_
    kept = drop_outliers(on_disk(values, tmp_path / "rows"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutlierRowsWarning)
        np.testing.assert_array_equal(autoencoder.fit(kept).decoder_, expected)
        table = FeatureStatistics().fit(autoencoder.transform(kept)).table_
    np.testing.assert_array_equal(
        table, FeatureStatistics().fit(autoencoder.transform(np.delete(values, at, axis=0))).table_
    )


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (np.ones((5, 2)), {"max_norm_ratio": 0.9}, "max_norm_ratio=0.9 must be a finite number of at least 1"),
        (np.ones((5, 2)), {"max_norm_ratio": None}, "max_norm_ratio=None"),
        (np.zeros((5, 2)), {}, "X has a median norm of 0"),
        (np.ones(5), {}, "X|array"),
        (np.full((5, 2), np.nan), {}, "X contains NaN"),
        ([np.full((5, 2), np.nan)], {}, "X contains NaN"),
        (iter([]), {}, "X gave no batch"),
        ("rows", {}, "X='rows' is text"),
        (sp.csr_array(np.eye(3)), {}, "parse"),
    ],
)
def test_other_input_is_refused(X, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        list(drop_outliers(X, **options))


def test_damaged_rows_on_disk_are_refused(tmp_path):
    values = np.ones((9, 2), dtype=np.float32)
    values[4, 1] = np.inf
    with pytest.raises(ValueError, match="X contains infinity"):
        drop_outliers(on_disk(values, tmp_path / "rows"))
    with pytest.raises(ValueError, match=r"X has shape \(9,\); give two dimensions"):
        drop_outliers(on_disk(values[:, 0].copy(), tmp_path / "flat"))
