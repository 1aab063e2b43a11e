import pytest

from geofloor.datasets import load_local_corpus, load_teacher, train_teacher
from geofloor.language_models import token_blocks


def test_the_embedded_teacher_is_small_and_holds_no_pickle():
    path = load_teacher().path
    assert sum(file.stat().st_size for file in path.iterdir()) <= 6_000_000
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}


def test_the_embedded_teacher_predicts_held_out_text():
    teacher = load_teacher()
    texts = (document.text for document in load_local_corpus("test", packages=["sklearn"]))
    blocks = token_blocks(texts, teacher.tokenizer, length=256, max_blocks=64)
    loss = train_teacher.held_out_loss(teacher.model, blocks, batch=16)
    # On other versions of the packages, hence the margin.
    assert loss == pytest.approx(teacher.training["held_out_loss_nats"], abs=0.6)
    assert train_teacher.unigram_loss(blocks, blocks, len(teacher.tokenizer)) > 2 * loss


def test_its_tokenizer_loses_nothing():
    tokenizer = load_teacher().tokenizer
    text = 'def f(x):\n\treturn "é → 日本"  # ok\r\n'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
