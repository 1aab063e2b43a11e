import numpy as np
import pytest

from geofloor.language_models._sequence_means import covariance_of_means, mean_and_error


def test_standard_errors_are_those_of_repeated_samples():
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        counts = random.integers(1, 9, size=50)
        sequence = random.normal(size=50)  # what the positions of a sequence have in common
        sums = np.stack([counts * sequence, counts * (sequence + random.normal(size=50))])
        covariance = covariance_of_means(sums, counts)
        first, second = (mean_and_error(row, counts) for row in sums)
        assert np.sqrt(np.diag(covariance)) == pytest.approx([first[1], second[1]])
        drawn.append(([first[0], second[0]], covariance))
    means, covariances = zip(*drawn, strict=True)
    np.testing.assert_allclose(np.mean(covariances, axis=0), np.cov(means, rowvar=False), rtol=0.15)


def test_one_sequence_has_no_standard_error():
    assert np.isnan(mean_and_error(np.ones(1), np.ones(1))[1])
    assert np.isnan(covariance_of_means(np.ones((2, 1)), np.ones(1))).all()
