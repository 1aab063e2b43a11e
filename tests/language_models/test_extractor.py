import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks as checks
from small_models import (
    BLOCKS,
    MODEL,
    N_LAYERS,
    N_VOCABULARY,
    UNEQUAL,
    WIDTH,
    as_text,
    bert,
    gpt2,
    gpt_neox,
    llama,
    new_model,
    reference,
    word_tokenizer,
)
from transformers import (
    AlbertConfig,
    AlbertModel,
    FNetConfig,
    FNetModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5Model,
)

from geofloor import ActivationExtractor


@pytest.mark.parametrize("new", [gpt_neox, llama, gpt2, bert])
@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_equals_hidden_states_of_sequences_on_their_own(new, layer):
    model = new()
    activations = ActivationExtractor(model, layer, batch_size=3).fit_transform(UNEQUAL)
    norm = None  # hidden_states[-1] includes the final normalization, the residual stream does not
    if layer == N_LAYERS - 1:
        norm = {gpt_neox: "gpt_neox.final_layer_norm", llama: "model.norm", gpt2: "transformer.ln_f"}.get(new)
    if norm is not None:
        with torch.inference_mode():
            activations = model.get_submodule(norm)(torch.from_numpy(activations)).numpy()
    expected = np.concatenate([reference(model, ids, layer) for ids in UNEQUAL])
    np.testing.assert_allclose(activations, expected, atol=2e-6)


def test_negative_layers_count_from_the_last():
    extractor = ActivationExtractor(MODEL, -1).fit()
    assert (extractor.layer_, extractor.n_layers_, extractor.block_name_) == (2, 3, "layers.2")


def test_setting_the_layer_changes_the_block():
    extractor = ActivationExtractor(MODEL, 0).fit()
    second = extractor.set_params(layer=1).transform(BLOCKS)
    np.testing.assert_array_equal(second, ActivationExtractor(MODEL, 1).transform(BLOCKS))


@pytest.mark.parametrize("new", [gpt_neox, llama, gpt2, bert])
@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_layers_extracted_together_have_the_bits_of_each_alone(new, pooling):
    sequences = [ids for ids in UNEQUAL if len(ids) > 1]
    extractor = ActivationExtractor(new(), [2, 0, -2], batch_size=3, pooling=pooling)
    together = extractor.transform(sequences)
    assert list(together) == extractor.layer_ == [2, 0, 1]
    assert extractor.block_name_ == [extractor.block_name_[0][:-1] + str(layer) for layer in (2, 0, 1)]
    for layer, activations in together.items():
        alone = ActivationExtractor(extractor.model, layer, batch_size=3, pooling=pooling).transform(sequences)
        np.testing.assert_array_equal(activations, alone, strict=True)


@pytest.mark.parametrize("X", [UNEQUAL, BLOCKS])
def test_batches_of_several_layers_hold_the_same_tokens(X, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 2)
    batches = list(ActivationExtractor(MODEL, [1, 0], batch_size=2).iter_batches(X))
    assert len(batches) > 1
    for layer in (0, 1):
        alone = ActivationExtractor(MODEL, layer, batch_size=2).iter_batches(X)
        for batch, expected in zip(batches, alone, strict=True):
            assert list(batch) == [1, 0]
            np.testing.assert_array_equal(batch[layer], expected)


@pytest.mark.parametrize("layer", [(1,), np.array([1]), range(1, 2), torch.tensor([-2]), pd.Series([1], index=[7])])
def test_a_list_of_one_layer_gives_a_dict(layer):
    (activations,) = ActivationExtractor(MODEL, layer).transform(BLOCKS).items()
    assert activations[0] == 1
    np.testing.assert_array_equal(activations[1], ActivationExtractor(MODEL, 1).transform(BLOCKS))


