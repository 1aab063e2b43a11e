import numpy as np
import pytest
from sklearn.base import BaseEstimator

from geofloor.theory._widths import FeaturePredictorMixin, WidthPredictorMixin


class Halving(WidthPredictorMixin, BaseEstimator):
    def fit(self, X=None, y=None):
        self.critical_width_ = 127.5
        return self

    def predict(self, widths):
        return 100.0 * 0.5 ** np.asarray(widths)


class TwoFeaturesPerDimension(FeaturePredictorMixin, BaseEstimator):
    def fit(self, X=None, y=None):
        self.capacity_, self.n_features_, self.critical_width_ = 2.0, 5, 2.5
        return self

    def predict(self, widths):
        return 5.0 - self.kept_features(widths)


def test_every_predictor_over_widths_searches_each_target_alone():
    np.testing.assert_array_equal(Halving().fit().min_width([0.0, 1.0, 100.0, 1e9]), [-1, 7, 0, 0])


def test_a_target_out_of_reach_is_minus_one_and_a_scalar_gives_an_int():
    predictor = Halving().fit()
    assert [predictor.min_width(target) for target in (0.0, 1.0, np.float64(100.0))] == [-1, 7, 0]
    assert type(predictor.min_width(0.0)) is type(predictor.min_width(1.0)) is int
    assert predictor.min_width([0.0]).dtype == np.int64
    assert predictor.min_width(np.empty((0, 2))).shape == (0, 2)
    with pytest.raises(ValueError, match="target contains NaN"):
        predictor.min_width([1.0, np.nan])


def test_features_are_kept_by_width_times_capacity_and_at_most_all_of_them():
    predictor = TwoFeaturesPerDimension().fit()
    assert predictor.kept_features([0, 1, 1.9, 3, 1e300]).tolist() == [0, 2, 3, 5, 5]
    assert predictor.min_width([5.0, 3.0, 0.0]).tolist() == [0, 1, 3]
