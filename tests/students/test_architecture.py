import argparse
import inspect

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
)

from geofloor._training.devices import one_thread
from geofloor._training.seeds import draw_seed
from geofloor.datasets import load_teacher
from geofloor.language_models import distillation_kl, token_blocks
from geofloor.students import count_parameters, make_student, student_config

PYTHIA_410M = GPTNeoXConfig(
    vocab_size=50304, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 100000},
)
# width, heads, FFN, parameters in millions
TABLE_8 = [(128, 8, 512, 18), (256, 16, 1024, 45), (512, 16, 2048, 127), (768, 16, 3072, 247), (1024, 16, 4096, 405)]


@pytest.fixture(autouse=True, scope="module")
def on_one_thread():
    with one_thread():
        yield


@pytest.mark.parametrize(("width", "heads", "ffn", "millions"), TABLE_8)
def test_table_8(width, heads, ffn, millions):
    config = student_config(PYTHIA_410M, width)
    assert (config.num_hidden_layers, config.vocab_size) == (24, 50304)
    assert (config.num_attention_heads, config.intermediate_size) == (heads, ffn)
    assert config.max_position_embeddings == PYTHIA_410M.max_position_embeddings
    # The table gives whole millions, so for the narrowest (17.64) it is no more exact than 2.8%.
    assert round(count_parameters(config) / 1e6) == millions
    assert count_parameters(config) / 1e6 == pytest.approx(millions, rel=0.0202 if width == 128 else 0.01)


def test_parameters_are_counted_as_they_are_there_and_shared_ones_once():
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=20)
    assert count_parameters(config) == GPT2LMHeadModel(config).num_parameters()


def test_the_teachers_own_width_has_the_teachers_shapes():
    for config in (PYTHIA_410M, SMOLLM2_135M, GPT2Config()):
        assert count_parameters(student_config(config, config.hidden_size)) == count_parameters(config)


@pytest.mark.parametrize(
    ("width", "heads", "key_value_heads", "ffn"),
    [(576, 9, 3, 1536), (288, 9, 3, 768), (192, 6, 2, 512), (64, 4, 2, 171)],
)
def test_llama_keeps_groups_of_queries_and_the_ratio_of_the_feed_forward(width, heads, key_value_heads, ffn):
    config = student_config(SMOLLM2_135M, width)
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, key_value_heads)
    assert (config.head_dim, config.intermediate_size) == (width // heads, ffn)
    assert config.rope_parameters["rope_theta"] == 100000
    assert config.tie_word_embeddings


def test_the_configuration_given_is_left_alone():
    before = SMOLLM2_135M.to_dict()
    student_config(SMOLLM2_135M, 96)
    assert SMOLLM2_135M.to_dict() == before


@pytest.mark.parametrize(
    ("config", "width", "near"),
    [
        (PYTHIA_410M, 131, "130 or 132"),
        (PYTHIA_410M, 1, "2 or"),
        (SMOLLM2_135M, 7, "6 or 8"),
        (GPT2Config(), 131, "130 or 132"),
    ],
)
def test_a_width_that_no_head_count_divides_is_refused_with_one_that_works(config, width, near):
    with pytest.raises(ValueError, match=f"width={width} can't be divided .*use {near}"):
        student_config(config, width)


@pytest.mark.parametrize("n_heads", [1, 4, 16, 32])
def test_heads_can_be_chosen(n_heads):
    assert student_config(PYTHIA_410M, 128, n_heads=n_heads).num_attention_heads == n_heads
    assert student_config(GPT2Config(), 128, n_heads=n_heads).n_head == n_heads


@pytest.mark.parametrize(("n_heads", "key_value_heads"), [(9, 3), (3, 1), (4, 2)])
def test_chosen_heads_share_keys_and_values_in_the_teachers_groups_where_they_can(n_heads, key_value_heads):
    config = student_config(SMOLLM2_135M, 288 if n_heads != 4 else 64, n_heads=n_heads)
    assert (config.num_attention_heads, config.num_key_value_heads) == (n_heads, key_value_heads)
    assert config.head_dim * n_heads == config.hidden_size


@pytest.mark.parametrize(
    ("config", "n_heads", "possible"),
    [
        (PYTHIA_410M, 5, r"\[1, 2, 3, 4, 6, 8, 12\]"),
        (GPT2Config(), 5, r"\[1, .*, 24\]"),
        (SMOLLM2_135M, 24, r"\[1, 2, 3, 4, 6, 12\]"),
    ],
)
def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do(config, n_heads, possible):
    with pytest.raises(ValueError, match=f"n_heads={n_heads} can't divide width=24.*use one of {possible}"):
        student_config(config, 24, n_heads=n_heads)


@pytest.mark.parametrize(
    ("width", "heads", "rotated"),
    [(128, 8, 4), (896, 16, 14), (832, 16, 12), (720, 16, 12), (24, 1, 6), (7, 1, 2), (3, 1, 2)],
)
def test_rotated_dimensions_are_the_teachers_share_of_a_head_to_an_even_number(width, heads, rotated):
    student = student_config(PYTHIA_410M, width)
    with torch.device("meta"):
        attention = GPTNeoXForCausalLM(student).gpt_neox.layers[0].attention
    assert (student.num_attention_heads, attention.rotary_ndims) == (heads, rotated)


@pytest.mark.parametrize("width", [0, -8, 8.0, True, "8"])
def test_a_width_that_is_no_positive_integer_is_refused(width):
    with pytest.raises(ValueError, match="width="):
        student_config(PYTHIA_410M, width)


def test_other_types_are_refused_until_they_are_registered():
    with pytest.raises(ValueError, match="'opt', for which there is no rule.*register"):
        student_config(OPTConfig(), 64)

    @student_config.register
    def _(config: MistralConfig, width):
        return MistralConfig(**{**config.to_dict(), "hidden_size": width})

    assert student_config(MistralConfig(), 64).hidden_size == 64


def small_teachers():
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=128))
    yield LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, intermediate_size=80))
    yield GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64))


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


