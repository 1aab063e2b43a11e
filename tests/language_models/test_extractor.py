import logging
import os
import pickle
import threading
import time
import warnings
from functools import partial
from itertools import cycle

import datasets
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks as checks
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    FNetConfig,
    FNetModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from geofloor import ActivationExtractor, ActivationStore
from geofloor._files import npy
from geofloor._files import sealed as _files
from geofloor.language_models import zero_width_kl

N_VOCABULARY, WIDTH, N_LAYERS = 40, 16, 3
SIZES = {"vocab_size": N_VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2}


def new_model(model_class, config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config).eval()


def gpt_neox(seed=0):
    return new_model(GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES, intermediate_size=32), seed)


def llama():
    return new_model(LlamaForCausalLM, LlamaConfig(**SIZES, intermediate_size=32))


def gpt2():
    config = GPT2Config(vocab_size=N_VOCABULARY, n_embd=WIDTH, n_layer=N_LAYERS, n_head=2, n_positions=64)
    return new_model(GPT2LMHeadModel, config)


def bert():
    return new_model(BertForMaskedLM, BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=64))


def word_tokenizer(n_words=N_VOCABULARY - 1, with_start=False):
    """Word "3" is token 3; token 0 is the end of text."""
    vocabulary = {"<end>": 0, **{str(i): i for i in range(1, n_words + 1)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if with_start:
        words.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def as_text(sequences):
    return [" ".join(map(str, ids)) for ids in sequences]


def random_sequences(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(1, N_VOCABULARY, size=length).tolist() for length in lengths]


def reference(model, ids, layer, skip_first=1):
    """Hidden states of one sequence on its own, by the public way: a full forward pass."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[layer + 1][0, skip_first:].numpy()


MODEL = gpt_neox()
UNEQUAL = random_sequences([5, 1, 9, 2, 9, 3, 1, 7, 12, 4])
BLOCKS = np.array(random_sequences([11] * 10, seed=1))


# What is extracted


@pytest.mark.parametrize("new", [gpt_neox, llama, gpt2, bert])
@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_equals_hidden_states_of_sequences_on_their_own(new, layer):
    model = new()
    activations = ActivationExtractor(model, layer, batch_size=3).fit_transform(UNEQUAL)
    norm = None  # what hidden_states[-1] has been through, and the residual stream has not
    if layer == N_LAYERS - 1:
        norm = {gpt_neox: "gpt_neox.final_layer_norm", llama: "model.norm", gpt2: "transformer.ln_f"}.get(new)
    if norm is not None:
        with torch.inference_mode():
            activations = model.get_submodule(norm)(torch.from_numpy(activations)).numpy()
    expected = np.concatenate([reference(model, ids, layer) for ids in UNEQUAL])
    np.testing.assert_allclose(activations, expected, atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    batch_size=st.integers(1, 5),
    skip_first=st.integers(0, 3),
    max_length=st.none() | st.integers(4, 9),
    by_window=st.booleans(),
)
def test_rows_come_in_the_order_of_the_tokens(lengths, batch_size, skip_first, max_length, by_window):
    lengths[0] += 4
    sequences = random_sequences(lengths)
    extractor = ActivationExtractor(MODEL, 0, batch_size=batch_size, skip_first=skip_first, max_length=max_length)
    with pytest.MonkeyPatch.context() as patch:
        if by_window:  # many windows, as with large models
            patch.setattr("geofloor.language_models._inputs._WINDOW_BYTES", 4 * WIDTH * 10)
        batches = list(extractor.iter_batches(sequences))
    kept = [ids[:max_length] for ids in sequences if len(ids[:max_length]) > skip_first]
    expected = np.concatenate([reference(MODEL, ids, 0, skip_first) for ids in kept])
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=2e-6)
    assert all(len(batch) for batch in batches)
    if by_window:
        assert max(map(len, batches)) < 10 + 12 * batch_size


def test_negative_layers_count_from_the_last():
    extractor = ActivationExtractor(MODEL, -1).fit()
    assert (extractor.layer_, extractor.n_layers_, extractor.block_name_) == (2, 3, "layers.2")


def test_going_through_the_layers_follows_the_parameter():
    extractor = ActivationExtractor(MODEL, 0).fit()
    second = extractor.set_params(layer=1).transform(BLOCKS)
    np.testing.assert_array_equal(second, ActivationExtractor(MODEL, 1).transform(BLOCKS))


def test_lists_inside_a_block_are_not_the_blocks():
    model = gpt_neox()
    model.gpt_neox.layers[0].mlp.experts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(N_LAYERS))
    assert ActivationExtractor(model, 0).fit().block_name_ == "layers.0"


def test_nothing_runs_beyond_the_layer():
    model = gpt_neox()
    ran = []
    for name in ("gpt_neox.layers.1", "gpt_neox.layers.2", "lm_head"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    ActivationExtractor(model, 1).transform(BLOCKS[:1])
    assert set(ran) == {"gpt_neox.layers.1"}


def test_models_without_attention_mask_see_no_padding():
    # A Fourier transform mixes all positions: with padding in a batch, every activation would change.
    model = new_model(FNetModel, FNetConfig(vocab_size=N_VOCABULARY, hidden_size=16, num_hidden_layers=2))
    together = ActivationExtractor(model, 1, skip_first=0).transform(UNEQUAL)
    alone = np.concatenate([ActivationExtractor(model, 1, skip_first=0).transform([ids]) for ids in UNEQUAL])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_pooling_is_over_the_rows_of_each_sequence():
    sequences = [ids for ids in UNEQUAL if len(ids) > 1]
    rows = [ActivationExtractor(MODEL, 1).transform([ids]) for ids in sequences]
    mean = ActivationExtractor(MODEL, 1, pooling="mean", batch_size=3).transform(sequences)
    last = ActivationExtractor(MODEL, 1, pooling="last", batch_size=3).transform(sequences)
    np.testing.assert_allclose(mean, [x.mean(0) for x in rows], atol=2e-6)
    np.testing.assert_allclose(last, [x[-1] for x in rows], atol=2e-6)


def test_sequences_are_cut_to_the_positions_of_the_model():
    model = gpt2()  # 64 learnt positions
    assert ActivationExtractor(model, 0, skip_first=0).transform([[1] * 100]).shape == (64, WIDTH)


# What goes in


def test_every_kind_of_input_gives_the_same_rows():
    texts = as_text(UNEQUAL)
    extractor = ActivationExtractor(MODEL, 1, tokenizer=word_tokenizer())
    expected = extractor.transform(UNEQUAL)
    lists = datasets.Dataset.from_dict({"text": ["1"] * len(texts), "input_ids": UNEQUAL})
    named = datasets.Dataset.from_dict({"code": texts})
    stream = datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in texts))
    ragged = np.empty(len(UNEQUAL), dtype=object)
    ragged[:] = UNEQUAL
    for X in (texts, np.array(texts), pd.Series(texts, index=range(5, 15)), named["code"], stream, lists, ragged):
        np.testing.assert_array_equal(extractor.transform(X), expected)
    np.testing.assert_array_equal(clone(extractor).set_params(text_column="code").transform(named), expected)


def test_an_endless_stream_is_read_no_further_than_the_look_ahead():
    read = []

    def endless():
        for ids in cycle(UNEQUAL):
            read.append(1)
            yield {"input_ids": ids}

    stream = datasets.IterableDataset.from_generator(endless)
    next(ActivationExtractor(MODEL, 0, batch_size=2).iter_batches(stream))
    assert len(read) <= 2 * 64 + 2  # and the first one to learn the columns


@pytest.mark.parametrize("convert", [lambda X: X.astype(np.uint16), torch.from_numpy, pd.DataFrame, np.ndarray.tolist])
def test_blocks_of_token_ids_come_as_any_array(convert):
    expected = np.concatenate([reference(MODEL, ids, 1) for ids in BLOCKS.tolist()])
    np.testing.assert_allclose(ActivationExtractor(MODEL, 1).transform(convert(BLOCKS)), expected, atol=2e-6)


def test_texts_get_the_special_tokens_of_their_tokenizer():
    extractor = ActivationExtractor(MODEL, 1, tokenizer=word_tokenizer(with_start=True), max_length=4)
    np.testing.assert_array_equal(extractor.transform(["7 8 9 10 11"]), extractor.transform([[0, 7, 8, 9]]))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], "X is empty"),
        (np.empty((0, 4), dtype=int), "X is empty"),
        (datasets.Dataset.from_dict({"text": []}), "X is empty"),
        ("a text", "Put the text in a list"),
        ({"train": ["1"]}, "Choose one entry"),
        (iter(["1"]), "can be read only once"),
        (None, "X is a NoneType"),
        (BLOCKS.astype(float), "dtype float64"),
        (BLOCKS[0], r"array of shape \(11,\)"),
        (BLOCKS > 3, "dtype bool"),
        (["1 2", None], r"X\[1\]=None is not a text"),
        ([[1, 2], "1 2"], r"X\[1\]='1 2' is not a sequence"),
        ([[1, 2], [[1], [2]]], r"X\[1\]=.* is neither"),
        ([[1, 2], [1.0, 2.0]], r"X\[1\]=.* is neither"),
        ([[1, 2], [3, N_VOCABULARY]], r"X\[1\] holds the token id 40, .* 0 to 39"),
        ([[1, 2], [-1, 2]], r"X\[1\] holds the token id -1"),
        ([[1], []], "none of its 2 sequences has more than skip_first=1"),
        (datasets.Dataset.from_dict({"code": ["1"]}), r"columns \['code'\]"),
    ],
)
def test_refuses_input(X, message):
    with pytest.raises(ValueError, match=message):
        ActivationExtractor(MODEL, 0, tokenizer=word_tokenizer()).iter_batches(X).__next__()


def test_input_in_memory_is_checked_to_its_end_at_once():
    with pytest.raises(ValueError, match=r"X\[10\] holds the token id 40"):
        ActivationExtractor(MODEL, 0, batch_size=2).iter_batches([*UNEQUAL, [N_VOCABULARY]])  # nothing is drawn from it


def test_refuses_texts_without_a_tokenizer():
    with pytest.raises(ValueError, match="X holds texts and tokenizer=None"):
        ActivationExtractor(MODEL, 0).iter_batches(["1 2"])


def test_refuses_to_pool_nothing():
    with pytest.raises(ValueError, match=r"X\[1\] has 1 tokens and skip_first=1 leaves none to pool"):
        ActivationExtractor(MODEL, 0, pooling="mean").transform([[1, 2], [1]])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layer": 3}, r"layer=3 is not there: the model has 3 blocks, 0 to 2 \(or -3 to -1\)"),
        ({"layer": -4}, "layer=-4 is not there"),
        ({"layer": 1.0}, "layer=1.0 must be a whole number"),
        ({"pooling": "max"}, "pooling='max'"),
        ({"skip_first": -1}, "skip_first=-1"),
        ({"max_length": 1}, "max_length=1 must be a whole number of at least 2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"device": "nowhere"}, "device='nowhere'"),
        ({"model": "MODEL", "model_kwargs": {"revision": "main"}}, "model_kwargs=.* not for an object"),
        ({"tokenizer": word_tokenizer(N_VOCABULARY)}, "tokenizer does not match the model: it has 41 tokens"),
        ({"model": AlbertModel(AlbertConfig(hidden_size=8, num_attention_heads=2))}, "'albert', which has no list"),
        ({"model": T5Model(T5Config(d_model=8, d_ff=8, num_heads=2, d_kv=4))}, "an encoder and a decoder"),
    ],
)
def test_fit_refuses_parameters(parameters, message):
    parameters = {"model": MODEL, "layer": 0, **parameters}
    if parameters["model"] == "MODEL":
        parameters["model"] = MODEL
    with pytest.raises(ValueError, match=message):
        ActivationExtractor(**parameters).fit()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": torch.nn.Linear(2, 2)}, "model=Linear.* is a Linear; give a transformers model"),
        ({"model": 3}, "model=3 is a int; give a transformers model"),
        ({"tokenizer": 3}, "tokenizer=3 is a int; give a tokenizer"),
        ({"model_kwargs": [1]}, "model_kwargs=.* is a list; give a dict"),
    ],
)
def test_fit_refuses_the_wrong_kind_of_object(parameters, message):
    with pytest.raises(TypeError, match=message):
        ActivationExtractor(**{"model": MODEL, "layer": 0, **parameters}).fit()


def test_small_integers_of_numpy_do_not_wrap():
    plain = ActivationExtractor(MODEL, 1, skip_first=2, batch_size=3, max_length=100).transform(BLOCKS)
    small = ActivationExtractor(
        MODEL, np.int8(1), skip_first=np.uint8(2), batch_size=np.int8(3), max_length=np.int8(100)
    ).transform(np.asarray(BLOCKS, dtype=np.int8))
    assert np.array_equal(plain, small)


def test_masked_token_ids_are_refused():
    masked = np.ma.masked_equal(np.asarray(BLOCKS), BLOCKS[0][0])
    for X in (masked, list(masked)):
        with pytest.raises(ValueError, match="X.* is a masked array with .* masked value"):
            ActivationExtractor(MODEL, 1).transform(X)


def test_token_ids_in_tensors_are_those_in_arrays():
    expected = ActivationExtractor(MODEL, 1).transform(BLOCKS)
    for X in (torch.tensor(BLOCKS), list(torch.tensor(BLOCKS, dtype=torch.int16))):
        assert np.array_equal(ActivationExtractor(MODEL, 1).transform(X), expected)


@pytest.mark.parametrize("form", [np.asarray, list, lambda X: datasets.Dataset.from_dict({"input_ids": X})])
def test_padding_in_token_ids_is_noticed(form):
    end = MODEL.config.eos_token_id
    rng = np.random.default_rng(0)
    X = rng.integers(3, N_VOCABULARY, size=(40, 12))
    X[:, 5] = end  # separates documents
    X[::2, -1] = end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ActivationExtractor(MODEL, 1).transform(form(X))
    X[:10, 8:] = end
    for padded in (X, X[:, ::-1].copy()):
        with pytest.warns(UserWarning, match=f"10 of 40 sequences begin or .* token {end}.* 40 positions look like"):
            ActivationExtractor(MODEL, 1).transform(form(padded))


def test_activations_that_are_not_finite_name_the_batch():
    model = gpt_neox()
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[39] = torch.nan
    sequences = [[1, 2], [3, 4], [5, 6], [39, 7], [8, 9]]
    with pytest.raises(ValueError, match=r"sequences X\[2, 3\] are not finite"):
        ActivationExtractor(model, 0, batch_size=2).transform(sequences)


def load_reports(action):
    """What transformers logs of weights that are there or not."""
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


# The caller's model


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = gpt_neox().train()
    model.gpt_neox.layers[0].eval()
    if fails:
        with torch.no_grad():
            model.gpt_neox.embed_in.weight[39] = torch.nan
    modes = [module.training for module in model.modules()]
    extractor = ActivationExtractor(model, 1)
    if fails:
        with pytest.raises(ValueError, match="not finite"):
            extractor.transform([[39, 39]])
    else:
        next(extractor.iter_batches(BLOCKS))  # left open
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    loss = model(input_ids=torch.tensor(BLOCKS), labels=torch.tensor(BLOCKS)).loss
    loss.backward()
    assert model.get_output_embeddings().weight.grad is not None


def test_dropout_is_off():
    model = new_model(GPT2LMHeadModel, GPT2Config(vocab_size=N_VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2)).train()
    extractor = ActivationExtractor(model, 1)
    np.testing.assert_array_equal(extractor.transform(BLOCKS), extractor.transform(BLOCKS))


def test_a_model_elsewhere_is_not_moved():
    with pytest.raises(ValueError, match="but the model is on 'meta'; move it yourself"):
        ActivationExtractor(gpt_neox().to("meta"), 0, device="cpu").fit()


# Models given by name


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


def test_pickles_leave_out_a_model_given_by_name(folder, tmp_path):
    extractor = ActivationExtractor(str(folder), 1, device="cpu").fit()
    joblib.dump(extractor, tmp_path / "extractor.joblib")
    assert (tmp_path / "extractor.joblib").stat().st_size < 3000
    again = joblib.load(tmp_path / "extractor.joblib")
    np.testing.assert_array_equal(again.transform(BLOCKS), extractor.transform(BLOCKS))


def test_pickles_hold_a_model_given_as_an_object():
    again = pickle.loads(pickle.dumps(ActivationExtractor(gpt_neox(), 1, tokenizer=word_tokenizer()).fit()))
    expected = ActivationExtractor(MODEL, 1).transform(UNEQUAL)
    np.testing.assert_array_equal(again.transform(as_text(UNEQUAL)), expected)


# scikit-learn


def extractor_for_checks():
    return ActivationExtractor(MODEL, 1, tokenizer=word_tokenizer())


@pytest.mark.parametrize(
    "check",
    # All other checks feed floating-point tables, which are no input here; that fitting and transforming change
    # nothing, are idempotent, need no `fit` and take any batch of rows is tested below and above with token ids.
    [
        checks.check_estimator_cloneable,
        checks.check_estimator_tags_renamed,
        checks.check_valid_tag_types,
        checks.check_estimator_repr,
        checks.check_no_attributes_set_in_init,
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_mixin_order,
        checks.check_parameters_default_constructible,
        checks.check_get_params_invariance,
        checks.check_set_params,
        checks.check_transformer_n_iter,
    ],
    ids=lambda check: check.__name__,
)
def test_applicable_estimator_checks(check):
    check("ActivationExtractor", extractor_for_checks())


def test_transform_needs_no_fit_and_changes_nothing():
    extractor = extractor_for_checks()
    first = extractor.transform(BLOCKS)
    state, data = dict(vars(extractor)), BLOCKS.copy()
    np.testing.assert_array_equal(extractor.transform(BLOCKS), first)
    np.testing.assert_array_equal(extractor.fit(BLOCKS).transform(BLOCKS), first)
    assert vars(extractor) == state
    np.testing.assert_array_equal(BLOCKS, data)


def test_clones_share_the_model_and_keep_the_settings():
    def refuse(memo):
        raise MemoryError("a large model was copied")

    model = gpt_neox()
    model.__deepcopy__ = refuse
    extractor = ActivationExtractor(model, 1, batch_size=3).set_output(transform="pandas")
    copy = clone(extractor)
    assert copy.model is extractor.model
    assert copy.get_params() == extractor.get_params()
    assert isinstance(copy.transform(BLOCKS), pd.DataFrame)


def test_feature_names_and_pandas_output():
    extractor = extractor_for_checks()
    with pytest.raises(NotFittedError):
        extractor.get_feature_names_out()
    names = [f"activationextractor{i}" for i in range(WIDTH)]
    assert extractor.fit().get_feature_names_out().tolist() == names
    texts = pd.Series(as_text(BLOCKS), index=[f"document {i}" for i in range(len(BLOCKS))])
    tokens = extractor.set_output(transform="pandas").transform(texts)
    assert (tokens.columns.tolist(), tokens.index.tolist()) == (names, list(range(100)))
    sequences = extractor.set_params(pooling="mean").transform(texts)
    assert (sequences.columns.tolist(), sequences.index.tolist()) == (names, texts.index.tolist())


def test_verbose_tells_of_progress(capsys):
    ActivationExtractor(MODEL, 0).transform(BLOCKS)
    assert not capsys.readouterr().err
    ActivationExtractor(MODEL, 0, verbose=1).transform(BLOCKS)
    assert "10/10" in capsys.readouterr().err


def test_stands_in_a_pipeline():
    pipeline = make_pipeline(extractor_for_checks(), StandardScaler()).fit(as_text(BLOCKS))
    np.testing.assert_allclose(pipeline.transform(as_text(BLOCKS)).mean(0), 0.0, atol=1e-5)


# The store


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store of seven shards, and what it holds."""
    extractor = ActivationExtractor(MODEL, 1)
    store = extractor.transform_to_store(BLOCKS, tmp_path_factory.mktemp("store"), shard_tokens=16)
    return store, extractor.transform(BLOCKS)


def test_store_holds_what_transform_gives(stored):
    store, activations = stored
    assert (store.shape, store.dtype, len(store), store.ndim) == ((100, WIDTH), np.float32, 100, 2)
    assert [shard["rows"] for shard in store.manifest["shards"]] == [16] * 6 + [4]
    assert store.manifest["settings"]["layer"] == 1
    np.testing.assert_array_equal(np.asarray(store), activations)
    np.testing.assert_array_equal(np.asarray(ActivationStore(store.path), dtype=np.float64), activations)
    store.verify()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(-100, 99)
    | st.slices(100)
    | st.lists(st.integers(-100, 99), max_size=30)
    | st.lists(st.booleans(), min_size=100, max_size=100).map(np.array)
    | st.tuples(st.slices(100), st.slices(WIDTH))
    | st.tuples(st.integers(-100, 99), st.slices(WIDTH))
    | st.just((slice(3, 50), ...))
    | st.just(...)
)
def test_store_is_indexed_like_an_array(stored, rows):
    store, activations = stored
    expected = activations[np.array(rows, dtype=int) if isinstance(rows, list) else rows]
    np.testing.assert_array_equal(store[rows], expected, strict=True)


@pytest.mark.parametrize(
    "rows", [100, -101, np.uint64(2**64 - 1), [0, 100], [0.5], np.zeros(3, dtype=bool), (0, 3), [[1]], "a"]
)
def test_store_refuses_rows(stored, rows):
    with pytest.raises(IndexError):
        stored[0][rows]


def test_store_is_read_in_batches(stored):
    store, activations = stored
    batches = list(store.iter_batches(33))
    assert [len(batch) for batch in batches] == [33, 33, 33, 1]
    np.testing.assert_array_equal(np.concatenate(batches), activations)


def test_store_stands_where_scikit_learn_takes_arrays(stored):
    store, activations = stored
    train, test = train_test_split(store, random_state=0)
    expected = train_test_split(activations, random_state=0)
    np.testing.assert_array_equal(train, expected[0])
    np.testing.assert_array_equal(test, expected[1])
    np.testing.assert_allclose(StandardScaler().fit(store).mean_, activations.mean(0), atol=1e-6)


def test_store_pickles_as_its_path(stored):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stored[0]))[:], stored[1])


