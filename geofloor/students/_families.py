"""Sizes of a student: its configuration, derived from its teacher's.

A family takes part by the class of its configuration. One rule serves every decoder with the usual fields; register a
function with `student_config` for another rule.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from geofloor._validation import check_number
from geofloor.students._heads import choose_heads, keep_head_size, rotated_dimensions
from geofloor.students._refusals import check_has_students

_FFN_RATIO = 4  # Table 8: FFN = 4d
_FEED_FORWARD = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "ff_dim", "dff")
# These normalize queries and keys over the dimensions of heads, which must then stay the teacher's.
_HEAD_NORMS = frozenset({"gemma3_text", "olmo2", "qwen3"})


@functools.singledispatch
def student_config(config: Any, width: int, *, n_heads: int | None = None, head_dim: int | None = None) -> Any:
    """Derive a student's configuration from its teacher's.

    Width, heads and feed-forward units change. Depth, vocabulary, positions and everything else stay the teacher's
    (Table 8 of [1]_).

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of a decoder of ``transformers`` with the usual fields: ``hidden_size``, ``num_attention_heads``
        and, where they are there, ``num_key_value_heads``, ``head_dim`` and ``intermediate_size``, or their other
        names. For other classes register a function: see Examples.
    width : int
        Dimensions d of the student's residual stream.
    n_heads : int or None, default=None
        Attention heads of the student. They must divide `width`. By default the rule of Table 8 chooses them.
    head_dim : int or None, default=None
        Dimensions of each head, for configurations that have this field. With it, the student has the teacher's number
        of heads unless `n_heads` is given. By default the rule below chooses the size.

    Returns
    -------
    config : PreTrainedConfig
        A new configuration of the same class.

    Raises
    ------
    ValueError
        If the model is a mixture of experts, a state-space model or an encoder, if its configuration lacks the usual
        fields, or if no number of heads (or not `n_heads`) divides `width`.

    Notes
    -----
    *Heads.* The student has as many heads as the teacher, or the largest smaller number that fits. A number fits if it
    divides the width into heads of at least 16 dimensions (or of the teacher's head size, if that is smaller) and at
    most twice the teacher's head size. Narrower widths have one head. For Pythia-410M's 16 heads of 64 dimensions this
    gives the 8, 16, 16, 16 and 16 heads of Table 8. If the teacher rotates a share of each head, the student rotates
    the same share, rounded to an even number of dimensions. If several queries share keys and values, the rule prefers
    numbers of heads that keep the size of the teacher's groups.

    Some heads keep the teacher's size, and their number falls with the width instead. These are heads with normalized
    queries and keys (Qwen3, Gemma 3, OLMo 2), heads whose sizes do not add up to the teacher's width (most of Gemma),
    and those with a rotary factor per dimension (long contexts).

    *Feed-forward.* GPT-NeoX and GPT-2 have 4d units. All others keep the teacher's ratio of units to width. At the
    teacher's own width the student has the teacher's architecture, as in Table 8.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.

    Examples
    --------
    >>> from transformers import GPTNeoXConfig, PreTrainedConfig
    >>> from geofloor.students import student_config
    >>> pythia_410m = GPTNeoXConfig(
    ...     vocab_size=50304, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ... )
    >>> student = student_config(pythia_410m, 128)
    >>> student.num_hidden_layers, student.num_attention_heads, student.intermediate_size
    (24, 8, 512)

    Add another rule by the class of the configuration:

    >>> class MyConfig(PreTrainedConfig):
    ...     model_type = "mine"
    ...
    >>> @student_config.register
    ... def _(config: MyConfig, width, *, n_heads=None):
    ...     return MyConfig(**{**config.to_dict(), "units": width})
    ...
    >>> student_config(MyConfig(units=64), 32).units
    32
    """
    raise ValueError(
        f"config is a {type(config).__name__}, for which there is no rule; register a function of (config, width, *, "
        f"n_heads) for {type(config).__name__} with geofloor.students.student_config.register."
    )


# Any decoder


@student_config.register
def _(
    config: PreTrainedConfig, width: int, *, n_heads: int | None = None, head_dim: int | None = None
) -> PreTrainedConfig:
    check_has_students(config)
    width = check_positive_width("width", width)
    given, own = config.to_dict(), config.hidden_size
    n, size = config.num_attention_heads, given.get(config.attribute_map.get("head_dim", "head_dim"))
    explicit = isinstance(size, int)
    size = size if explicit else own // n
    shared = next((each for each in ("num_key_value_heads", "num_kv_heads") if isinstance(given.get(each), int)), None)
    n_shared = None if shared is None else given[shared]
    latent = "qk_rope_head_dim" in given  # heads of latent attention have sizes of their own
    rope = given.get("rope_parameters") or {}
    changes: dict[str, Any] = {"hidden_size": width}
    if head_dim is not None:
        if latent or not explicit:
            raise _no_head_dim(config, head_dim)
        n_heads, n_shared, changes["head_dim"] = _sized_heads(config, width, n_heads, head_dim)
    elif latent or config.model_type in _HEAD_NORMS or (explicit and n * size != own) or _has_lists(rope):
        n_heads, n_shared = keep_head_size(width, own, n, n_shared, wanted=n_heads)
        if not latent:
            changes["head_dim"] = size
    else:
        turned = given.get("rotary_dim")  # GPT-J and CodeGen
        share = rope.get("partial_rotary_factor") or (turned / size if turned else 1.0)
        n_heads, n_shared = choose_heads(
            width,
            n,
            own,
            n_key_value_heads=n_shared,
            wanted=n_heads,
            can_rotate=(lambda size: rotated_dimensions(size, share) is not None) if rope or turned else None,
        )
        if explicit:
            changes["head_dim"] = width // n_heads
        if turned:
            changes["rotary_dim"] = rotated_dimensions(width // n_heads, share)
        elif share != 1.0:
            changes["rope_parameters"] = _with_share(rope, width // n_heads, share)
    changes["num_attention_heads"] = n_heads
    if shared is not None:
        changes[shared] = n_shared
    for name in _FEED_FORWARD:
        units = given.get(config.attribute_map.get(name, name))
        if isinstance(units, list):  # one number per block
            changes[name] = [_scaled(each, own, width) for each in units]
        elif isinstance(units, int):
            changes[name] = _scaled(units, own, width)
    if "word_embed_proj_dim" in given:  # OPT
        changes["word_embed_proj_dim"] = min(given["word_embed_proj_dim"], width)
    return _changed(config, **changes)


# GPT-NeoX


@student_config.register
def _(config: GPTNeoXConfig, width: int, *, n_heads: int | None = None, head_dim: int | None = None) -> GPTNeoXConfig:
    width = check_positive_width("width", width)
    if head_dim is not None:
        raise _no_head_dim(config, head_dim)
    rope = config.rope_parameters or {}
    share = rope.get("partial_rotary_factor", 1.0)
    n_heads, _ = choose_heads(
        width,
        config.num_attention_heads,
        config.hidden_size,
        wanted=n_heads,
        can_rotate=lambda size: rotated_dimensions(size, share) is not None,
    )
    rope = _with_share(rope, width // n_heads, share)
    return _changed(
        config,
        hidden_size=width,
        num_attention_heads=n_heads,
        intermediate_size=_FFN_RATIO * width,
        rope_parameters=rope,
    )


# Llama


@student_config.register
def _(config: LlamaConfig, width: int, *, n_heads: int | None = None, head_dim: int | None = None) -> LlamaConfig:
    width = check_positive_width("width", width)
    if head_dim is None:
        n_heads, n_key_value_heads = choose_heads(
            width,
            config.num_attention_heads,
            config.num_attention_heads * config.head_dim,
            n_key_value_heads=config.num_key_value_heads,
            wanted=n_heads,
            can_rotate=lambda size: size % 2 == 0,
        )
        head_dim = width // n_heads
    else:
        n_heads, n_key_value_heads, head_dim = _sized_heads(config, width, n_heads, head_dim)
    return _changed(
        config,
        hidden_size=width,
        num_attention_heads=n_heads,
        num_key_value_heads=n_key_value_heads,
        head_dim=head_dim,
        intermediate_size=_scaled(config.intermediate_size, config.hidden_size, width),
    )


# GPT-2


@student_config.register
def _(config: GPT2Config, width: int, *, n_heads: int | None = None, head_dim: int | None = None) -> GPT2Config:
    width = check_positive_width("width", width)
    if head_dim is not None:
        raise _no_head_dim(config, head_dim)
    n_heads, _ = choose_heads(width, config.n_head, config.n_embd, wanted=n_heads)
    return _changed(config, n_embd=width, n_head=n_heads, n_inner=_FFN_RATIO * width)


# For all families


def _sized_heads(config: Any, width: int, n_heads: int | None, head_dim: int) -> tuple[int, int, int]:
    """Return the numbers of query heads, and of key and value heads, and their size as the caller chose it."""
    size = check_number("head_dim", head_dim, 2, whole=True)
    if size % 2:
        raise ValueError(f"head_dim={size} is odd, and rotary embeddings need an even size; use {size + 1}.")
    own, shared = config.num_attention_heads, config.num_key_value_heads
    wanted = own if n_heads is None else n_heads
    return *keep_head_size(width, config.hidden_size, own, shared, wanted=wanted), size


def _no_head_dim(config: Any, head_dim: Any) -> ValueError:
    return ValueError(
        f"head_dim={head_dim!r} can't be chosen for a {type(config).__name__}, whose heads share the width; leave it "
        "out, or choose n_heads."
    )


def check_positive_width(name: str, width: Any) -> int:
    """Return a student's width as an ``int``.

    Raises
    ------
    ValueError
        If it is no whole number of at least 1; for width 0 the message names `zero_width_kl`.
    """
    if check_number(name, width, whole=True) == 0:
        raise ValueError(
            f"{name}=0 leaves a student no dimensions to train; geofloor.language_models.zero_width_kl(teacher, "
            "tokens) computes the loss of width 0."
        )
    return check_number(name, width, 1, whole=True)


def _changed(config: Any, **changes: Any) -> Any:
    named = {config.attribute_map.get(name, name): value for name, value in changes.items()}
    try:
        return type(config).from_dict({**config.to_dict(), "dtype": "float32", **named})
    except Exception as error:  # each class of configuration has checks of its own
        shown = ", ".join(f"{name}={value!r}" for name, value in named.items())
        raise ValueError(
            f"A {type(config).__name__} can't hold the sizes of the student, {shown} ({error}); use another width, or "
            f"register a function for {type(config).__name__} with geofloor.students.student_config.register."
        ) from error


def _scaled(units: int, own: int, width: int) -> int:
    """Return the number of feed-forward units at the teacher's ratio of units to width."""
    return max(round(units / own * width), 1)


def _has_lists(rope: dict[str, Any]) -> bool:
    """Tell whether rotary embeddings have one factor per dimension, as with long contexts."""
    return any(isinstance(value, list) for value in rope.values())


def _with_share(rope: dict[str, Any], size: int, share: float) -> dict[str, Any]:
    """Set the share of a head's dimensions that is rotated."""
    rotated = rotated_dimensions(size, share)
    if rotated is None or rotated == int(size * share):
        return rope
    # The model truncates size × share to an integer; a larger share keeps rounding from lowering it.
    return {**rope, "partial_rotary_factor": float(np.nextafter(rotated / size, 1.0))}
