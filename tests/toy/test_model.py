import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning
from small_sweeps import QUICK

from geofloor import ToyModel
from geofloor.toy import SparseFeatures, toy_sweep


@pytest.fixture(scope="module")
def model():
    return ToyModel(4, n_init=4, random_state=0).fit(SparseFeatures(12, 0.9))


def test_loss_is_that_of_held_out_samples_and_splits_by_feature(model):
    features = SparseFeatures(12, 0.9)
    X = features.sample(400_000, random_state=1)
    losses = (X - model.predict(X)) ** 2 @ model.importances_
    error = np.hypot(losses.std() / np.sqrt(len(X)), model.standard_error_)
    assert abs(losses.mean() - model.floor_) < 4 * error
    assert model.score(X) == pytest.approx(-losses.mean(), rel=1e-6)
    assert model.feature_losses_.sum() == pytest.approx(model.floor_)
    assert model.dropped_share_ + model.interference_share_ == pytest.approx(1.0)
    assert model.data_floor_ == model.floor_


def test_geometry_follows_its_definitions(model):
    W = model.components_.astype(np.float64)
    assert model.n_kept_ == sum(np.linalg.norm(W[:, i]) ** 2 >= 0.5 for i in range(12))
    for i in range(12):
        norm = W[:, i] @ W[:, i]
        assert model.squared_norms_[i] == pytest.approx(norm)
        share = norm**2 / sum((W[:, i] @ W[:, j]) ** 2 for j in range(12)) if norm else 0.0
        assert model.fractional_capacities_[i] == pytest.approx(share)
    assert model.fractional_capacities_.sum() <= 4 + 1e-6  # there are four dimensions to share


def test_the_best_start_is_kept_and_all_are_reported(model):
    assert len(model.floors_) == 4
    assert model.floor_ in model.floors_
    assert model.floor_ <= np.min(model.floors_) + 2 * model.standard_error_
    assert model.history_[0]["loss"] > model.history_[-1]["loss"]
    assert model.history_[-1]["step"] == model.n_steps_


def test_a_model_as_wide_as_its_features_loses_next_to_nothing():
    features = SparseFeatures(5, 0.8)
    full = ToyModel(5, importance="uniform", random_state=0).fit(features)
    assert full.floor_ < 1e-3 * features.second_moments.sum()


def test_exclusive_features_cost_less_than_independent_ones():
    alone = ToyModel(2, importance="uniform", n_init=5, random_state=0).fit(SparseFeatures(8, 0.9))
    grouped = SparseFeatures(8, 0.9, groups=np.zeros(8))
    assert ToyModel(2, importance="uniform", n_init=5, random_state=0).fit(grouped).floor_ < 0.9 * alone.floor_


def test_scale_of_samples_and_importances_only_scales_the_floor():
    X = SparseFeatures(8, 0.9).sample(4000, random_state=0)
    settings = {"random_state": 0, "n_steps": 300, "max_rounds": 3}
    plain = ToyModel(3, importance="uniform", **settings).fit(X)
    scaled = ToyModel(3, importance=np.full(8, 1e-6), **settings).fit(X * 1024)
    assert scaled.floor_ == pytest.approx(plain.floor_ * 1024**2 * 1e-6, rel=1e-4)
    np.testing.assert_allclose(scaled.components_, plain.components_, atol=1e-4)
    np.testing.assert_allclose(scaled.intercept_, plain.intercept_ * 1024, atol=0.1)
    assert plain.floor_ == pytest.approx(-plain.score(X), rel=1e-4)


def test_student_learns_the_teachers_output(model):
    features = SparseFeatures(12, 0.9)
    student = ToyModel(2, random_state=1).fit(features, teacher=model)
    X = features.sample(200_000, random_state=2)
    against_teacher = np.mean((student.predict(X) - model.predict(X)) ** 2 @ model.importances_)
    assert student.floor_ == pytest.approx(against_teacher, rel=0.05)
    assert student.data_floor_ == pytest.approx(-student.score(X), rel=0.05)
    assert student.floor_ < student.data_floor_
    with pytest.raises(ValueError, match="teacher has 12 features, the data have 5"):
        ToyModel(2).fit(SparseFeatures(5, 0.9), teacher=model)


def test_a_model_that_still_learns_says_so():
    with pytest.warns(ConvergenceWarning, match="raise max_rounds"):
        model = ToyModel(3, n_steps=20, max_rounds=2, n_eval_samples=1024, random_state=0).fit(SparseFeatures(20, 0.9))
    assert not model.converged_


def test_model_names_bad_input():
    features = SparseFeatures(5, 0.9)
    with pytest.raises(ValueError, match="width=6 exceeds the number of features, 5"):
        ToyModel(6).fit(features)
    with pytest.raises(ValueError, match="width=2.5 must be a whole number"):
        ToyModel(2.5).fit(features)
    with pytest.raises(ValueError, match="n_init=0"):
        ToyModel(2, n_init=0).fit(features)
    with pytest.raises(ValueError, match="NaN"):
        ToyModel(1).fit([[0.0, np.nan]])
    with pytest.raises(ValueError, match="non-finite with learning_rate=1e\\+30"):
        ToyModel(2, learning_rate=1e30, **QUICK).fit(features)
    fitted = ToyModel(2, random_state=0, **QUICK).fit(features)
    with pytest.raises(ValueError, match="X has 3 dimensions, but the model has width=2"):
        fitted.inverse_transform(np.ones((1, 3)))
    with pytest.raises(TypeError, match="teacher=3 is a int; give a fitted ToyModel"):
        ToyModel(2).fit(features, teacher=3)
    with pytest.raises(ValueError, match="n_samples='3' must be a whole number"):
        features.sample("3")


@pytest.mark.parametrize(
    ("factor", "message"),
    [(1e300, "X holds .*e.299, which is above 1e.30 and too large to square"), (1e-200, "too small to square")],
)
def test_samples_whose_squares_are_no_numbers_are_refused(factor, message):
    X = SparseFeatures(4, 0.5).sample(50, random_state=0).astype(np.float64)
    with pytest.raises(ValueError, match=message):
        ToyModel(1).fit(factor * X)
    if factor > 1:
        fitted = ToyModel(1, random_state=0, **QUICK).fit(X)
        for method in (fitted.transform, fitted.predict, fitted.score):
            with pytest.raises(ValueError, match=message):
                method(factor * X)


@pytest.mark.filterwarnings("ignore:.*still falling")
def test_small_integers_of_numpy_count_like_pythons():
    settings = {"n_steps": 200, "max_rounds": 1, "n_eval_samples": 1024, "batch_size": 16}
    plain = ToyModel(2, n_init=2, random_state=0, **settings).fit(SparseFeatures(5, 0.8))
    small = {name: np.uint64(value) for name, value in settings.items()} | {"batch_size": np.int8(16)}
    other = ToyModel(np.int8(2), n_init=np.uint64(2), random_state=0, **small).fit(SparseFeatures(np.uint64(5), 0.8))
    assert other.floor_ == plain.floor_
    arguments = {"teacher_widths": None, "n_seeds": 2, "models_per_batch": 1}
    expected = toy_sweep(5, [2], 0.8, **arguments, **settings)
    arguments = {"teacher_widths": None, "n_seeds": np.int8(2), "models_per_batch": np.uint64(1)}
    found = toy_sweep(np.uint64(5), np.array([2], dtype=np.int8), np.float64(0.8), **arguments, **small)
    pd.testing.assert_frame_equal(found, expected)