def test_pooled_store(tmp_path):
    extractor = ActivationExtractor(MODEL, 1, pooling="mean")
    store = extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=4)
    np.testing.assert_array_equal(store[:], extractor.transform(BLOCKS))


def test_half_precision_store(tmp_path):
    extractor = ActivationExtractor(MODEL, 1)
    store = extractor.transform_to_store(UNEQUAL, tmp_path, dtype="float16")
    np.testing.assert_array_equal(store[:], extractor.transform(UNEQUAL).astype(np.float16), strict=True)


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    model = gpt_neox()
    with torch.no_grad():
        model.gpt_neox.layers[0].mlp.dense_4h_to_h.bias += 1e5
    with pytest.raises(ValueError, match="dtype='float16' cannot hold activations as large as 1e"):
        ActivationExtractor(model, 0).transform_to_store(UNEQUAL, tmp_path, dtype="float16")


def copy_of(store, tmp_path):
    for file in store.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_missing_and_truncated_shards_are_named(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    shard = path / "shard-00003.npy"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"shard-00003.npy' has \d+ bytes in place of"):
        ActivationStore(path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00003.npy' is missing"):
        ActivationStore(path)


def flip(file, where=-1):
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("where", [-1, 128, 20, 6])
def test_an_altered_shard_is_refused_when_it_is_read(stored, where, tmp_path):
    path = copy_of(stored[0], tmp_path)
    flip(path / "shard-00002.npy", where)
    store = ActivationStore(path)
    np.testing.assert_array_equal(store[:32], stored[1][:32])
    message = r"shard-00002.npy' (was altered|is damaged).*; remove the folder and extract"
    for read in (lambda: store[:], lambda: store[[40]], lambda: list(store.iter_batches(30)), store.verify):
        with pytest.raises(ValueError, match=message):
            read()
    with pytest.raises(ValueError, match=message):
        ActivationExtractor(MODEL, 1).transform_to_store(BLOCKS, path, shard_tokens=16)


def test_swapped_shards_are_refused(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    (path / "shard-00001.npy").rename(path / "other")
    (path / "shard-00002.npy").rename(path / "shard-00001.npy")
    (path / "other").rename(path / "shard-00002.npy")
    with pytest.raises(ValueError, match=r"shard-00001.npy' was altered"):
        ActivationStore(path)[:]


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(stored, tmp_path):
    (tmp_path / "store").mkdir()
    path = copy_of(stored[0], tmp_path / "store")
    (path / "shard-00001.npy").rename(tmp_path / "elsewhere.npy")
    (path / "shard-00001.npy").symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(ValueError, match=r"shard-00001.npy' is a link to a file in another folder"):
        ActivationStore(path)[:]
    (path / "manifest.json").rename(tmp_path / "elsewhere.json")
    (path / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"manifest.json' is a link to a file in another folder"):
        ActivationStore(path)


def test_shards_are_verified_when_they_are_first_read_and_once(stored, tmp_path, monkeypatch):
    path = copy_of(stored[0], tmp_path)
    for file in path.iterdir():
        os.utime(file, ns=(0, 10**9))
    monkeypatch.setattr("geofloor.language_models._store._OPEN_SHARDS", 1)
    reads = []
    update_digest = npy.update_digest
    monkeypatch.setattr(npy, "update_digest", lambda *arguments: reads.append(update_digest(*arguments)))
    store = ActivationStore(path)
    assert not reads
    for _ in range(3):
        store[20:40]
    assert len(reads) == 2
    ActivationStore(path)[:]
    assert len(reads) == 7
    store.verify()
    assert len(reads) == 14


def test_an_altered_manifest_is_refused(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    manifest = path / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"layer": 1', '"layer": 2'))
    with pytest.raises(ValueError, match=r"manifest.json' was altered"):
        ActivationStore(path)
    with pytest.raises(ValueError, match=r"manifest.json' was altered"):
        ActivationExtractor(MODEL, 2).transform_to_store(BLOCKS, path, shard_tokens=16)


def change_shard(manifest, **change):
    first, *others = manifest["shards"]
    return {**manifest, "shards": [{**first, **change}, *others]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "version": 99}, "has version 99, and this geofloor reads version 2"),
        (lambda m: {**m, "extra": 1}, "it has the unknown ..extra.."),
        (lambda m: {**m, "shape": [10**30, WIDTH]}, "is not the manifest of an activation store: shape"),
        (lambda m: {**m, "shape": [True, WIDTH]}, "is not the manifest of an activation store: shape"),
        (lambda m: {**m, "shape": [99, WIDTH]}, "do not add up to 99 rows"),
        (lambda m: {**m, "dtype": "O"}, "is not the manifest of an activation store: dtype"),
        (lambda m: {**m, "dtype": []}, "is not the manifest of an activation store: dtype"),
        (lambda m: {**m, "input_sha256": None}, "is not the manifest of an activation store: input_sha256"),
        (
            lambda m: {**m, "settings": {**m["settings"], "layer": "1"}},
            "layer='1' is not a whole number",
        ),
        (
            lambda m: {**m, "settings": {**m["settings"], "trust_remote_code": True}},
            "is not the manifest of an activation store: settings",
        ),
        (lambda m: change_shard(m, file="../outside.npy"), "is not the manifest of an activation store: shards"),
        (lambda m: change_shard(m, file="/etc/passwd"), "is not the manifest of an activation store: shards"),
        (lambda m: change_shard(m, file="shard-00001.npy"), "is not the manifest of an activation store: shards"),
        (lambda m: change_shard(m, rows=-16), "rows=-16 is not a whole number"),
        (lambda m: change_shard(m, rows=16.0), "rows=16.0 is not a whole number"),
        (lambda m: change_shard(m, sha256=None), "sha256=None is no text"),
        (lambda m: change_shard(m, extra=0), "is not the manifest of an activation store: shards"),
    ],
)
def test_a_manifest_with_a_right_checksum_is_checked_entry_by_entry(stored, change, message, tmp_path):
    path = copy_of(stored[0], tmp_path)
    manifest = {key: value for key, value in stored[0].manifest.items() if key != "checksum"}
    _files.write_sealed(path / "manifest.json", change(manifest))
    with pytest.raises(ValueError, match=f"manifest.json' .*{message}.*; remove the folder"):
        ActivationStore(path)


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", "{}", '{"format": "something else"}', "[" * 10**5, '{"a": Infinity}', "1" * 5000]
)
def test_what_is_no_store_is_refused(manifest, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished activation store"):
        ActivationStore(tmp_path)
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match="not the manifest of an activation store"):
        ActivationStore(tmp_path)


