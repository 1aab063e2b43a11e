import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geofloor import (
    AblationPredictor,
    ActivationExtractor,
    BottleneckPredictor,
    DistilledStudent,
    FloorPredictor,
    LossForecaster,
    SparseAutoencoder,
)
from geofloor._estimators import SharedParametersMixin
from geofloor.datasets import load_teacher
from geofloor.forecasting import Calibrated


@pytest.fixture(scope="module")
def model():
    return load_teacher().model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda model: ActivationExtractor(model, 3), "ActivationExtractor(layer=3, model=GPTNeoXForCausalLM(...))"),
        (lambda model: AblationPredictor(model, 1), "AblationPredictor(layer=1, teacher=GPTNeoXForCausalLM(...))"),
        (BottleneckPredictor, "BottleneckPredictor(teacher=GPTNeoXForCausalLM(...))"),
    ],
)
def test_estimators_print_the_class_of_their_model(model, make, expected):
    estimator = make(model)
    assert repr(estimator) == expected
    html = estimator._repr_html_()
    assert "GPTNeoXForCausalLM(...)" in html
    assert "embed_in" not in html


def test_models_inside_pipelines_and_searches_are_short(model):
    pipeline = make_pipeline(ActivationExtractor(model, 3), StandardScaler())
    search = GridSearchCV(pipeline, {"activationextractor__layer": [1, 2]})
    for estimator in (pipeline, search):
        assert "model=GPTNeoXForCausalLM(...)" in repr(estimator)
        assert "embed_in" not in repr(estimator)
        assert "embed_in" not in estimator._repr_html_()


def test_parameters_and_clones_hold_the_model_itself(model):
    extractor = ActivationExtractor(model, 3)
    assert extractor.get_params()["model"] is model
    assert clone(extractor).model is model
    assert make_pipeline(extractor).get_params()["activationextractor__model"] is model


def test_a_parameter_that_is_no_model_prints_in_full():
    assert repr(ActivationExtractor("a/name", 3)) == "ActivationExtractor(layer=3, model='a/name')"
    assert "device(type='cpu')" in repr(ActivationExtractor("a/name", 3, device=torch.device("cpu")))


class Holder(SharedParametersMixin, BaseEstimator):
    _shared_parameters = ("held",)

    def __init__(self, held=None, own=None):
        self.held, self.own = held, own


def test_clones_share_what_they_hold_and_nothing_changes_it():
    held = FloorPredictor(alpha=0.9).fit([2.0, 1.0])
    holder = Holder(held, FloorPredictor(alpha=0.8))
    copy = clone(holder)
    assert copy.held is held
    assert copy.own is not holder.own
    assert "held__alpha" not in holder.get_params()
    with pytest.raises(ValueError, match=r"held__alpha=0.5 would change held, which clones share; set held to another"):
        copy.set_params(held__alpha=0.5)
    copy.set_params(own__alpha=0.5)
    assert (held.alpha, holder.own.alpha, copy.own.alpha) == (0.9, 0.8, 0.5)
    assert clone(copy.set_params(held=FloorPredictor(alpha=0.7))).held.alpha == 0.7
    search = GridSearchCV(LossForecaster(Calibrated(held)), {"law__predictor__alpha": [0.5, 0.9]}, cv=2)
    with pytest.raises(ValueError, match="law__predictor__alpha"):
        search.fit([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("estimator", "inside"),
    [
        (LossForecaster(Calibrated(FloorPredictor(alpha=0.9))), "law__predictor"),
        (BottleneckPredictor(FloorPredictor()), "teacher__alpha"),
        (DistilledStudent(FloorPredictor(), 4), "teacher__alpha"),
        (ActivationExtractor(FloorPredictor(), 0), "model__alpha"),
        (AblationPredictor(None, 0, SparseAutoencoder(8)), "autoencoder__n_latents"),
    ],
)
def test_estimators_share_models_and_fitted_objects(estimator, inside):
    value = getattr(estimator, inside.partition("__")[0])
    assert getattr(clone(estimator), inside.partition("__")[0]) is value
    with pytest.raises(ValueError, match="which clones share"):
        clone(estimator).set_params(**{inside: 3})
