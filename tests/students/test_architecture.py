import numpy as np
import pytest
import torch
from small_students import new_teacher, small_teachers
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from geofloor import DistilledStudent
from geofloor._training.seeds import draw_seed
from geofloor.students import count_parameters, make_student
from geofloor.students._architecture import default_init

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


def test_parameters_are_counted_as_they_are_there_and_shared_ones_once():
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=20)
    assert count_parameters(config) == GPT2LMHeadModel(config).num_parameters()


@pytest.mark.parametrize("teacher", list(small_teachers()), ids=lambda teacher: teacher.config.model_type)
def test_a_student_runs_and_its_seed_is_its_own(teacher):
    state = torch.get_rng_state()
    students = [make_student(teacher, 16, random_state=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(0))
        weights = list(type(teacher)(students[0].config).state_dict().values())
    assert all(map(torch.equal, students[0].state_dict().values(), weights))
    logits = [student(torch.arange(10)[None]).logits for student in students]
    assert logits[0].shape == (1, 10, 40)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert type(students[0]) is type(teacher)
    assert students[0].num_parameters() == count_parameters(students[0].config)


def test_teachers_without_a_rule_are_refused_until_registered():
    class Table(torch.nn.Module):
        pass

    with pytest.raises(ValueError, match="teacher is a Table.*make_student.register"):
        make_student(Table(), 8)

    @make_student.register
    def _(teacher: Table, width, *, init="random", random_state=None, tokens=None):
        return torch.nn.Embedding(5, width)

    assert make_student(Table(), 8).embedding_dim == 8


def test_small_integers_of_numpy_do_not_wrap_in_sizes():
    teacher = next(small_teachers())
    small = make_student(teacher, np.int8(32), n_heads=np.int8(2), random_state=0)
    assert small.config.intermediate_size == 128
    assert small.config.to_dict() == make_student(teacher, 32, n_heads=2, random_state=0).config.to_dict()


def test_an_unknown_start_is_refused():
    llama = list(small_teachers())[1]
    with pytest.raises(ValueError, match="init='orthogonal' is unknown; use one of"):
        make_student(llama, 16, init="orthogonal")


def test_students_start_at_random_where_the_family_has_no_other_start(tokens):
    no_biases = new_teacher(attention_bias=False)
    assert DistilledStudent(no_biases, 8, n_steps=2, device="cpu").fit(tokens).init_ == "random"
    qwen = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    assert default_init(qwen) == "random"
    assert default_init(torch.nn.Linear(2, 2)) == "random"
    assert [default_init(each) for each in (new_teacher(), GPT2LMHeadModel(GPT2Config(n_layer=1)))] == 2 * ["principal"]
