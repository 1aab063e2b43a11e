import pytest
from small_students import new_teacher
from transformers import GPTNeoXForCausalLM

from geofloor.language_models._logits import LanguageModel


@pytest.fixture(scope="module")
def teacher():
    return new_teacher()


@pytest.fixture(scope="module")
def teacher_path(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    teacher.save_pretrained(path)
    return path


def test_a_model_and_its_saved_copy_have_the_same_digest(teacher, teacher_path):
    loaded = GPTNeoXForCausalLM.from_pretrained(teacher_path, dtype="float32")
    assert LanguageModel(loaded, "teacher").digest() == LanguageModel(teacher, "teacher").digest()
    half = GPTNeoXForCausalLM.from_pretrained(teacher_path, dtype="bfloat16")
    assert LanguageModel(half, "teacher").digest() != LanguageModel(teacher, "teacher").digest()