class Interrupt:
    """Stops a model at one of its forward passes, as Ctrl-C would, and counts them."""

    def __init__(self, model, at):
        self.at, self.passes = at, 0
        self.handle = model.base_model.register_forward_pre_hook(self)

    def __call__(self, *_):
        self.passes += 1
        if self.passes == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("sequences", [BLOCKS, random_sequences(np.random.default_rng(2).integers(0, 12, size=60))])
@pytest.mark.parametrize("at", [2, 5, 9])
def test_resumed_extraction_has_the_bits_of_one_never_interrupted(sequences, at, tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 2)  # short windows, as a small test needs
    model = gpt_neox()
    extractor = ActivationExtractor(model, 1, batch_size=2 if sequences is not BLOCKS else 1)
    extract = partial(extractor.fit().transform_to_store, sequences, shard_tokens=16)
    whole = extract(tmp_path / "whole")
    interrupt = Interrupt(model, at)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "again")
    if at > 2:
        with pytest.raises(FileNotFoundError, match="interrupted; call transform_to_store again"):
            ActivationStore(tmp_path / "again")
    monkeypatch.undo()
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 2)
    interrupt.passes = 100
    again = extract(tmp_path / "again")
    files = [sorted(file.name for file in store.path.iterdir()) for store in (whole, again)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (whole.path / name).read_bytes() == (again.path / name).read_bytes()


def test_resuming_computes_only_what_is_missing(tmp_path):
    model = gpt_neox()
    extractor = ActivationExtractor(model, 1, batch_size=1).fit()
    interrupt = Interrupt(model, at=9)
    with pytest.raises(KeyboardInterrupt):  # eight sequences of ten rows are through, five shards of 16 are written
        extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    interrupt.passes = 100
    extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    assert interrupt.passes - 100 == 10


def test_interrupted_just_before_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 1)
    sequences = [*UNEQUAL, *[[1]] * 20]  # the last windows give no rows
    extract = partial(ActivationExtractor(MODEL, 1).transform_to_store, sequences, tmp_path, shard_tokens=np.int64(16))
    manifest = extract().manifest
    (tmp_path / "manifest.json").rename(tmp_path / "manifest.partial.json")
    assert extract().manifest == manifest
    assert not (tmp_path / "manifest.partial.json").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_store_of_a_model_with_slightly_other_weights_is_refused(stored, finished, tmp_path):
    path = copy_of(stored[0], tmp_path)
    if not finished:
        (path / "manifest.json").rename(path / "manifest.partial.json")
    other = gpt_neox()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.003)
    with pytest.raises(ValueError, match="was made by a model with other weights"):
        ActivationExtractor(other, 1).transform_to_store(BLOCKS, path, shard_tokens=16)
    one = gpt_neox()
    with torch.no_grad():
        one.gpt_neox.embed_in.weight[-1, -1] += 1e-3  # of a token that may not occur
    with pytest.raises(ValueError, match="was made by a model with other weights"):
        ActivationExtractor(one, 1).transform_to_store(BLOCKS, path, shard_tokens=16)


