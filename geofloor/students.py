"""A narrower copy of a teacher, by the type of the teacher: Table 8's rule."""

from __future__ import annotations

import functools
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from geofloor._training.seeds import draw_seed
from geofloor.toy import ToyModel

_FFN_RATIO = 4  # Table 8: FFN = 4d
_SMALLEST_HEAD = 16  # Table 8 keeps the teacher's number of heads down to heads of this size
_INITS = ("random", "principal")
_PRINCIPAL_TOKENS = 16_384  # residual vectors a block that principal directions are taken from


@functools.singledispatch
def student_config(config: Any, width: int) -> Any:
    """Configuration of a student: the teacher's, but for its width and what follows from it.

    Depth, vocabulary, positions and all else stay the teacher's (Table 8 of [1]_).

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of a ``transformers`` teacher: GPT-NeoX (Pythia), Llama (SmolLM2) or GPT-2. For
        others register a function: see Examples.
    width : int
        Dimensions d of the student's residual stream.

    Returns
    -------
    config : PreTrainedConfig
        A new configuration of the same class.

    Raises
    ------
    ValueError
        If there is no rule for this class of configuration, or no number of heads divides `width`.

    Notes
    -----
    *Heads.* As many as the teacher has, or the largest number below it that divides the width into heads
    of at least 16 dimensions (or of the teacher's size, if that is smaller), and at most twice the
    teacher's; of a narrower width one head is made. For Pythia-410M's 16 heads of 64 this gives the 8, 16,
    16, 16 and 16 of Table 8. Dimensions that are rotated are an even number. Where several queries share
    keys and values, numbers of heads that keep the size of the teacher's groups go first.

    *Feed-forward.* 4d for GPT-NeoX and GPT-2. Llama's has three matrices, not two, and the ratio of the
    teacher is kept, so that the student of the teacher's own width has the teacher's architecture, as
    in Table 8.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.

    Examples
    --------
    >>> from transformers import GPTNeoXConfig, MistralConfig
    >>> from geofloor.students import student_config
    >>> pythia_410m = GPTNeoXConfig(
    ...     vocab_size=50304, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ... )
    >>> student = student_config(pythia_410m, 128)
    >>> student.num_hidden_layers, student.num_attention_heads, student.intermediate_size
    (24, 8, 512)

    Another type is added by its configuration's class:

    >>> @student_config.register
    ... def _(config: MistralConfig, width):
    ...     return MistralConfig(**{**config.to_dict(), "hidden_size": width, "intermediate_size": 4 * width})
    """
    kind = getattr(config, "model_type", type(config).__name__)
    raise ValueError(
        f"config is of type {kind!r}, for which there is no rule; register a function of (config, width) for "
        f"{type(config).__name__} with geofloor.students.student_config.register."
    )


@student_config.register
def _(config: GPTNeoXConfig, width: int) -> GPTNeoXConfig:
    rotary = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    n_heads, _ = _heads(width, config.num_attention_heads, config.hidden_size, rotary=rotary)
    return _changed(
        config, hidden_size=int(width), num_attention_heads=n_heads, intermediate_size=_FFN_RATIO * int(width)
    )


@student_config.register
def _(config: GPT2Config, width: int) -> GPT2Config:
    n_heads, _ = _heads(width, config.n_head, config.n_embd)
    return _changed(config, n_embd=int(width), n_head=n_heads, n_inner=_FFN_RATIO * int(width))


@student_config.register
def _(config: LlamaConfig, width: int) -> LlamaConfig:
    rotary = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    n_heads, n_key_value_heads = _heads(
        width,
        config.num_attention_heads,
        config.num_attention_heads * config.head_dim,
        n_key_value_heads=config.num_key_value_heads,
        rotary=rotary,
    )
    return _changed(
        config,
        hidden_size=int(width),
        num_attention_heads=n_heads,
        num_key_value_heads=n_key_value_heads,
        head_dim=int(width) // n_heads,
        intermediate_size=max(round(config.intermediate_size / config.hidden_size * int(width)), 1),
    )


