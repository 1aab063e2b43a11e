import copy
import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_checks as checks
from small_students import assert_same, far_away, new_teacher, student

from geofloor import AblationPredictor, ActivationExtractor, BottleneckPredictor, DistilledStudent
from geofloor.students import _engine

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 99}, "layer=99 is not there: the model has 2 blocks"),
        ({"layer": "x"}, "layer='x' must be a whole number"),
        ({"pooling": "max"}, "pooling='max' is unknown; use one of None, 'mean', 'last'"),
        ({"pad_token_id": "x"}, "pad_token_id='x' must be a whole number"),
    ],
)
def test_layer_pooling_and_padding_are_checked_before_training(teacher, tokens, settings, message, monkeypatch):
    monkeypatch.setattr(_engine.Distillation, "train", lambda self: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=message):
        DistilledStudent(teacher, 8, device="cpu", **settings).fit(tokens)


def test_predictions_are_the_models(teacher, tokens):
    fitted = student(teacher).fit(tokens)
    with torch.no_grad():
        logits = fitted.model_(torch.from_numpy(tokens)).logits
    np.testing.assert_array_equal(fitted.predict(tokens), logits.argmax(-1).numpy())
    np.testing.assert_allclose(fitted.predict_log_proba(tokens), torch.log_softmax(logits, -1).numpy(), atol=1e-5)
    expected = ActivationExtractor(fitted.model_, 0, pooling="mean").transform(tokens)
    np.testing.assert_allclose(fitted.set_params(layer=0).transform(tokens), expected, atol=1e-6)
    assert fitted.set_params(pooling=None).transform(tokens).shape == (60 * 11, 8)
    assert fitted.get_feature_names_out()[-1] == "distilledstudent7"
    with pytest.raises(ValueError, match=r"layer=\[0, 1\] must be a whole number"):
        fitted.set_params(layer=[0, 1]).transform(tokens)


def test_before_fit_nothing_is_predicted(teacher, tokens):
    for method in ("predict", "predict_log_proba", "transform", "score"):
        with pytest.raises(NotFittedError):
            getattr(student(teacher), method)(tokens)


def test_a_clone_shares_the_teacher(teacher, tokens):
    original = student(teacher)
    assert clone(original).teacher is teacher
    assert original.teacher is teacher


def test_a_student_pickled_on_a_gpu_is_read_on_a_cpu(tokens):
    teacher = new_teacher()
    fitted = student(teacher).fit(tokens)
    expected = fitted.predict(tokens), fitted.score(tokens)
    fitted.model_, fitted.device_ = far_away(fitted.model_), "cuda:0"
    fitted.teacher = far_away(teacher)
    shared = copy.copy(fitted)
    assert (shared.model_, shared.device_) == (fitted.model_, "cuda:0")
    assert clone(fitted).teacher is fitted.teacher
    restored = pickle.loads(pickle.dumps(fitted))
    tensors = [*restored.model_.state_dict().values(), *restored.teacher.state_dict().values()]
    assert {str(tensor.device) for tensor in tensors} == {restored.device_} == {"cpu"}
    np.testing.assert_array_equal(restored.predict(tokens), expected[0])
    assert restored.score(tokens) == expected[1]
    assert fitted.device_ == str(next(fitted.model_.parameters()).device) == "cuda:0"  # as it was


@pytest.mark.parametrize(
    "make",
    [
        lambda teacher: ActivationExtractor(teacher, 0),
        lambda teacher: AblationPredictor(teacher, 0),
        BottleneckPredictor,
    ],
)
def test_estimators_that_hold_a_teacher_on_a_gpu_are_read_on_a_cpu(make):
    teacher = new_teacher()
    estimator = make(teacher)
    if isinstance(estimator, ActivationExtractor):
        estimator.fit()
        estimator.model_ = far_away(estimator.model_)
    parameter = "model" if hasattr(estimator, "model") else "teacher"
    estimator.set_params(**{parameter: far_away(teacher)})
    restored = pickle.loads(pickle.dumps(estimator))
    held = getattr(restored, parameter)
    assert {str(tensor.device) for tensor in held.state_dict().values()} == {"cpu"}


def test_copies_in_memory_hold_the_same_model(teacher, tokens):
    fitted = student(teacher).fit(tokens)
    assert copy.copy(fitted).model_ is fitted.model_
    deep = copy.deepcopy(fitted)
    assert deep.model_ is not fitted.model_
    assert_same(deep, fitted)


def test_a_student_prints_the_class_of_its_teacher(teacher):
    assert repr(DistilledStudent(teacher, 8)) == "DistilledStudent(teacher=GPTNeoXForCausalLM(...), width=8)"


def test_a_teacher_by_name_is_left_out_of_pickles(teacher, teacher_path, tokens):
    fitted = student(teacher_path).fit(tokens)
    names = {name for name, _ in fitted._load_teacher()[1].named_parameters()}
    assert names
    assert "_loaded" not in fitted.__getstate__()
    restored = pickle.loads(pickle.dumps(fitted))
    assert restored.score(tokens) == fitted.score(tokens)


@pytest.mark.parametrize("n_jobs", [None, pytest.param(2, marks=pytest.mark.slow)])  # workers take long to start
def test_a_grid_search_over_the_width(teacher_path, tokens, n_jobs):
    search = GridSearchCV(student(str(teacher_path), n_steps=40), {"width": [8, 16]}, cv=2, n_jobs=n_jobs)
    search.fit(tokens)
    assert search.best_params_ == {"width": 16}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(tokens) == search.best_estimator_.score(tokens)


@pytest.mark.parametrize(
    "check",
    [
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_estimator_sparse_tag,
        checks.check_estimator_tags_renamed,
        checks.check_estimators_unfitted,
        checks.check_get_params_invariance,
        checks.check_mixin_order,
        checks.check_no_attributes_set_in_init,
        checks.check_parameters_default_constructible,
        checks.check_set_params,
        checks.check_valid_tag_types,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learn_checks(teacher_path, check):
    """Run the checks that hold for any estimator; the others fit random real numbers, which are no token ids."""
    check("DistilledStudent", student(str(teacher_path)))


def test_fitting_twice_gives_the_same_and_no_parameter_is_changed(teacher, tokens):
    fitted = student(teacher).fit(tokens)
    before = fitted.get_params()
    assert_same(clone(fitted).fit(tokens), fitted)
    assert fitted.get_params() == before
    assert json.dumps(fitted.history_)
