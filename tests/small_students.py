"""Small teachers and students for tests."""

import copy

import numpy as np
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from geofloor import DistilledStudent

N_VOCABULARY = 64


def new_teacher(**changes):
    settings = {
        "vocab_size": N_VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,  # smaller weights give flat distributions, with nothing to learn
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(GPTNeoXConfig(**{**settings, **changes})).eval()


SETTINGS = {
    "n_steps": 20,
    "warmup_steps": 3,
    "batch_size": 8,
    "optimizer": "adamw",
    "clip_norm": None,
    "init": "random",
    "eval_every": 5,
    "validation_fraction": 0.1,
    "device": "cpu",
}


def student(teacher, width=8, **changes):
    return DistilledStudent(teacher, width, **{**SETTINGS, "random_state": 0, **changes})


def weights(fitted):
    return {name: value.numpy() for name, value in fitted.model_.state_dict().items()}


def assert_same(a, b):
    for name, value in weights(a).items():
        np.testing.assert_array_equal(value, weights(b)[name], err_msg=name)
    assert a.history_ == b.history_
    assert (a.floor_, a.floor_error_) == (b.floor_, b.floor_error_)


def plain_kl(student, teacher, mask, temperature):
    rows = functional.kl_div(
        torch.log_softmax(student / temperature, -1),
        torch.log_softmax(teacher / temperature, -1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    return rows.mean() if mask is None else rows[mask].mean()


class Padded(torch.nn.Module):
    """Pad the vocabulary of a model with tokens of probability zero."""

    def __init__(self, model, n_padded):
        super().__init__()
        self.model, self.n_padded = model, n_padded

    def forward(self, ids):
        return functional.pad(self.model(ids).logits, (0, self.n_padded), value=-torch.inf)


def curve(*points):
    return [{"step": step, "eval_kl": kl} for step, kl in points]


class StoppedError(Exception):
    pass


class Faraway(torch.Tensor):
    """Tensor that claims to be on a GPU although its numbers are on the CPU, for machines without a GPU."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="cuda:0")
        made.inner = inner
        return made

    def __reduce_ex__(self, protocol):
        raise AssertionError("A tensor on a GPU was pickled.")

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        inner = [each.inner if isinstance(each, cls) else each for each in arguments]
        if function is torch.ops.aten._to_copy.default:
            return inner[0].clone()
        return cls(function(*inner, **(options or {})))


def far_away(module):
    """Copy a module, with tensors that claim to be on a GPU."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, torch.nn.Parameter(Faraway(value.detach()), requires_grad=False))
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, Faraway(value))
    return module


def small_teachers():
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=128))
    yield LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, intermediate_size=80))
    yield GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64))
