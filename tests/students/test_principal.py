import argparse
import inspect

import numpy as np
import pytest
import torch
from small_families import RANDOM, family_model
from small_students import small_teachers
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from geofloor.datasets import load_teacher
from geofloor.language_models import distillation_kl, token_blocks
from geofloor.students import make_student


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


def test_a_type_without_a_projection_is_refused():
    teacher = family_model(RANDOM["stablelm"])
    message = "init='principal' is not available for a teacher of type 'stablelm', only for 'gemma', .*'smollm3'"
    with pytest.raises(ValueError, match=message):
        make_student(teacher, 16, init="principal", tokens=np.zeros((2, 4), int))


SIZES = {"vocab_size": 40, "initializer_range": 0.3}


# A normalization's epsilon has another effect in fewer dimensions, so make it negligible.
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
    """Make an untrained teacher with random gains and biases."""
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
    """Restrict a teacher's stream to few enough dimensions for a student of half its width."""
    # If normalization subtracts the mean, the student reserves its mean direction.
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
                queries_keys_values[:, 0, :8] = 0.0  # the student rotates at other frequencies
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


def test_heads_of_the_teachers_size_lose_nothing_in_a_narrower_stream(rng):
    teacher = spread_teacher(SPREAD["llama"])
    config = teacher.config
    with torch.no_grad():
        parameters = dict(teacher.named_parameters())
        onto_a_plane(config, parameters)
        for key, parameter in parameters.items():
            if "down_proj.weight" in key:
                parameter[:, 80:] = 0.0
    tokens = rng.integers(40, size=(20, 15))

    def gap(**heads):
        student = make_student(teacher, 32, init="principal", random_state=0, tokens=tokens, **heads)
        expected, found = logits_of(tokens, teacher, student)
        return float((found - expected).abs().max())

    assert gap(head_dim=config.head_dim) < 5e-4
    assert gap() > 0.1  # heads of half the size rotate at other frequencies


def test_parameters_beyond_the_teachers_can_learn(rng):
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
                kl[init, width] = float(distillation_kl(student=student(ids).logits, teacher=teacher.model(ids).logits))
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
def test_teachers_that_can_not_be_projected_are_refused(changes, width, tokens, message):
    with pytest.raises(ValueError, match=message):
        make_student(spread_teacher(GPTNeoXConfig(**NEOX, **changes)), width, init="principal", tokens=tokens)