def _changed(config: Any, **changes: Any) -> Any:
    return type(config).from_dict({**config.to_dict(), "dtype": "float32", **changes})


def _heads(
    width: int, n_heads: int, teacher_width: int, *, n_key_value_heads: int | None = None, rotary: float | None = None
) -> tuple[int, int]:
    """Numbers of query heads and of key and value heads of a student; an error names widths that work."""
    if isinstance(width, bool) or not isinstance(width, Integral) or width < 1:
        raise ValueError(f"width={width!r} must be an integer of at least 1.")
    head_size = teacher_width // n_heads
    group = n_heads // (n_key_value_heads or n_heads)

    def fitting(width: int) -> list[int]:
        return [n for n in range(1, n_heads + 1) if width % n == 0 and _head_works(width // n, n, head_size, rotary)]

    width = int(width)
    found = fitting(width)
    if not found:
        near = [w for distance in range(1, 129) for w in (width - distance, width + distance) if w > 0 and fitting(w)]
        even = "" if rotary is None else ", with an even number of rotated dimensions each"
        raise ValueError(
            f"width={width} can't be divided into at most {n_heads} heads of {min(_SMALLEST_HEAD, head_size)} to "
            f"{2 * head_size} dimensions{even}; use {' or '.join(map(str, sorted(near[:2])))}."
        )
    n = max(found, key=lambda n: (n % group == 0, n))
    if n % group == 0:
        return n, n // group
    return n, max(k for k in range(1, n + 1) if n % k == 0 and k <= (n_key_value_heads or n))


def _head_works(size: int, n_heads: int, teacher_size: int, rotary: float | None) -> bool:
    if rotary is not None:
        rotated = int(size * rotary)
        if rotated < 2 or rotated % 2:
            return False
    return (size >= min(_SMALLEST_HEAD, teacher_size) or n_heads == 1) and size <= 2 * teacher_size


def count_parameters(config: PreTrainedConfig) -> int:
    """Number of parameters of the causal language model of a configuration; none are allocated.

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of ``transformers``.

    Returns
    -------
    n_parameters : int
        Shared ones are counted once.

    Examples
    --------
    >>> from transformers import GPTNeoXConfig
    >>> from geofloor.students import count_parameters, student_config
    >>> pythia_410m = GPTNeoXConfig(
    ...     vocab_size=50304, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ... )
    >>> [round(count_parameters(student_config(pythia_410m, width)) / 1e6) for width in (128, 256, 512, 768, 1024)]
    [18, 45, 127, 247, 405]
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@functools.singledispatch
def make_student(
    teacher: Any,
    width: int,
    *,
    init: str = "random",
    random_state: int | np.random.RandomState | None = None,
    tokens: Any = None,
) -> Any:
    """Make an untrained student of a teacher.

    Parameters
    ----------
    teacher : PreTrainedModel or ToyModel
        A causal language model of ``transformers``, or a toy model. For other classes register a function of
        these parameters with ``make_student.register``; it returns a torch module that gives logits.
    width : int
        Dimensions d of the student's residual stream, or hidden dimensions of a toy model.
    init : {"random", "principal"}, default="random"
        ``"random"``: as the teacher's class starts its weights, which is the paper's way.
        ``"principal"``: the teacher's weights, projected on the principal directions of its residual
        stream; for GPT-NeoX.
    random_state : int, RandomState or None, default=None
        Seed of the random weights. Global seeds are neither used nor changed.
    tokens : int array of shape (n_sequences, seq_len), default=None
        Text that ``"principal"`` measures the residual stream on.

    Returns
    -------
    student : PreTrainedModel or ToyModel
        On the CPU, in float32; a toy model is not fitted.

    Raises
    ------
    ValueError
        If there is no rule for the teacher, or a parameter is out of its range.

    See Also
    --------
    student_config : The rule.
    geofloor.DistilledStudent : Trains the student.

    Examples
    --------
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.students import make_student
    >>> student = make_student(load_teacher().model, 64, random_state=0)
    >>> student.config.hidden_size, student.config.num_attention_heads, student.num_parameters()
    (64, 4, 462208)
    """
    raise ValueError(
        f"teacher is a {type(teacher).__name__}, for which there is no way to make a student; give a transformers "
        f"model or a ToyModel, or register a function for {type(teacher).__name__} with "
        "geofloor.students.make_student.register."
    )


@make_student.register
def _(
    teacher: ToyModel,
    width: int,
    *,
    init: str = "random",
    random_state: int | np.random.RandomState | None = None,
    tokens: Any = None,
) -> ToyModel:
    if init != "random":
        raise ValueError(f"init={init!r} is not there for a ToyModel; use init='random'.")
    check_is_fitted(teacher)
    return clone(teacher).set_params(n_hidden=width, random_state=random_state)


@make_student.register
def _(
    teacher: PreTrainedModel,
    width: int,
    *,
    init: str = "random",
    random_state: int | np.random.RandomState | None = None,
    tokens: Any = None,
) -> PreTrainedModel:
    if init not in _INITS:
        raise ValueError(f"init={init!r} must be one of {_INITS}.")
    config = student_config(teacher.config, width)
    if init == "principal" and not isinstance(teacher.config, GPTNeoXConfig):
        raise ValueError(
            f"init='principal' is not there for a teacher of type {teacher.config.model_type!r}, only for 'gpt_neox'; "
            "use init='random'."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(random_state))
        student = type(teacher)(config).eval()
    if init == "principal":
        _check_projectable(teacher, width, tokens)
        with torch.no_grad():
            _project_gpt_neox(teacher, student, np.asarray(tokens, dtype=np.int64))
    return student


# A GPT-NeoX teacher projected on the principal directions of its residual stream


def _check_projectable(teacher: Any, width: int, tokens: Any) -> None:
    config = teacher.config
    if not hasattr(teacher, "gpt_neox") or not config.attention_bias or config.tie_word_embeddings:
        raise ValueError(
            "init='principal' needs a GPTNeoXForCausalLM with biases in its attention and an unembedding of its own; "
            "use init='random'."
        )
    if width > config.hidden_size:
        raise ValueError(
            f"width={width} exceeds the teacher's {config.hidden_size} dimensions, of which init='principal' keeps "
            "some; use init='random'."
        )
    if tokens is None or np.ndim(tokens) != 2 or not np.size(tokens):
        raise ValueError("init='principal' needs tokens of shape (n_sequences, seq_len) to measure the teacher on.")


class _Moments:
    """Second moments of what goes into a module, summed over positions while its hook is there."""

    def __init__(self, module: torch.nn.Module, full: bool) -> None:
        self.full = full
        self.n = 0
        self.total: Any = 0.0
        self._handle = module.register_forward_pre_hook(self._add)

    def _add(self, module: torch.nn.Module, inputs: Any) -> None:
        rows = inputs[0].detach().flatten(0, -2).cpu().double()
        self.n += len(rows)
        if self.full:
            rows = rows - rows.mean(dim=1, keepdim=True)  # as the normalisation does
            self.total = self.total + rows.T @ rows
        else:
            self.total = self.total + rows.square().sum(dim=0)

    def mean(self) -> torch.Tensor:
        return self.total / self.n

    def remove(self) -> None:
        self._handle.remove()


def _project_gpt_neox(teacher: Any, student: Any, tokens: np.ndarray) -> None:
    """Set the student's weights, in place, to the teacher's seen through its principal directions.

    Every reader of the residual stream normalises it first, which takes out its mean over dimensions. So
    the stream may be centred, and the student keeps its mean direction for that: the other width − 1 carry the
    teacher's principal directions. Gains and biases of normalisations go into the weights that follow.
    Of feed-forward units and heads those are kept that write most; within heads, products of queries with
    keys and of outputs with values are cut to their largest singular values, and rotated dimensions
    are matched by frequency. At the teacher's own width this is the teacher.
    """
    base, narrow = teacher.gpt_neox, student.gpt_neox
    layers = list(base.layers)
    streams = [_Moments(module, full=True) for module in (*(x.input_layernorm for x in layers), base.final_layer_norm)]
    units = [_Moments(layer.mlp.dense_4h_to_h, full=False) for layer in layers]
    heads = [_Moments(layer.attention.dense, full=False) for layer in layers]
    n_sequences = max(_PRINCIPAL_TOKENS // tokens.shape[1], 1)
    try:
        for part in np.array_split(tokens[:n_sequences], max(min(n_sequences, len(tokens)) // 8, 1)):
            base(torch.from_numpy(part).to(teacher.device), use_cache=False)
    finally:
        for moments in (*streams, *units, *heads):
            moments.remove()
    covariance = torch.stack([moments.mean() for moments in streams])
    # Every normalisation divides by the norm, so that streams count alike.
    covariance /= covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    basis = _basis(covariance.sum(dim=0), narrow.embed_in.embedding_dim)
    read = basis * (basis.shape[0] / basis.shape[1]) ** 0.5  # what a normalised stream of the student is multiplied by

    def centred(weight: torch.Tensor) -> torch.Tensor:
        """What is written, (d_teacher, ...) to (d_student, ...)."""
        return basis.T @ (weight - weight.mean(dim=0, keepdim=True))

    def seen(linear: torch.nn.Linear, norm: torch.nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of a reader with its normalisation inside."""
        weight = _double(linear.weight)
        return (weight * _double(norm.weight)) @ read, _double(linear.bias) + weight @ _double(norm.bias)

    narrow.embed_in.weight.copy_(centred(_double(base.embed_in.weight).T).T)
    for layer, new, unit_moments, head_moments in zip(layers, narrow.layers, units, heads, strict=True):
        weight, bias = seen(layer.mlp.dense_h_to_4h, layer.post_attention_layernorm)
        out = centred(_double(layer.mlp.dense_4h_to_h.weight))
        kept = _largest(unit_moments.mean() * out.square().sum(dim=0), len(new.mlp.dense_h_to_4h.bias))
        n = len(kept)
        new.mlp.dense_h_to_4h.weight[:n] = weight[kept].float()
        new.mlp.dense_h_to_4h.bias[:n] = bias[kept].float()
        new.mlp.dense_4h_to_h.weight[:, :n] = out[:, kept].float()
        new.mlp.dense_4h_to_h.bias.copy_(centred(_double(layer.mlp.dense_4h_to_h.bias)[:, None])[:, 0])
        _project_attention(
            layer.attention,
            new.attention,
            *seen(layer.attention.query_key_value, layer.input_layernorm),
            centred(_double(layer.attention.dense.weight)),
            centred(_double(layer.attention.dense.bias)[:, None])[:, 0],
            head_moments.mean(),
        )
    norm, unembedding = base.final_layer_norm, _double(teacher.lm_head.weight)
    projected = (unembedding * _double(norm.weight)) @ read
    student.lm_head.weight.copy_(projected)
    # The unembedding has no bias, so what the normalisation's bias does to logits is fitted by another.
    narrow.final_layer_norm.bias.copy_(
        torch.linalg.lstsq(projected, (unembedding @ _double(norm.bias))[:, None], driver="gelsd").solution[:, 0]
    )


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()


def _basis(covariance: torch.Tensor, width: int) -> torch.Tensor:
    """Orthonormal columns (d_teacher, width): the mean direction for itself, principal ones for the rest."""
    n = len(covariance)
    ones = torch.full((n, 1), n**-0.5, dtype=covariance.dtype)
    # The mean direction has no variance; it must come last among directions without any, too.
    below = covariance - (covariance.diagonal().sum() + 1.0) * ones @ ones.T
    directions = torch.linalg.eigh(below).eigenvectors.flip(1)[:, : width - 1]
    own = torch.full((width, 1), width**-0.5, dtype=covariance.dtype)
    complement = torch.linalg.qr(torch.cat([own, torch.eye(width, dtype=own.dtype)[:, : width - 1]], dim=1))[0][:, 1:]
    return directions @ complement.T + ones @ own.T


def _largest(values: torch.Tensor, n: int) -> torch.Tensor:
    """Positions of the n largest values, in order of position."""
    return torch.sort(torch.argsort(values, descending=True, stable=True)[:n])[0]


def _project_attention(
    old: Any, new: Any, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, out_bias: torch.Tensor,
    moments: torch.Tensor,
) -> None:  # fmt: skip
    """Set the attention of a student's layer: `weight` and `out` read and write the student's stream already."""
    size, new_size = old.head_size, new.head_size
    n_heads, n_new = len(moments) // size, new.config.num_attention_heads
    strength = (moments * out.square().sum(dim=0)).view(n_heads, size).sum(dim=1)
    weights, biases, outs = weight.view(n_heads, 3, size, -1), bias.view(n_heads, 3, size), out.view(-1, n_heads, size)
    # Attention sums to one, so that a value's bias is a constant, of heads that are left out as well.
    new.dense.bias.copy_(out_bias + torch.einsum("dhs,hs->d", outs, biases[:, 2]))
    rotated, new_rotated = old.rotary_ndims, new.rotary_ndims
    pairs = _matched_frequencies(rotated // 2, new_rotated // 2)
    target = torch.zeros(n_new, 3, new_size, weight.shape[1], dtype=weight.dtype)
    target_bias = torch.zeros(n_new, 3, new_size, dtype=weight.dtype)
    target_out = torch.zeros(out.shape[0], n_new, new_size, dtype=weight.dtype)
    for place, head in enumerate(_largest(strength, n_new).tolist()):
        both = torch.cat([weights[head, :2], biases[head, :2, :, None]], dim=2)  # queries and keys of (x, 1)
        found = torch.zeros(2, new_size, both.shape[2], dtype=both.dtype)
        for i, k in pairs:
            for half, new_half in ((0, 0), (rotated // 2, new_rotated // 2)):
                found[:, i + new_half] = both[:, k + half]
        queries, keys = _cut(both[0, rotated:].T, both[1, rotated:].T, new_size - new_rotated)
        found[0, new_rotated : new_rotated + queries.shape[1]] = queries.T
        found[1, new_rotated : new_rotated + keys.shape[1]] = keys.T
        found[0] *= (new_size / size) ** 0.5  # scores are divided by the root of the size
        target[place, :2], target_bias[place, :2] = found[:, :, :-1], found[:, :, -1]
        written, values = _cut(outs[:, head], weights[head, 2].T, new_size)
        target_out[:, place, : written.shape[1]] = written
        target[place, 2, : values.shape[1]] = values.T
    new.query_key_value.weight.copy_(target.view(new.query_key_value.weight.shape))
    new.query_key_value.bias.copy_(target_bias.flatten())
    new.dense.weight.copy_(target_out.flatten(1))


def _matched_frequencies(n_old: int, n_new: int) -> list[tuple[int, int]]:
    """For pairs of rotated dimensions of the student those of the teacher nearest in frequency, each used once."""
    matched: dict[int, int] = {}
    for i in range(n_new):
        k = min(round(i * n_old / n_new), n_old - 1)
        matched.setdefault(k, i)
    return [(i, k) for k, i in matched.items()]


def _cut(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The product a bᵀ of tall matrices at a lower rank, its singular values shared between the factors."""
    (q_a, r_a), (q_b, r_b) = torch.linalg.qr(a), torch.linalg.qr(b)
    u, values, vt = torch.linalg.svd(r_a @ r_b.T)
    root = values[:rank].sqrt()
    return q_a @ u[:, :rank] * root, q_b @ vt[:rank].T * root
