from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import BLOCKS, N_VOCABULARY, UNEQUAL, as_text, gpt_neox, reference, word_tokenizer

from geofloor import ActivationExtractor, ActivationStore
from geofloor.datasets import load_teacher
from geofloor.language_models._positions import Positions, check_exclude_tokens, tokens_to_exclude

MODEL = gpt_neox()
EXCLUDED = [3, *range(10, 25)]


def rows_kept(ids, excluded, skip_first=1):
    return reference(MODEL, ids, 1, skip_first)[~np.isin(ids[skip_first:], excluded)]


@pytest.mark.parametrize("sequences", [UNEQUAL, BLOCKS.tolist()])
@pytest.mark.parametrize("skip_first", [0, 2])
def test_excluded_tokens_give_no_rows(sequences, skip_first):
    extractor = ActivationExtractor(MODEL, 1, skip_first=skip_first, exclude_tokens=EXCLUDED, batch_size=3)
    expected = np.concatenate([rows_kept(ids, EXCLUDED, skip_first) for ids in sequences])
    found = extractor.transform(sequences)
    assert 0 < len(found) < sum(map(len, sequences)) - skip_first * len(sequences)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert extractor.exclude_tokens_ == EXCLUDED


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_excluded_tokens_are_left_out_of_pools(pooling):
    sequences = [ids for ids in UNEQUAL if len(ids) > 1 and not set(ids[1:]) <= set(EXCLUDED)]
    found = ActivationExtractor(MODEL, 1, pooling=pooling, exclude_tokens=EXCLUDED, batch_size=3).transform(sequences)
    rows = [rows_kept(ids, EXCLUDED) for ids in sequences]
    expected = [each.mean(axis=0) if pooling == "mean" else each[-1] for each in rows]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    with pytest.raises(ValueError, match=r"X\[1\] has 2 tokens and skip_first=1, with exclude_tokens, leaves none"):
        ActivationExtractor(MODEL, 1, pooling=pooling, exclude_tokens=[5]).transform([[5, 6], [6, 5]])


def test_input_of_excluded_tokens_alone_is_refused():
    with pytest.raises(ValueError, match="none of its 2 sequences has .* beside those of exclude_tokens"):
        ActivationExtractor(MODEL, 1, exclude_tokens=[5]).transform([[5, 5], [6, 5]])


def test_special_tokens_are_those_of_the_tokenizer():
    extractor = ActivationExtractor(MODEL, 1, tokenizer=word_tokenizer(with_start=True), skip_first=0)
    texts = as_text(UNEQUAL)
    plain = extractor.transform(texts)
    found = extractor.set_params(exclude_tokens="special").transform(texts)
    assert extractor.exclude_tokens_ == [0]
    starts = np.cumsum([0] + [len(ids) + 1 for ids in UNEQUAL[:-1]])
    np.testing.assert_array_equal(found, np.delete(plain, starts, axis=0))
    teacher = load_teacher()
    assert tokens_to_exclude("special", teacher.path, None, 2048) == sorted(teacher.tokenizer.all_special_ids)


@pytest.mark.parametrize("X", [BLOCKS, UNEQUAL])
def test_stores_hold_the_same_rows_also_after_an_interruption(X, tmp_path, monkeypatch):
    extractor = ActivationExtractor(MODEL, 1, exclude_tokens=EXCLUDED, batch_size=2)
    expected = extractor.transform(X)
    with monkeypatch.context() as patch:
        stream, calls = extractor._residual_stream(), []
        rows = type(stream).rows

        def failing(self, *arguments):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return rows(self, *arguments)

        patch.setattr(type(stream), "rows", failing)
        with pytest.raises(KeyboardInterrupt):
            extractor.transform_to_store(X, tmp_path, shard_tokens=5)
    store = extractor.transform_to_store(X, tmp_path, shard_tokens=5)
    np.testing.assert_array_equal(store[:], expected)
    assert ActivationStore(tmp_path).manifest["settings"]["exclude_tokens"] == EXCLUDED
    with pytest.raises(ValueError, match=r"was made with exclude_tokens=\[.*\], not None"):
        extractor.set_params(exclude_tokens=None).transform_to_store(X, tmp_path, shard_tokens=5)


def test_excluded_padding_is_no_undeclared_padding(recwarn):
    padded = np.where(np.arange(11) < 7, BLOCKS, 0)
    ActivationExtractor(MODEL, 1, exclude_tokens=[0]).transform(padded)
    assert not recwarn


@pytest.mark.parametrize("given", [[5, 3, 3], (3, 5), {5, 3}, np.array([3, 5], dtype=np.uint8), torch.tensor([5, 3])])
def test_ids_in_any_container(given):
    found = check_exclude_tokens(given, N_VOCABULARY, None, "")
    assert found == [3, 5]
    assert all(type(each) is int for each in found)


@pytest.mark.parametrize("given", [None, [], np.empty(0)])
def test_nothing_is_excluded(given):
    positions = Positions(1, check_exclude_tokens(given, N_VOCABULARY, None, ""))
    assert [positions.n_rows(ids) for ids in BLOCKS] == [10] * 10
    assert positions.kept(BLOCKS).sum() == 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("bos", "exclude_tokens='bos' is unknown; give token ids"),
        ("special", "exclude_tokens='special' needs a tokenizer, and none was given; give the ids"),
        (3, "exclude_tokens=3 is no list of token ids"),
        ([0.5], r"exclude_tokens=\[0.5\] is no list of token ids"),
        ([[1]], "is no list of token ids"),
        ([True], "is no list of token ids"),
        (["<s>"], "is no list of token ids"),
        ([-1], "exclude_tokens=-1 must be a whole number of at least 0 and at most 39"),
        ([40], "exclude_tokens=40"),
    ],
)
def test_other_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ActivationExtractor(MODEL, 1, exclude_tokens=given).fit()


def test_a_tokenizer_without_special_tokens_is_named():
    with pytest.raises(ValueError, match="a SimpleNamespace has no all_special_ids"):
        check_exclude_tokens("special", 8, SimpleNamespace(), "")