def test_one_pass_serves_all_layers_and_stops_after_the_last():
    model = gpt_neox()
    ran = []
    for name in ("layers.0", "layers.1", "layers.2", "final_layer_norm"):
        model.get_submodule(f"gpt_neox.{name}").register_forward_hook(lambda *_, name=name: ran.append(name))
    extractor = ActivationExtractor(model, [1, 0], batch_size=5).fit()
    ran.clear()
    extractor.transform(BLOCKS)
    assert ran == ["layers.0", "layers.1"] * 2


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


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layer": 3}, r"layer=3 is not there: the model has 3 blocks, 0 to 2 \(or -3 to -1\)"),
        ({"layer": -4}, "layer=-4 is not there"),
        ({"layer": 1.0}, "layer=1.0 must be a whole number"),
        ({"layer": []}, r"layer=\[\] names no block; give the index of at least one"),
        ({"layer": SimpleNamespace(shape=(3,))}, r"layer"),
        ({"layer": [0, 3]}, r"layer\[1\]=3 is not there: the model has 3 blocks, 0 to 2 \(or -3 to -1\)"),
        ({"layer": [0, 1.0]}, r"layer\[1\]=1.0 must be a whole number"),
        ({"layer": [[0, 1]]}, r"layer\[0\]=\[0, 1\] must be a whole number"),
        ({"layer": [2, 0, -1]}, r"layer\[0\]=2 and layer\[2\]=-1 are the same block; leave one of them out"),
        ({"layer": "12"}, "layer='12' must be a whole number"),
        ({"layer": {0: 1}}, "layer={0: 1} must be a whole number"),
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


def test_activations_that_are_not_finite_name_the_batch():
    model = gpt_neox()
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[39] = torch.nan
    sequences = [[1, 2], [3, 4], [5, 6], [39, 7], [8, 9]]
    for layer in (0, [0, 1]):
        with pytest.raises(ValueError, match=r"after layer=0 of the batch of sequences X\[2, 3\] are not finite"):
            ActivationExtractor(model, layer, batch_size=2).transform(sequences)


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


def extractor_for_checks(layer=1):
    return ActivationExtractor(MODEL, layer, tokenizer=word_tokenizer())


@pytest.mark.parametrize("layer", [1, [0, 1]], ids=["one layer", "several"])
@pytest.mark.parametrize(
    "check",
    # All other checks give floating-point tables, and the extractor takes none. Tests with token ids in this file
    # replace those on idempotence, unchanged state, transforming without `fit` and subsets of rows.
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
def test_applicable_estimator_checks(check, layer):
    check("ActivationExtractor", extractor_for_checks(layer))


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


def test_several_layers_share_column_names_and_refuse_pandas_output():
    extractor = extractor_for_checks([0, 2]).set_output(transform="pandas")
    assert extractor.fit().get_feature_names_out().tolist() == [f"activationextractor{i}" for i in range(WIDTH)]
    with pytest.raises(ValueError, match=r"layer=\[0, 2\] gives a dict of arrays, and set_output.*'pandas'; call"):
        extractor.transform(BLOCKS)
    assert extractor.set_output(transform="default").transform(BLOCKS).keys() == {0, 2}
    assert isinstance(extractor.set_params(layer=2).set_output(transform="pandas").transform(BLOCKS), pd.DataFrame)


def test_clones_and_pickles_keep_several_layers():
    layer = [0, 2]
    extractor = extractor_for_checks(layer)
    expected = extractor.transform(BLOCKS)
    assert extractor.layer is layer
    assert extractor.layer_ is not layer  # a list changed by the caller changes no fitted state
    for copied in (clone(extractor), pickle.loads(pickle.dumps(extractor))):
        assert copied.layer == [0, 2]
        for key, activations in copied.transform(BLOCKS).items():
            np.testing.assert_array_equal(activations, expected[key])


def test_verbose_tells_of_progress(capsys):
    ActivationExtractor(MODEL, 0).transform(BLOCKS)
    assert not capsys.readouterr().err
    ActivationExtractor(MODEL, 0, verbose=1).transform(BLOCKS)
    assert "10/10" in capsys.readouterr().err


def test_stands_in_a_pipeline():
    pipeline = make_pipeline(extractor_for_checks(), StandardScaler()).fit(as_text(BLOCKS))
    np.testing.assert_allclose(pipeline.transform(as_text(BLOCKS)).mean(0), 0.0, atol=1e-5)