def test_what_has_no_rule_is_refused_until_it_is_registered():
    class Table(torch.nn.Module):
        pass

    with pytest.raises(ValueError, match="teacher is a Table.*make_student.register"):
        make_student(Table(), 8)

    @make_student.register
    def _(teacher: Table, width, *, init="random", random_state=None, tokens=None):
        return torch.nn.Embedding(5, width)

    assert make_student(Table(), 8).embedding_dim == 8


def test_tokens_of_a_principal_start_are_checked():
    teacher = next(small_teachers())
    for tokens, message in (
        (np.full((2, 5), 40), "tokens holds the token id 40, outside the teacher's vocabulary of 0 to 39"),
        (-np.ones((2, 5), dtype=int), "tokens holds the token id -1"),
        (np.zeros((2, 5)), "tokens has dtype float64"),
        (np.ma.masked_equal(np.arange(10).reshape(2, 5), 3), "tokens is a masked array"),
        (np.zeros((2, 4000), dtype=int), "tokens has sequences of 4000 tokens, and the teacher has 2048"),
        (None, "needs tokens of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            make_student(teacher, 16, init="principal", tokens=tokens)


def test_small_integers_of_numpy_do_not_wrap_in_sizes():
    teacher = next(small_teachers())
    small = make_student(teacher, np.int8(32), n_heads=np.int8(2), random_state=0)
    assert small.config.intermediate_size == 128
    assert small.config.to_dict() == make_student(teacher, 32, n_heads=2, random_state=0).config.to_dict()


def test_an_unknown_start_is_refused():
    llama = list(small_teachers())[1]
    with pytest.raises(ValueError, match="init='orthogonal' is unknown; use one of"):
        make_student(llama, 16, init="orthogonal")


def test_a_type_without_a_projection_is_refused():
    @student_config.register
    def _(config: MistralConfig, width):
        return MistralConfig(**{**config.to_dict(), "hidden_size": width})

    mistral = MistralForCausalLM(MistralConfig(**LLAMA))
    with pytest.raises(ValueError, match="init='principal' is not there for a teacher of type 'mistral'.*'llama'"):
        make_student(mistral, 16, init="principal", tokens=np.zeros((2, 4), int))


SIZES = {"vocab_size": 40, "initializer_range": 0.3}
# Normalisations add their epsilon to other variances in fewer dimensions, so here it is next to nothing.
NEOX = {**SIZES, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
LLAMA = {**NEOX, "rms_norm_eps": 1e-12, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160}
GPT2 = {**SIZES, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32, "layer_norm_epsilon": 1e-12}
SPREAD = {
    "gpt_neox": GPTNeoXConfig(**NEOX, layer_norm_eps=1e-12),
    "gpt_neox, sequential": GPTNeoXConfig(**NEOX, use_parallel_residual=False, layer_norm_eps=1e-12),
    "gpt_neox, tied": GPTNeoXConfig(**NEOX, tie_word_embeddings=True, layer_norm_eps=1e-12),
    "llama": LlamaConfig(**LLAMA),
    "llama, biases": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "llama, one group": LlamaConfig(**{**LLAMA, "num_key_value_heads": 1}),
    "llama, tied": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "gpt2": GPT2Config(**GPT2),
    "gpt2, untied": GPT2Config(**GPT2, n_inner=100, tie_word_embeddings=False),  # fewer units than the student has
}


def spread_teacher(config):
    """An untrained teacher whose gains and biases do something, too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in teacher.named_parameters():
            if parameter.ndim == 1:
                gain = "weight" in name
                torch.nn.init.normal_(parameter, mean=float(gain), std=0.3)
    return teacher


def logits_of(tokens, *models):
    with torch.no_grad():
        return [model(torch.from_numpy(tokens)).logits for model in models]


@pytest.mark.parametrize("name", SPREAD)
def test_a_projection_on_all_principal_directions_is_the_teacher(rng, name):
    teacher = spread_teacher(SPREAD[name])
    tokens = rng.integers(40, size=(20, 15))
    student = make_student(teacher, 64, init="principal", random_state=0, tokens=tokens)
    expected, found = logits_of(tokens, teacher, student)
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def onto_a_plane(config, parameters):
    """Let a teacher's stream have so few dimensions that a student of half its width holds them."""
    # The student of a teacher whose normalisation takes out the mean direction keeps that for itself.
    plane = torch.randn(64, 32 if config.model_type == "llama" else 24, generator=torch.Generator().manual_seed(0))
    plane = torch.linalg.qr(plane)[0]
    if config.model_type != "llama":
        plane = torch.linalg.qr(plane - plane.mean(0))[0]
    onto = plane @ plane.T
    written = ("dense_4h_to_h", "attention.dense", "o_proj", "down_proj", "c_proj")
    for name, parameter in parameters.items():
        if "embed" in name or "wte" in name or "wpe" in name or ("c_proj" in name and parameter.ndim == 2):
            parameter.copy_(parameter @ onto)
        elif any(each in name for each in written):
            parameter.copy_(onto @ parameter)


@pytest.mark.parametrize("name", SPREAD)
def test_a_teacher_that_uses_half_of_its_dimensions_is_projected_on_them_without_loss(rng, name):
    config = SPREAD[name]
    teacher = spread_teacher(config)
    parameters = dict(teacher.named_parameters())
    with torch.no_grad():
        onto_a_plane(config, parameters)
        for key, parameter in parameters.items():
            # Heads of GPT-NeoX have 32 dimensions, 8 of them rotated, and of GPT-2 32; their student's have 16.
            if "query_key_value" in key:
                queries_keys_values = parameter.view(2, 3, 32, -1)
                queries_keys_values[:, 0, :8] = 0.0  # rotated dimensions have other frequencies in the student
                queries_keys_values[:, 1, 18:] = 0.0
            elif "attention.dense.weight" in key:
                parameter.view(64, 2, 32)[:, :, 14:] = 0.0
            elif "c_attn" in key:
                parameter.view(-1, 3, 2, 32)[:, 1, :, 16:] = 0.0
            elif "attn.c_proj.weight" in key:
                parameter.view(2, 32, 64)[:, 14:] = 0.0
            elif "o_proj.weight" in key:
                parameter[:, :32] = 0.0  # one of two groups of heads
            elif "down_proj.weight" in key:
                parameter[:, 80:] = 0.0
            elif "dense_4h_to_h.weight" in key:
                parameter[:, 120:] = 0.0
            elif "mlp.c_proj.weight" in key:
                parameter[120:] = 0.0
            elif key.endswith(("final_layer_norm.bias", "ln_f.bias")):
                parameter.zero_()
            elif key.endswith(("final_layer_norm.weight", "ln_f.weight", "model.norm.weight")) and (
                config.tie_word_embeddings
            ):
                parameter.fill_(1.5)  # an unembedding that is the embedding can hold no other gain
    tokens = rng.integers(40, size=(20, 15))
    student = make_student(teacher, 32, init="principal", random_state=0, tokens=tokens)
    assert student.config.hidden_size == 32
    expected, found = logits_of(tokens, teacher, student)
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_what_a_student_has_and_its_teacher_lacks_can_learn(rng):
    teacher = spread_teacher(GPTNeoXConfig(**{**NEOX, "num_attention_heads": 4, "intermediate_size": 60}))
    tokens = rng.integers(40, size=(20, 15))
    student = make_student(teacher, 24, init="principal", random_state=0, tokens=tokens)  # a head of 24, and 96 units
    student(torch.from_numpy(tokens), labels=torch.from_numpy(tokens)).loss.backward()
    for layer in student.gpt_neox.layers:
        queries, keys, values = layer.attention.query_key_value.weight.grad.abs().sum(dim=1).view(3, 24) > 0
        assert (queries | keys).all()
        assert (values | (layer.attention.dense.weight.grad.abs().sum(dim=0) > 0)).all()
        assert (layer.mlp.dense_4h_to_h.weight.grad.abs().sum(dim=0) > 0).all()


def test_a_projection_starts_nearer_to_a_trained_teacher_than_chance(rng):
    teacher = load_teacher()
    tokens = token_blocks([inspect.getsource(argparse)], teacher.tokenizer, length=64, max_blocks=40)
    ids = torch.from_numpy(tokens[-8:])
    kl = {}
    with torch.no_grad():
        for width in (32, 64, 96):
            for init in ("principal", "random"):
                student = make_student(teacher.model, width, init=init, random_state=0, tokens=tokens[:-8])
                kl[init, width] = float(distillation_kl(student(ids).logits, teacher.model(ids).logits))
    assert kl["principal", 96] < kl["principal", 64] < kl["principal", 32] < kl["random", 32]
    assert kl["principal", 64] < 0.6 * kl["random", 64]


@pytest.mark.parametrize(
    ("changes", "width", "tokens", "message"),
    [
        ({"attention_bias": False}, 16, np.zeros((2, 4), int), "needs biases in the attention"),
        ({}, 128, np.zeros((2, 4), int), "width=128 exceeds"),
        ({}, 16, None, "needs tokens"),
    ],
)
def test_what_can_not_be_projected_is_refused(changes, width, tokens, message):
    with pytest.raises(ValueError, match=message):
        make_student(spread_teacher(GPTNeoXConfig(**NEOX, **changes)), width, init="principal", tokens=tokens)
