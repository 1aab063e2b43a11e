import datasets
import numpy as np
import pytest
from small_students import N_VOCABULARY, new_teacher
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from geofloor._training.devices import one_thread
from geofloor.language_models import token_blocks


@pytest.fixture(autouse=True, scope="module")
def on_one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def teacher():
    return new_teacher()


@pytest.fixture(scope="module")
def teacher_path(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    teacher.save_pretrained(path)
    return path


@pytest.fixture
def tokens(rng):
    return rng.integers(N_VOCABULARY, size=(60, 12))


@pytest.fixture
def on_disk(tokens, tmp_path):
    """Return the tokens as a memory map made by token_blocks, and as a dataset."""
    vocabulary = {"<end>": 0, **{str(i): i for i in range(1, N_VOCABULARY)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    np.maximum(tokens, 1, out=tokens)[:, -1] = 0  # each row is a document
    texts = [" ".join(map(str, row[:-1])) for row in tokens]
    mapped = token_blocks(texts, tokenizer, length=tokens.shape[1], path=tmp_path / "tokens.npy")
    np.testing.assert_array_equal(mapped, tokens)
    return mapped, datasets.Dataset.from_dict({"text": texts, "input_ids": list(tokens.astype(np.uint16))})
