import numpy as np
import pytest
import torch
from small_models import with_padded_vocabulary
from small_students import N_VOCABULARY, Padded, new_teacher, plain_kl, student
from transformers import GPTNeoXForCausalLM

from geofloor.students import evaluate_student

pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def narrow():
    return new_teacher(hidden_size=8, intermediate_size=32, initializer_range=0.2)


def logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.double()


def test_the_loss_is_that_of_plain_torch_and_of_a_distilled_student(teacher, tokens, tmp_path):
    fitted = student(teacher).fit(tokens[:40])
    found = evaluate_student(fitted, teacher, tokens[40:], device="cpu")
    assert found.loss == -fitted.score(tokens[40:])
    expected = plain_kl(logits(fitted.model_, tokens[40:]), logits(teacher, tokens[40:]), None, 2.0)
    assert found.loss == pytest.approx(float(expected), rel=1e-6)
    assert found.n_positions == 20 * 12
    rows = [evaluate_student(fitted.model_, teacher, row[np.newaxis]).loss for row in tokens[40:]]
    assert found.standard_error == pytest.approx(np.std(rows, ddof=1) / 20**0.5, rel=1e-5)
    # The floor is the mean of the last evaluations: here one, of the 4 sequences held out.
    held_out = evaluate_student(fitted, teacher, tokens[36:40], batch_size=4)
    assert (held_out.loss, held_out.standard_error) == pytest.approx((fitted.floor_, fitted.floor_error_), rel=1e-6)
    fitted.model_.save_pretrained(tmp_path / "trained")
    teacher.save_pretrained(tmp_path / "teacher")
    assert evaluate_student(tmp_path / "trained", tmp_path / "teacher", tokens[40:]) == found


def test_the_direction_and_the_temperature(teacher, narrow, tokens):
    for temperature in (1.0, 3.0):
        expected = plain_kl(logits(narrow, tokens), logits(teacher, tokens), None, temperature)
        found = evaluate_student(narrow, teacher, tokens, temperature=temperature, batch_size=7)
        assert found.loss == pytest.approx(float(expected), rel=1e-6)
    with pytest.warns(UserWarning, match="student has .* parameters and the teacher .* exchanged"):
        other = evaluate_student(teacher, narrow, tokens, temperature=temperature)
    reverse = plain_kl(logits(teacher, tokens), logits(narrow, tokens), None, temperature)
    assert other.loss == pytest.approx(float(reverse), rel=1e-6) != pytest.approx(found.loss, rel=1e-3)


def test_padding_and_excluded_tokens_do_not_count(teacher, narrow, tokens):
    padded = np.concatenate([np.maximum(tokens, 1), np.zeros((60, 3), dtype=int)], axis=1)
    found = evaluate_student(narrow, teacher, padded, pad_token_id=0, exclude_tokens=[5])
    counted = torch.from_numpy((padded != 0) & (padded != 5))
    expected = plain_kl(logits(narrow, padded), logits(teacher, padded), counted, 2.0)
    assert found.loss == pytest.approx(float(expected), rel=1e-6)
    assert found.n_positions == int(counted.sum())


def test_vocabularies_must_be_the_same_or_cut(teacher, narrow, tokens):
    with torch.random.fork_rng():
        rounded = with_padded_vocabulary(narrow, 8)
    assert isinstance(rounded, GPTNeoXForCausalLM)
    size = rounded.get_input_embeddings().weight.shape[0]
    with pytest.raises(ValueError, match=f"student=GPTNeoXForCausalLM gives logits of {size} .* teacher of 64.*n_voc"):
        evaluate_student(rounded, teacher, tokens % size)
    cut = evaluate_student(rounded, teacher, tokens % 40, n_vocabulary=40)
    expected = plain_kl(logits(rounded, tokens % 40)[..., :40], logits(teacher, tokens % 40)[..., :40], None, 2.0)
    assert cut.loss == pytest.approx(float(expected), rel=1e-6)
    both = evaluate_student(Padded(narrow, 3), Padded(teacher, 3), tokens)  # modules that give logits
    assert both.loss == pytest.approx(evaluate_student(narrow, teacher, tokens).loss, rel=1e-6)


def test_what_can_not_be_evaluated_is_named(teacher, narrow, tokens, tmp_path):
    broken = new_teacher()
    broken.gpt_neox.final_layer_norm.bias.data[0] = torch.nan
    for arguments, options, kind, message in [
        ((narrow, None, tokens), {}, ValueError, "teacher=None must be set"),
        ((3, teacher, tokens), {}, TypeError, "student=3 is a int"),
        ((tmp_path / "none", teacher, tokens), {}, (OSError, ValueError), "student=.*none' can't be loaded"),
        ((torch.nn.Linear(2, 2), teacher, tokens), {}, ValueError, "student=Linear is a Linear, which can't take"),
        ((narrow, teacher, tokens + N_VOCABULARY), {}, ValueError, "outside the teacher's vocabulary"),
        ((narrow, teacher, tokens % 2), {"exclude_tokens": [0, 1]}, ValueError, "leaves no position"),
        ((new_teacher(max_position_embeddings=8), teacher, tokens), {}, ValueError, "the student has 8 positions"),
        ((broken, teacher, tokens), {}, ValueError, "loss is not finite"),
        ((Padded(narrow, 0), teacher, tokens), {"temperature": 0}, ValueError, "temperature=0 must be"),
    ]:
        with pytest.raises(kind, match=message):
            evaluate_student(*arguments, **options)
