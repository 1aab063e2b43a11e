import warnings
from itertools import cycle

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from small_models import (
    BLOCKS,
    MODEL,
    N_VOCABULARY,
    UNEQUAL,
    WIDTH,
    as_text,
    gpt2,
    random_sequences,
    reference,
    word_tokenizer,
)

from geofloor import ActivationExtractor


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


def test_sequences_are_cut_to_the_positions_of_the_model():
    model = gpt2()  # 64 learned positions
    assert ActivationExtractor(model, 0, skip_first=0).transform([[1] * 100]).shape == (64, WIDTH)


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
    assert len(read) <= 2 * 64 + 2  # and the first item, read for the columns


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
        ActivationExtractor(MODEL, 0, batch_size=2).iter_batches([*UNEQUAL, [N_VOCABULARY]])  # no batch is drawn


def test_refuses_texts_without_a_tokenizer():
    with pytest.raises(ValueError, match="X holds texts and tokenizer=None"):
        ActivationExtractor(MODEL, 0).iter_batches(["1 2"])


def test_refuses_to_pool_nothing():
    with pytest.raises(ValueError, match=r"X\[1\] has 1 tokens and skip_first=1 leaves none to pool"):
        ActivationExtractor(MODEL, 0, pooling="mean").transform([[1, 2], [1]])


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
