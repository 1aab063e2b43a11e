import logging

import numpy as np
import pytest
import torch
from small_models import (
    BLOCKS,
    MODEL,
    UNEQUAL,
    WIDTH,
    as_text,
    gpt_neox,
    in_threads,
    same,
    shared_model,
    unembedding,
    word_tokenizer,
)
from transformers import GPTNeoXForCausalLM

from geofloor import ActivationExtractor
from geofloor.language_models import zero_width_kl
from geofloor.language_models._loading import load_language_model
from geofloor.students import make_student

TOKENS = np.random.default_rng(0).integers(64, size=(48, 24))


@pytest.fixture
def model():
    return shared_model()


def load_reports(action):
    """Collect the reports of transformers about missing and unexpected weights."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    try:
        action()
    finally:
        logger.removeHandler(handler)
    assert not logger.filters
    return [record.getMessage() for record in records]


def test_a_head_that_is_left_out_is_not_reported(tmp_path):
    gpt_neox().save_pretrained(tmp_path)
    assert load_reports(lambda: ActivationExtractor(tmp_path, 1).fit()) == []


def test_a_model_that_is_not_there_is_named_with_its_argument(tmp_path):
    for parameters, name in (
        ({"model": tmp_path / "nothing"}, "model"),
        ({"model": MODEL, "tokenizer": tmp_path / "nothing"}, "tokenizer"),
    ):
        with pytest.raises(OSError, match=f"^{name}='.*nothing' can't be loaded: "):
            ActivationExtractor(layer=1, **parameters).fit()
    with pytest.raises(OSError, match="^teacher='.*nothing' can't be loaded: "):
        zero_width_kl(tmp_path / "nothing", BLOCKS)


def test_weights_that_are_missing_or_out_of_place_are_reported(tmp_path):
    model = gpt_neox()
    weights = model.state_dict()
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    model.save_pretrained(tmp_path / "missing", state_dict=weights)
    (report,) = load_reports(lambda: ActivationExtractor(tmp_path / "missing", 1).fit())
    assert "MISSING" in report
    more = {**model.state_dict(), "gpt_neox.layers.3.mlp.dense_h_to_4h.weight": torch.zeros(32, 16)}
    model.save_pretrained(tmp_path / "more", state_dict=more)
    (report,) = load_reports(lambda: ActivationExtractor(tmp_path / "more", 1).fit())
    assert "layers.3" in report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    MODEL.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_by_name_brings_its_tokenizer(folder):
    by_object = ActivationExtractor(MODEL, 1, tokenizer=word_tokenizer())
    by_name = ActivationExtractor(folder, 1, device="cpu").fit()
    np.testing.assert_array_equal(by_name.transform(as_text(UNEQUAL)), by_object.transform(as_text(UNEQUAL)))
    assert by_name.model_.get_output_embeddings() is None


def test_model_kwargs_and_dtype_reach_the_model(folder):
    assert ActivationExtractor(folder, 1, device="cpu", dtype="bfloat16").fit().model_.dtype == torch.bfloat16
    options = {"attn_implementation": "eager", "dtype": "float16"}
    model = ActivationExtractor(folder, 1, device="cpu", model_kwargs=options).fit().model_
    assert (model.config._attn_implementation, model.dtype) == ("eager", torch.float16)


def test_a_folder_without_tokenizer_takes_token_ids(tmp_path):
    MODEL.save_pretrained(tmp_path)
    extractor = ActivationExtractor(str(tmp_path), 0, device="cpu").fit()
    assert extractor.transform(BLOCKS).shape == (100, WIDTH)
    with pytest.raises(ValueError, match="tokenizer=None: model=.* comes without a vocabulary"):
        extractor.transform(["1 2"])


def test_students_made_in_threads_have_the_weights_of_their_seeds(model):
    functions = [lambda seed=seed: make_student(model, 16, random_state=seed) for seed in range(4)]
    expected = [function() for function in functions]
    state = torch.get_rng_state()
    for found, wanted in zip(in_threads(*functions), expected, strict=True):
        assert all(same(each, wanted) for each in found)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_loaded_in_one_thread_does_not_change_students_made_in_another(model, tmp_path):
    model.config.tie_word_embeddings = True
    tied = GPTNeoXForCausalLM(model.config)
    tied.to(torch.bfloat16).save_pretrained(tmp_path)

    def load():
        return ActivationExtractor(tmp_path, 1, dtype="bfloat16").fit().model_.dtype

    def make():
        student = make_student(tied, 16, random_state=0)
        assert student.dtype == torch.float32
        assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
        return unembedding(student)

    wanted = make()
    _, *made = in_threads(load, make, make)
    assert all(torch.equal(each, wanted) for each in made[0] + made[1])


def test_loading_a_model_without_all_its_weights_leaves_the_global_generator(model, tmp_path):
    model.gpt_neox.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    zero_width_kl(str(tmp_path), TOKENS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_teachers_and_extracted_models_are_float32_unless_told(folder, option):
    for model_kwargs, dtype in ((None, torch.float32), ({option: "bfloat16"}, torch.bfloat16)):
        extractor = ActivationExtractor(folder, 1, device="cpu", model_kwargs=model_kwargs).fit()
        _, teacher = load_language_model(folder, model_kwargs, "cpu")
        assert extractor.model_.dtype == teacher.dtype == dtype
