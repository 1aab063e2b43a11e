import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from geofloor import AffineCalibrator, FeatureStatistics, FloorPredictor
from geofloor.features import bootstrap_floors
from geofloor.theory import NonMonotoneCapacityWarning


def blocks_of(codes, n_blocks):
    return [FeatureStatistics().fit(block) for block in np.array_split(codes, n_blocks)]


@pytest.fixture
def codes(rng):
    return np.maximum(rng.standard_normal((4000, 30)) - 1.5, 0.0)


def test_interval_of_the_total_is_that_of_a_mean_over_blocks(codes):
    blocks = blocks_of(codes, 40)  # at width 0 the floor is the mean of the summed squares
    low, high = bootstrap_floors(FloorPredictor(0.9), blocks, [0], n_resamples=2000, random_state=0)[0]
    means = (codes**2).sum(axis=1).reshape(40, 100).mean(axis=1)
    error = means.std() / np.sqrt(40)
    assert (low + high) / 2 == pytest.approx(means.mean(), rel=0.01)
    assert (high - low) / (2 * 1.645 * error) == pytest.approx(1.0, abs=0.08)  # of a probability of 0.9


@pytest.mark.parametrize("allocation", ["cutoff", "auto"])
def test_interval_covers_the_prediction_and_is_carried_to_nats(codes, allocation):
    predictor = FloorPredictor(allocation=allocation)
    widths = [1, 2, 5]
    central = predictor.fit(FeatureStatistics().fit(codes).table_).predict(widths)
    blocks = blocks_of(codes, 20)
    interval = bootstrap_floors(predictor, blocks, widths, random_state=0)
    assert (interval[:, 0] < central).all()
    assert (central < interval[:, 1]).all()
    calibrator = AffineCalibrator(baseline=0.5).fit(central, 0.5 + 3.0 * central)
    in_nats = bootstrap_floors(predictor, blocks, widths, calibrator=calibrator, random_state=0)
    np.testing.assert_allclose(in_nats, 0.5 + 3.0 * interval)


def test_bad_input_is_named(codes):
    blocks = blocks_of(codes, 4)
    with pytest.raises(ValueError, match="level=1.5"):
        bootstrap_floors(FloorPredictor(), blocks, [1], level=1.5)
    with pytest.raises(ValueError, match="n_resamples=1"):
        bootstrap_floors(FloorPredictor(), blocks, [1], n_resamples=1)
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_floors(FloorPredictor(), blocks[:1], [1])
    with pytest.raises(NotFittedError):
        bootstrap_floors(FloorPredictor(), [*blocks, FeatureStatistics()], [1])
    with pytest.raises(ValueError, match="widths: -1"):
        bootstrap_floors(FloorPredictor(), blocks, [-1])
    with pytest.raises(TypeError, match="predictor=3 is a int"):
        bootstrap_floors(3, blocks, [1])
    with pytest.raises(TypeError, match="calibrator=3 has no predict"):
        bootstrap_floors(FloorPredictor(), blocks, [1], calibrator=3)


def test_resamples_of_dense_codes_warn_once(rng):
    blocks = blocks_of(np.maximum(rng.standard_normal((400, 30)), 0.0), 8)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bootstrap_floors(FloorPredictor(), blocks, [1], n_resamples=20, random_state=0)
    assert [each.category for each in seen] == [ConvergenceWarning]
    assert seen[0].filename == __file__


def test_resamples_at_a_sparsity_out_of_range_of_eq_1_warn_once(codes):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bootstrap_floors(FloorPredictor(0.5), blocks_of(codes, 8), [1], n_resamples=20, random_state=0)
    assert [each.category for each in seen] == [NonMonotoneCapacityWarning]
