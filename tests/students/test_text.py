import datasets
import numpy as np
import pytest
import torch
from small_students import N_VOCABULARY, SETTINGS, assert_same, student

from geofloor.language_models import _token_rows
from geofloor.students import _engine, distill_widths

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


def test_evaluation_tokens_can_be_given(teacher, tokens):
    fitted = student(teacher).fit(tokens[:54], eval_tokens=tokens[54:])
    assert_same(fitted, student(teacher).fit(tokens))


def test_memory_maps_of_small_integers_are_trained_on_as_arrays_are(teacher, tokens, tmp_path):
    np.save(tmp_path / "tokens.npy", tokens.astype(np.uint8))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    assert_same(student(teacher).fit(mapped), student(teacher).fit(tokens))


def test_fingerprints_cover_every_row_and_ignore_the_container(tokens, on_disk, monkeypatch):
    found = set()
    for data in (tokens, tokens.astype(np.int32), tokens.tolist(), torch.tensor(tokens), *on_disk):
        for rows in (7, 4096):
            monkeypatch.setattr(_token_rows, "_SCAN_ROWS", rows)
            found.add(_token_rows.TokenRows(data, "tokens", N_VOCABULARY, None, None).fingerprint())
    assert len(found) == 1
    changed = [tokens[:-1], tokens.reshape(-1, 6), np.roll(tokens, 1, axis=0)]
    prints = {_token_rows.TokenRows(data, "tokens", N_VOCABULARY, None, None).fingerprint() for data in changed}
    assert len(prints | found) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t + 1, "token id 64, outside the teacher's vocabulary of 0 to 63"),
        (lambda t: t - 1, "token id -1, outside"),
        (lambda t: t[:, :1], "sequences of 1 token"),
        (lambda t: t[:0], "empty"),
        (lambda t: t[0], "shape .12,.; token ids are integers of shape"),
        (lambda t: t.astype(float), "dtype float64; token ids are integers"),
        (lambda t: [[1, 2, 3], [1, 2]], "different lengths"),
        (lambda t: t[:1], "leaves none to train on"),
        (lambda t: np.tile(t, 3), "36 tokens, and the teacher has 32 positions"),
    ],
)
def test_bad_tokens_are_refused_before_training(teacher, tokens, change, message, monkeypatch):
    monkeypatch.delattr(_engine.Distillation, "train")
    with pytest.raises(ValueError, match=message):
        student(teacher).fit(change(tokens))


def test_padding_before_tokens_is_refused(teacher, tokens):
    tokens[3, 4] = 0
    with pytest.raises(ValueError, match="pad sequences at their end"):
        student(teacher, pad_token_id=0).fit(tokens)


def test_tokens_on_disk_are_trained_on_as_arrays_are(teacher, tokens, on_disk, monkeypatch):
    mapped, dataset = on_disk
    monkeypatch.setattr(_token_rows, "_SCAN_ROWS", 7)
    sizes = []
    read = _token_rows._DatasetTokens.__getitem__
    monkeypatch.setattr(
        _token_rows._DatasetTokens, "__getitem__", lambda self, rows: sizes.append(len(rows)) or read(self, rows)
    )
    fitted = student(teacher).fit(tokens)
    assert_same(student(teacher).fit(mapped), fitted)
    on_dataset = student(teacher).fit(dataset.with_format("torch"))
    assert_same(on_dataset, fitted)
    assert len(sizes) > 20
    assert max(sizes) <= 8
    assert_same(
        distill_widths(teacher, dataset, [8], eval_tokens=mapped, **SETTINGS)[0],
        student(teacher).fit(tokens, eval_tokens=tokens),
    )
    for method in ("predict", "transform", "score"):
        np.testing.assert_array_equal(getattr(fitted, method)(dataset), getattr(fitted, method)(tokens))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (datasets.Dataset.from_dict({"text": ["a"]}), r"columns \['text'\], and no 'input_ids'.*token_blocks"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2], [1, 2, 3]]}), "tokens has sequences of different lengths"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2], [1, None]]}), "missing token ids"),
        (datasets.Dataset.from_dict({"input_ids": [[1.0, 2.0]]}), "dtype float32; token ids are integers"),
        (datasets.Dataset.from_dict({"input_ids": [1, 2]}), "shape .2,.; token ids are integers of shape"),
        (datasets.Dataset.from_dict({"input_ids": []}), "tokens is empty"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 64]]}), "token id 64, outside"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2]]}).to_iterable_dataset(), "IterableDataset.*token_blocks"),
        ((ids for ids in [[1, 2]]), "tokens is a generator.*token_blocks"),
        (datasets.DatasetDict(), r"tokens is a DatasetDict; choose .* tokens\['train'\]"),
    ],
)
def test_datasets_without_rows_of_tokens_are_refused(teacher, tokens, message, monkeypatch):
    monkeypatch.delattr(_engine.Distillation, "train")
    with pytest.raises(ValueError, match=message):
        student(teacher).fit(tokens)


def test_sequences_of_another_length_are_refused_where_they_are_read(teacher, tokens, monkeypatch):
    monkeypatch.setattr(_token_rows, "_SCAN_ROWS", 7)
    rows = [row[:6] if i < 56 else row for i, row in enumerate(tokens)]
    with pytest.raises(ValueError, match="tokens has sequences of different lengths"):
        student(teacher).fit(datasets.Dataset.from_dict({"input_ids": rows}))