def test_a_store_of_a_model_that_computes_otherwise_with_the_same_weights_is_refused(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    other = gpt_neox()
    for block in other.gpt_neox.layers:
        block.mlp.act = torch.nn.ReLU()
    with pytest.raises(ValueError, match="computes something else with the same weights"):
        ActivationExtractor(other, 1).transform_to_store(BLOCKS, path, shard_tokens=16)


def test_altered_shards_of_an_interrupted_store_are_not_resumed(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    (path / "manifest.json").rename(path / "manifest.partial.json")
    flip(path / "shard-00000.npy")
    with pytest.raises(ValueError, match=r"shard-00000.npy' was altered"):
        ActivationExtractor(MODEL, 1).transform_to_store(BLOCKS, path, shard_tokens=16)
    assert not (path / "manifest.json").exists()


def test_of_several_that_write_one_store_all_but_one_wait(stored, tmp_path):
    extractor = ActivationExtractor(gpt_neox(), 1, batch_size=1).fit()
    begun = threading.Event()

    def slow(*_):
        begun.set()
        time.sleep(0.02)

    def first():
        extractor.model.base_model.register_forward_pre_hook(slow)
        extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    other = ActivationExtractor(MODEL, 1, batch_size=1)
    with pytest.warns(UserWarning, match="Another process writes to"):
        store = other.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    thread.join()
    np.testing.assert_array_equal(store[:], ActivationExtractor(MODEL, 1, batch_size=1).transform(BLOCKS))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "manifest.json",
        *(f"shard-{i:05d}.npy" for i in range(7)),
    ]


def test_a_folder_that_cannot_be_written_is_refused_before_any_forward_pass(tmp_path):
    (tmp_path / "file").touch()
    model = gpt_neox()
    model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("too late"))
    for path in (tmp_path / "file", tmp_path / "file" / "store", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="path='.*' can't be written"):
            ActivationExtractor(model, 1).transform_to_store(BLOCKS, path)


