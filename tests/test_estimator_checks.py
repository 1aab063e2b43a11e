"""scikit-learn's own checks, and what they don't reach: clone, set_output, reprs, pipelines."""

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn_checks import CHECKS_IN_ONE_DIMENSION

from geofloor import (
    AffineCalibrator,
    FeatureStatistics,
    FloorPredictor,
    PowerLawCalibrator,
    SparseAutoencoder,
    ToyModel,
)
from geofloor.features._autoencoder_settings import ACTIVATIONS
from geofloor.features._precision import has_bf16

HAS_BF16 = has_bf16(torch.device("cpu"))

# FeatureStatistics and ActivationExtractor are checked in their own test files.
ESTIMATORS = [
    *(
        SparseAutoencoder(8, activation=activation, batch_size=16, n_epochs=2, dead_after=16, random_state=0)
        for activation in ACTIVATIONS
    ),
    SparseAutoencoder(8, groups=(2, 8), l0=1, batch_size=16, n_epochs=2, random_state=0),
    SparseAutoencoder(8, activation="relu", l0=1, batch_size=16, n_epochs=2, random_state=0),
    *([SparseAutoencoder(8, precision="bf16", batch_size=16, n_epochs=2, random_state=0)] if HAS_BF16 else []),
    AffineCalibrator(),
    AffineCalibrator(baseline=0.0),
    ToyModel(1, n_steps=50, max_rounds=2, n_eval_samples=1024, random_state=0),
]


def expected_failures(estimator):
    if isinstance(estimator, AffineCalibrator):
        return {
            "check_fit1d": "the floors of one predictor come as a vector, as FloorPredictor.predict gives them; "
            "covered by test_a_vector_of_floors_equals_one_column",
        }
    return {}


@pytest.mark.filterwarnings("ignore:The loss was still falling")
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_failures, xfail_strict=True)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# The generator above stops after one check for input of one dimension, so checks are called by name.
# These fit at width 0, where a power law is infinite.
CHECKS_OF_FLOOR_PREDICTOR = [
    "check_estimator_sparse_tag",
    "check_estimators_dtypes",
    "check_estimators_fit_returns_self",
    "check_estimators_nan_inf",
    "check_estimators_overwrite_params",
    "check_estimators_pickle",
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_get_feature_names_out_error",
    "check_inplace_ensure_writeable",
    "check_n_features_in_after_fitting",
    "check_positive_only_tag_during_fit",
    "check_readonly_memmap_input",
    "check_transformers_unfitted",
]


@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        (estimator, check)
        for estimator, checks in [
            (FloorPredictor(alpha=0.9), CHECKS_IN_ONE_DIMENSION + CHECKS_OF_FLOOR_PREDICTOR),
            (PowerLawCalibrator(), CHECKS_IN_ONE_DIMENSION),
        ]
        for check in checks
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:.*sparse:UserWarning")
def test_scikit_learn_checks_in_one_dimension(estimator, check):
    getattr(estimator_checks, check)(type(estimator).__name__, clone(estimator))


@pytest.fixture
def fitted_in_one_dimension(rng):
    widths, losses = np.array([8.0, 16.0, 32.0, 64.0]), np.array([4.0, 3.0, 2.5, 2.2])
    return [FloorPredictor(alpha=0.9).fit(rng.random(200)), PowerLawCalibrator().fit(widths, losses)]


def test_predicting_in_one_dimension_changes_no_state_and_takes_any_subset_in_any_order(fitted_in_one_dimension):
    widths = np.array([3.0, 9.0, 5.0, 40.0, 1.0])
    for estimator in fitted_in_one_dimension:
        before = joblib.hash(estimator.__dict__)
        whole = estimator.predict(widths)
        np.testing.assert_array_equal([estimator.predict([width])[0] for width in widths], whole)
        np.testing.assert_array_equal(estimator.predict(widths[::-1]), whole[::-1])
        assert joblib.hash(estimator.__dict__) == before


def test_one_feature_is_enough():
    predictor = FloorPredictor(alpha=0.9).fit([2.0])
    assert predictor.predict([0, 1]).tolist() == [2, 0]


@pytest.fixture
def activations(rng):
    features = rng.random((2000, 40)) * (rng.random((2000, 40)) < 0.1)
    return features @ rng.normal(size=(40, 16))


def measuring_pipeline():
    sae = SparseAutoencoder(64, l0=5, batch_size=100, n_epochs=10, random_state=0)
    return make_pipeline(sae, FeatureStatistics(), FloorPredictor())


def test_the_measuring_pipeline(activations):
    measure = measuring_pipeline().fit(activations)
    sae, statistics, floor = (step for _, step in measure.steps)
    assert floor.alpha_ == pytest.approx(statistics.alpha_)
    assert floor.critical_width_ == pytest.approx(statistics.critical_width_)
    floors = floor.predict([0, 4, 8, 10_000])
    assert floors[0] == pytest.approx(statistics.table_[:, 0].sum())
    assert (np.diff(floors) < 0).all()
    assert floors[-1] == 0
    codes = sae.transform(activations).toarray().astype(np.float64)
    assert floors[0] == pytest.approx(np.square(codes).mean(axis=0)[statistics.alive_].sum())


def test_the_forecasting_pipeline(activations):
    floor = measuring_pipeline().fit(activations)[-1]
    widths = np.array([2, 4, 6, 8])
    forecast = make_pipeline(FrozenEstimator(floor), AffineCalibrator(baseline=0.586))
    forecast.fit(widths, 2.0 * floor.predict(widths) + 0.586)
    np.testing.assert_allclose(forecast.predict([3, 5]), 2.0 * floor.predict([3, 5]) + 0.586)


def test_pipelines_can_ask_for_pandas(activations):
    measure = measuring_pipeline()
    measure[1:].set_output(transform="pandas")
    assert measure.fit(activations)[-1].alpha_ > 0.5


@pytest.mark.parametrize(
    "estimator", [*ESTIMATORS, FeatureStatistics(), FloorPredictor(), PowerLawCalibrator()], ids=str
)
def test_reprs_in_html(estimator):
    html = estimator._repr_html_()
    assert type(estimator).__name__ in html
