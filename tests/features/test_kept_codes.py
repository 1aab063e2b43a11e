import numpy as np
import pytest
import torch

from geofloor.features._kept_codes import AbovePerBatch, KeptCodes, drop_to, join, nth_largest
from geofloor.features._threads import KernelThreads


def dense(kept, n_latents):
    """Return the codes as a dense array, with each code in its row."""
    codes = np.zeros((len(kept.counts), n_latents), kept.values.dtype)
    for row, (first, count) in enumerate(zip(kept.firsts, kept.counts, strict=True)):
        at = slice(first, first + count)
        assert (np.diff(kept.latents[at]) > 0).all()
        codes[row, kept.latents[at]] = kept.values[at]
    return codes


def collected(preactivations, piece, guess, n_wanted=None):
    selection = AbovePerBatch(KernelThreads(), preactivations.dtype.type(guess), n_wanted)
    for first in range(0, len(preactivations), piece):
        selection.add(first, preactivations[first : first + piece])
    return selection.finish()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("piece", [1, 7, 40])
@pytest.mark.parametrize("guess", [0, 20])
def test_the_largest_of_a_batch_and_their_ties_are_kept(rng, dtype, piece, guess):
    """Whole numbers have many ties, and small pieces raise the bound many times."""
    preactivations = rng.integers(-100, 100, size=(40, 130)).astype(dtype)
    least = np.sort(preactivations.ravel())[-150]
    kept = collected(preactivations, piece, guess, n_wanted=150)
    assert nth_largest(kept, 150) == least
    np.testing.assert_array_equal(dense(kept, 130), np.where(preactivations >= least, preactivations, 0))


@pytest.mark.parametrize("piece", [7, 40])
def test_without_a_number_all_above_the_guess_are_kept(rng, piece):
    preactivations = rng.normal(size=(40, 130)).astype(np.float32)
    kept = collected(preactivations, piece, 0.5)
    np.testing.assert_array_equal(dense(kept, 130), np.where(preactivations > 0.5, preactivations, 0))
    assert len(kept.values) == kept.counts.sum()
    assert len(collected(preactivations, piece, 100.0).values) == 0


def test_values_that_are_not_numbers_are_left_out():
    preactivations = np.array([[1.0, np.nan, np.inf, -np.inf, 2.0]], np.float32)
    kept = collected(preactivations, 1, 0.0, n_wanted=2)
    assert kept.latents.tolist() == [2, 4]


def test_dropped_codes_leave_no_gaps():
    """Codes of a row that are not counted, as TopK leaves them, go too."""
    kept = KeptCodes(
        np.array([3, 1, 9, 5, 4, 2], np.int32),
        np.array([1.0, 3.0, 9.0, 2.0, 5.0, 0.5]),
        np.array([0, 3]),
        np.array([2, 3], np.int32),
    )
    twice = join(kept, kept)
    for part in drop_to(twice, 1.5), drop_to(kept, 1.5):
        n_rows = len(part.counts)
        np.testing.assert_array_equal(part.latents, [1, 5, 4] * (n_rows // 2))
        np.testing.assert_array_equal(part.values, [3.0, 2.0, 5.0] * (n_rows // 2))
        np.testing.assert_array_equal(part.counts, [1, 2] * (n_rows // 2))
        np.testing.assert_array_equal(part.firsts, np.cumsum(part.counts) - part.counts)


def test_positive_bfloat16_numbers_have_the_order_of_their_bits(rng):
    numbers = torch.from_numpy(np.exp(20 * rng.normal(size=1000))).bfloat16()
    bits = numbers.view(torch.int16)
    assert torch.equal(numbers[bits.sort().indices], numbers.sort().values)
    assert (bits > 0).all()
    assert ((-numbers).view(torch.int16) < 0).all()