def test_a_finished_store_is_kept(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    times = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    ActivationExtractor(MODEL, 1).transform_to_store(BLOCKS, path, shard_tokens=16)
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == times


def test_a_finished_store_does_not_grow(tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 1)  # what is added is a window of its own
    extractor = ActivationExtractor(MODEL, 1, batch_size=5)
    extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    content = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="another, shorter input"):
        extractor.transform_to_store(np.tile(BLOCKS, (2, 1)), tmp_path, shard_tokens=16)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 2}, "layer=1, not 2"),
        ({"batch_size": 3}, "batch_size=8, not 3"),
        ({"X": BLOCKS[:, ::-1]}, "made from another input"),
        ({"X": np.concatenate([BLOCKS, [[1] * 11]])}, "made from another"),
        ({"X": BLOCKS[:9]}, "made from another"),
        ({"model": gpt_neox(seed=1)}, "made by a model with other weights"),
        ({"dtype": "float16"}, "dtype='float32', not 'float16'"),
    ],
)
def test_a_store_of_something_else_is_refused(stored, change, message, tmp_path):
    path = copy_of(stored[0], tmp_path)
    X, dtype = change.pop("X", BLOCKS), change.pop("dtype", "float32")
    extractor = ActivationExtractor(**{"model": MODEL, "layer": 1, **change})
    with pytest.raises(ValueError, match=message):
        extractor.transform_to_store(X, path, shard_tokens=16, dtype=dtype)
