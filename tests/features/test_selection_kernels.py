import numpy as np
import pytest
import torch

from geofloor.features._selection_kernels import select_largest, select_largest_among


def selected(preactivations, k, n_columns):
    """Return the codes that the kernel keeps, as a dense array."""
    n_rows = len(preactivations)
    latents, codes = np.zeros((n_rows, k), np.int32), np.zeros((n_rows, k), preactivations.dtype)
    counts = np.zeros(n_rows, np.int32)
    select_largest(preactivations, 0, k, n_columns, latents, codes, counts, 0, n_rows)
    dense = np.zeros_like(preactivations)
    for row, count in enumerate(counts):
        assert len(set(latents[row, :count])) == count
        dense[row, latents[row, :count]] = codes[row, :count]
    return dense


def kept_by_torch(preactivations, k):
    positive = torch.from_numpy(preactivations).relu()
    values, indices = positive.topk(k, dim=1)
    return torch.zeros_like(positive).scatter_(1, indices, values).numpy()


@pytest.mark.parametrize("n_latents", [40, 117, 1000])
@pytest.mark.parametrize("k", [1, 5, 32])
@pytest.mark.parametrize("offset", [-3.0, 0.0, 5.0])
def test_selection_is_that_of_torch(rng, n_latents, k, offset):
    """Rows have fewer than k positive values at an offset of -3, and no negative one at 5."""
    preactivations = (rng.normal(size=(60, n_latents)) + offset).astype(np.float32)
    for n_columns in {k, min(4 * k, n_latents), n_latents}:
        np.testing.assert_array_equal(selected(preactivations, k, n_columns), kept_by_torch(preactivations, k))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_selection_of_values_of_any_size_is_that_of_torch(rng, scale):
    preactivations = (scale * np.exp(3 * rng.normal(size=(60, 500)))).astype(np.float32)
    np.testing.assert_array_equal(selected(preactivations, 20, 160), kept_by_torch(preactivations, 20))


def test_of_equal_values_only_k_are_kept(rng):
    preactivations = rng.integers(-2, 3, size=(50, 300)).astype(np.float32)
    codes = selected(preactivations, 20, 64)
    assert ((codes > 0).sum(axis=1) == 20).all()
    np.testing.assert_array_equal(codes[codes > 0], 2.0)
    assert not selected(np.zeros((3, 300), np.float32), 20, 64).any()


@pytest.mark.parametrize("k", [1, 7, 30])
def test_selection_among_chosen_latents_is_that_of_torch(rng, k):
    preactivations = rng.normal(size=(60, 100)).astype(np.float32)
    chosen = np.sort(rng.choice(100, size=30, replace=False)).astype(np.int32)
    latents, codes = np.zeros((60, k), np.int32), np.zeros((60, k), np.float32)
    counts = np.zeros(60, np.int32)
    select_largest_among(preactivations, chosen, 0, k, 30, latents, codes, counts, 0, 60)
    expected = np.zeros_like(preactivations)
    expected[:, chosen] = kept_by_torch(preactivations[:, chosen], k)
    for row, count in enumerate(counts):
        assert (np.bincount(latents[row, :count], minlength=1) <= 1).all()
        np.testing.assert_array_equal(codes[row, :count], preactivations[row, latents[row, :count]])
        np.testing.assert_array_equal(np.sort(latents[row, :count]), expected[row].nonzero()[0])
