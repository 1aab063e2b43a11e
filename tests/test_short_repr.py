import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geofloor import ActivationExtractor
from geofloor.ablation import AblationPredictor
from geofloor.bottleneck import BottleneckPredictor
from geofloor.datasets import load_teacher


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
