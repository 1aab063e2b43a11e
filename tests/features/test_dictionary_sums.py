import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics.pairwise import cosine_similarity

from geofloor.features import _dictionary_sums
from geofloor.features._dictionary_sums import DictionarySums, nearest_cosines


class Linear:
    """Rectified codes and an affine decoder, dense or sparse."""

    def __init__(self, weights, bias, *, sparse=False):
        self.weights, self.bias, self.sparse = weights, bias, sparse

    def transform(self, X):
        codes = np.maximum((X - self.bias) @ self.weights.T - 1.0, 0.0)
        return sp.csr_array(codes) if self.sparse else codes

    def inverse_transform(self, codes):
        return codes @ self.weights + self.bias


@pytest.fixture
def rows(rng):
    return (rng.normal(size=(50, 6)) + 3.0).astype(np.float32)


@pytest.fixture
def weights(rng):
    return rng.normal(size=(9, 6))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("codes_at_a_time", [2**24, 30])
def test_sums_are_those_of_all_rows_at_once(rows, weights, monkeypatch, sparse, codes_at_a_time):
    monkeypatch.setattr(_dictionary_sums, "_CODES_AT_A_TIME", codes_at_a_time)
    dictionary = Linear(weights, np.full(6, 2.5), sparse=sparse)
    codes = np.asarray(sp.csr_array(dictionary.transform(rows)).toarray())
    decoded = codes @ weights + 2.5
    x, mean = rows.astype(np.float64), rows.mean(axis=0, dtype=np.float64)
    sums = DictionarySums(dictionary, rows)
    found = np.concatenate([sums.reconstruct(rows[:20], mean), sums.reconstruct(rows[20:], mean)])
    np.testing.assert_allclose(found, decoded, rtol=1e-5)
    assert (sums.n_tokens, sums.n_latents) == (50, 9)
    np.testing.assert_array_equal(sums.n_fired, (codes != 0).sum(axis=0))
    assert sums.l0 == pytest.approx((codes != 0).sum(axis=1).mean())
    assert sums.explained_variance == pytest.approx(1 - ((x - decoded) ** 2).sum() / ((x - mean) ** 2).sum(), rel=1e-6)
    norms = np.linalg.norm(decoded, axis=1) / np.linalg.norm(x, axis=1)
    assert sums.l2_ratio == pytest.approx(norms.mean(), rel=1e-6)
    assert sums.relative_reconstruction_bias == pytest.approx((decoded**2).sum() / (x * decoded).sum(), rel=1e-6)
    y = decoded - mean
    assert sums.centered_reconstruction_bias == pytest.approx((y**2).sum() / ((x - mean) * y).sum(), rel=1e-5)
    rates = (codes != 0).mean(axis=0)
    assert sums.share_firing_over(0.1) == (rates > 0.1).mean() < sums.share_firing_over(0.0) <= 1.0


def test_codes_that_shrink_alike_show_in_the_centered_bias_alone(rows, rng):
    rows = rows + 100.0  # a large mean
    mean = rows.mean(axis=0, dtype=np.float64)

    class Shrinking:
        def transform(self, X):
            return 0.8 * (X - mean)

        def inverse_transform(self, codes):
            return codes + mean

    sums = DictionarySums(Shrinking(), rows)
    sums.reconstruct(rows, mean)
    assert sums.centered_reconstruction_bias == pytest.approx(0.8, abs=1e-4)
    assert sums.relative_reconstruction_bias == pytest.approx(1.0, abs=1e-3)
    assert sums.l2_ratio == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("sparse", [False, True])
def test_directions_are_those_of_the_decoder_whatever_its_bias(rows, weights, sparse):
    dictionary = Linear(weights, np.full(6, 2.5), sparse=sparse)
    sums = DictionarySums(dictionary, rows)
    np.testing.assert_allclose(sums.directions(np.array([7, 2])), weights[[7, 2]], atol=1e-5)
    assert sums.directions(np.empty(0, dtype=np.int64)).shape == (0, 6)
    dictionary.decoder_ = weights + 1.0  # taken where it is there
    np.testing.assert_allclose(sums.directions(np.array([7, 2])), weights[[7, 2]] + 1.0, rtol=1e-6)
    dictionary.decoder_ = weights.T  # of another layout: not taken
    np.testing.assert_allclose(sums.directions(np.array([7, 2])), weights[[7, 2]], atol=1e-5)


@pytest.mark.parametrize("block", [3, 7, 1024])
def test_nearest_cosines_are_those_of_scikit_learn(rng, block):
    directions = rng.normal(size=(20, 5)).astype(np.float32)
    directions[13] = 2.0 * directions[4]
    directions[17] = 0.0
    every = cosine_similarity(directions)
    np.fill_diagonal(every, -np.inf)
    cosines, neighbors = nearest_cosines(directions, block=block)
    np.testing.assert_allclose(cosines, every.max(axis=1), atol=1e-6)
    assert (neighbors[4], neighbors[13]) == (13, 4)
    np.testing.assert_allclose(every[np.arange(20), neighbors], every.max(axis=1), atol=1e-6)


def test_constant_rows_have_no_explained_variance(rows):
    constant = np.ones_like(rows)
    sums = DictionarySums(Linear(np.eye(6), np.zeros(6)), constant)
    sums.reconstruct(constant, np.ones(6))
    assert np.isnan(sums.explained_variance)


class Wrong(Linear):
    """Right on the first call, and wrong afterwards."""

    def __init__(self, *arguments, codes=None, decoded=None):
        super().__init__(*arguments)
        self.n_calls, self.codes, self.decoded = 0, codes, decoded

    def transform(self, X):
        self.n_calls += 1
        codes = super().transform(X)
        return self.codes(codes) if self.codes and self.n_calls > 1 else codes

    def inverse_transform(self, codes):
        decoded = super().inverse_transform(codes)
        return self.decoded(decoded) if self.decoded and self.n_calls > 1 else decoded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": lambda codes: codes[1:]}, r"codes of shape \(49, 9\) for 50 rows"),
        ({"codes": lambda codes: codes[:, 0]}, r"codes of shape \(50,\) for 50 rows"),
        ({"codes": sp.csr_array}, "give an array of 9 columns each time"),
        ({"decoded": lambda decoded: decoded[:, :4]}, r"reconstruction of shape \(50, 4\)"),
        ({"decoded": lambda decoded: decoded * np.nan}, "reconstructions that are not finite"),
    ],
)
def test_codes_and_reconstructions_of_another_kind_are_refused(rows, weights, change, message):
    sums = DictionarySums(Wrong(weights, np.zeros(6), **change), rows)
    with pytest.raises(ValueError, match=f"autoencoder gave.*{message}|autoencoder gave {message}"):
        sums.reconstruct(rows, np.zeros(6))
