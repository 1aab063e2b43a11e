"""Threads that share a model: hooks and evaluation mode act in their own thread."""

import threading

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from small_models import in_threads, same, shared_model, unembedding

from geofloor import AblationPredictor, ActivationExtractor
from geofloor.language_models import zero_width_kl
from geofloor.language_models._hooks import evaluating, hooked
from geofloor.students import make_student

TOKENS = np.random.default_rng(0).integers(64, size=(48, 24))


@pytest.fixture
def model():
    return shared_model()


def principal(model):
    return make_student(model, 16, init="principal", tokens=TOKENS, random_state=0)


def ablated(model, layer):
    return AblationPredictor(model, layer, n_points=3).fit(TOKENS).curve_.to_numpy()


def test_threads_that_extract_different_layers_get_their_own(model):
    functions = [lambda at=at: ActivationExtractor(model, at).transform(TOKENS) for at in range(4)]
    expected = [function() for function in functions]
    for found, wanted in zip(in_threads(*functions), expected, strict=True):
        assert all(np.array_equal(each, wanted) for each in found)


def test_processes_that_extract_different_layers_give_the_bits_of_one(model):
    extractors = [ActivationExtractor(model, at) for at in range(4)]
    found = Parallel(n_jobs=2, backend="loky")(delayed(extractor.transform)(TOKENS) for extractor in extractors)
    for each, extractor in zip(found, extractors, strict=True):
        assert np.array_equal(each, extractor.transform(TOKENS))


def test_ablation_principal_starts_and_other_forward_passes_do_not_mix(model):
    ids = torch.from_numpy(TOKENS[:4])

    @torch.no_grad()
    def own():
        return model(ids).logits.numpy()

    functions = [
        lambda: ablated(model, 1),
        lambda: ablated(model, 2),
        lambda: zero_width_kl(model, TOKENS),
        lambda: unembedding(principal(model)),
        own,
    ]
    expected = [function() for function in functions]
    for found, wanted in zip(in_threads(*functions), expected, strict=True):
        assert all(np.array_equal(each, wanted) for each in found)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_threads_that_share_a_model_in_training_mode_all_evaluate_it(model):
    model.train()
    model.gpt_neox.layers[0].eval()
    modes = [module.training for module in model.modules()]
    functions = [lambda at=at: ActivationExtractor(model, at).transform(TOKENS) for at in range(3)]
    functions.append(lambda: zero_width_kl(model, TOKENS))
    expected = [function() for function in functions]
    for found, wanted in zip(in_threads(*functions), expected, strict=True):
        assert all(np.array_equal(each, wanted) for each in found)
    assert [module.training for module in model.modules()] == modes


def test_the_last_thread_to_leave_puts_training_mode_back(model):
    model.train()
    with evaluating(model):
        with evaluating(model.gpt_neox):
            assert not model.training
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_hook_acts_in_its_thread_only(model):
    seen = []
    ids = torch.from_numpy(TOKENS[:1])
    with hooked(model.gpt_neox.layers[0], lambda *_: seen.append(threading.get_ident())):
        thread = threading.Thread(target=lambda: model(ids))
        thread.start()
        thread.join()
        assert seen == []
        model(ids)
    model(ids)
    assert seen == [threading.get_ident()]


def test_a_principal_start_from_a_teacher_in_training_mode_is_that_of_one_in_evaluation_mode(model):
    evaluated = principal(model)
    assert same(evaluated, principal(model.train()))
    assert model.training
