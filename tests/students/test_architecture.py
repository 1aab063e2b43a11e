import numpy as np
import pytest
import torch
from small_families import RANDOM, REFUSED, family_model
from small_students import new_teacher, small_teachers
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, PreTrainedModel

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
    assert default_init(family_model(RANDOM["stablelm"])) == "random"
    assert default_init(torch.nn.Linear(2, 2)) == "random"
    assert [default_init(each) for each in (new_teacher(), GPT2LMHeadModel(GPT2Config(n_layer=1)))] == 2 * ["principal"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mixtral", r"is a mixture of experts \(num_local_experts=4\)"),
        ("mamba", "is a state-space, recurrent or convolutional model.*state_size=4"),
        ("bert", "is an encoder, without next-token distributions"),
    ],
)
def test_teachers_without_students_are_refused_before_their_weights_are_read(tokens, tmp_path, name, reason):
    message = f"The teacher is of type '{name}', for which there is no rule: it {reason}.*Give a dense decoder"
    teacher = family_model(REFUSED[name])
    for call in (
        lambda: make_student(teacher, 16),
        lambda: DistilledStudent(teacher, 16).fit(tokens),
        lambda: DistilledStudent(str(tmp_path), 16).fit(tokens),
    ):
        REFUSED[name].save_pretrained(tmp_path)  # no weights
        with pytest.raises(ValueError, match=message):
            call()


def test_a_start_or_a_number_of_heads_that_is_not_there_is_refused_before_training(tokens, tmp_path):
    teacher = family_model(RANDOM["stablelm"])
    with pytest.raises(ValueError, match="init='principal' is not available for a teacher of type 'stablelm'"):
        DistilledStudent(teacher, 16, init="principal").fit(tokens)
    RANDOM["stablelm"].save_pretrained(tmp_path)  # no weights
    for source in (teacher, str(tmp_path)):
        with pytest.raises(ValueError, match="n_heads=3 can't divide width=16"):
            DistilledStudent(source, 16, n_heads=3).fit(tokens)


def test_a_rule_for_a_class_of_models_does_not_need_one_for_their_configurations(tokens, tmp_path):
    teacher = family_model(REFUSED["mamba"])
    teacher.save_pretrained(tmp_path)

    @make_student.register
    def _(teacher: MambaForCausalLM, width, *, init="random", random_state=None, tokens=None):
        config = MambaConfig.from_dict(
            {**teacher.config.to_dict(), "hidden_size": width, "intermediate_size": 2 * width}
        )
        return MambaForCausalLM(config)

    try:
        fitted = DistilledStudent(str(tmp_path), 16, n_steps=2, device="cpu").fit(tokens)
        assert fitted.model_.config.hidden_size == 16
    finally:
        make_student.register(MambaForCausalLM, make_student.dispatch(PreTrainedModel))
