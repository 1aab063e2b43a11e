import numpy as np
import pytest
from small_students import student
from transformers import GPTNeoXForCausalLM

from geofloor.language_models import zero_width_kl
from geofloor.language_models._logits import LanguageModel

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


def test_the_zero_width_loss_is_that_of_the_held_out_text(teacher, tokens):
    tokens = np.minimum(tokens, 62)
    tokens[-3:, 8:] = 63
    fitted = student(teacher, pad_token_id=63).fit(tokens)
    assert fitted.zero_width_loss_ == pytest.approx(
        zero_width_kl(teacher, tokens[-6:], pad_token_id=63, device="cpu"), rel=1e-6
    )


def test_a_teacher_of_the_wrong_kind_is_named(tokens):
    with pytest.raises(TypeError, match="teacher=3 is a int; give a transformers model"):
        student(3).fit(tokens)


def test_a_teacher_and_its_saved_copy_have_the_same_digest(teacher, teacher_path):
    loaded = GPTNeoXForCausalLM.from_pretrained(teacher_path, dtype="float32")
    assert LanguageModel(loaded, "teacher").digest() == LanguageModel(teacher, "teacher").digest()
    half = GPTNeoXForCausalLM.from_pretrained(teacher_path, dtype="bfloat16")
    assert LanguageModel(half, "teacher").digest() != LanguageModel(teacher, "teacher").digest()
