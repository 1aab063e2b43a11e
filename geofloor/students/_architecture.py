"""A narrower copy of a teacher, by the type of the teacher: Table 8's rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from geofloor._training.seeds import draw_seed
from geofloor._validation import check_choice, check_number, check_object
from geofloor.language_models._loading import building
from geofloor.students._principal import is_known, project

_FFN_RATIO = 4  # Table 8: FFN = 4d
_SMALLEST_HEAD = 16  # Table 8 keeps the teacher's number of heads down to heads of this size
_INITS = ("random", "principal")
_EVEN = ", with an even number of rotated dimensions each"


@functools.singledispatch
def student_config(config: Any, width: int, *, n_heads: int | None = None) -> Any:
    """Configuration of a student: the teacher's, but for its width and what follows from it.

    Depth, vocabulary, positions and all else stay the teacher's (Table 8 of [1]_).

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of a ``transformers`` teacher: GPT-NeoX (Pythia), Llama (SmolLM2) or GPT-2. For
        others register a function: see Examples.
    width : int
        Dimensions d of the student's residual stream.
    n_heads : int or None, default=None
        Attention heads of the student, which divide `width`; by default those of Table 8's rule.

    Returns
    -------
    config : PreTrainedConfig
        A new configuration of the same class.

    Raises
    ------
    ValueError
        If there is no rule for this class of configuration, or no number of heads, or not `n_heads`, divides
        `width`.

    Notes
    -----
    *Heads.* As many as the teacher has, or the largest number below it that divides the width into heads
    of at least 16 dimensions (or of the teacher's size, if that is smaller), and at most twice the
    teacher's; of a narrower width one head is made. For Pythia-410M's 16 heads of 64 this gives the 8, 16,
    16, 16 and 16 of Table 8. Where the teacher rotates a part of each head, the student rotates that part, to
    an even number of dimensions. Where several queries share keys and values, numbers of heads that keep
    the size of the teacher's groups go first.

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
    ... def _(config: MistralConfig, width, *, n_heads=None):
    ...     return MistralConfig(**{**config.to_dict(), "hidden_size": width, "intermediate_size": 4 * width})
    """
    kind = getattr(config, "model_type", type(config).__name__)
    raise ValueError(
        f"config is of type {kind!r}, for which there is no rule; register a function of (config, width, *, n_heads) "
        f"for {type(config).__name__} with geofloor.students.student_config.register."
    )


@student_config.register
def _(config: GPTNeoXConfig, width: int, *, n_heads: int | None = None) -> GPTNeoXConfig:
    rope = config.rope_parameters or {}
    share = rope.get("partial_rotary_factor", 1.0)
    n_heads, _ = _heads(
        width,
        config.num_attention_heads,
        config.hidden_size,
        wanted=n_heads,
        works=lambda size: _rotated(size, share) is not None,
    )
    size = int(width) // n_heads
    rotated = _rotated(size, share)
    if rotated is not None and rotated != int(size * share):
        # The model takes the whole part of size × share, which must not be one below by rounding.
        rope = {**rope, "partial_rotary_factor": float(np.nextafter(rotated / size, 1.0))}
    return _changed(
        config,
        hidden_size=int(width),
        num_attention_heads=n_heads,
        intermediate_size=_FFN_RATIO * int(width),
        rope_parameters=rope,
    )


@student_config.register
def _(config: GPT2Config, width: int, *, n_heads: int | None = None) -> GPT2Config:
    n_heads, _ = _heads(width, config.n_head, config.n_embd, wanted=n_heads)
    return _changed(config, n_embd=int(width), n_head=n_heads, n_inner=_FFN_RATIO * int(width))


@student_config.register
def _(config: LlamaConfig, width: int, *, n_heads: int | None = None) -> LlamaConfig:
    n_heads, n_key_value_heads = _heads(
        width,
        config.num_attention_heads,
        config.num_attention_heads * config.head_dim,
        n_key_value_heads=config.num_key_value_heads,
        wanted=n_heads,
        works=lambda size: size % 2 == 0,
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


def _rotated(size: int, share: float) -> int | None:
    """Rotated dimensions of a head: its share, to an even number; None where there is none of at least 2."""
    if share == 1.0:
        return size if size % 2 == 0 else None
    return max(2 * round(size * share / 2), 2) if size >= 2 else None


def _heads(
    width: int,
    n_heads: int,
    teacher_width: int,
    *,
    n_key_value_heads: int | None = None,
    wanted: int | None = None,
    works: Callable[[int], bool] | None = None,
) -> tuple[int, int]:
    """Numbers of query heads and of key and value heads of a student; an error names what works.

    `wanted` heads, where they are given. `works` tells whether a head of a size can be rotated, where it is.
    """
    width = check_number("width", width, 1, whole=True)
    if wanted is not None:
        wanted = check_number("n_heads", wanted, 1, whole=True)
    head_size = teacher_width // n_heads
    group = n_heads // (n_key_value_heads or n_heads)
    smallest = min(_SMALLEST_HEAD, head_size)

    def fitting(width: int) -> list[int]:
        sizes = {n: width // n for n in range(1, n_heads + 1) if width % n == 0}
        return [
            n
            for n, size in sizes.items()
            if (size >= smallest or n == 1) and size <= 2 * head_size and (works is None or works(size))
        ]

    if wanted is not None:
        possible = [n for n in range(1, width + 1) if width % n == 0 and (works is None or works(width // n))]
        if wanted not in possible:
            raise ValueError(
                f"n_heads={wanted!r} can't divide width={width}{_EVEN if works else ''}; use one of {possible}."
            )
    found = fitting(width) if wanted is None else [wanted]
    if not found:
        near = [w for distance in range(1, 129) for w in (width - distance, width + distance) if w > 0 and fitting(w)]
        raise ValueError(
            f"width={width} can't be divided into at most {n_heads} heads of {smallest} to {2 * head_size} "
            f"dimensions{_EVEN if works else ''}; use {' or '.join(map(str, sorted(near[:2])))}."
        )
    n = max(found, key=lambda n: (n % group == 0, n))
    if n % group == 0:
        return n, n // group
    return n, max(k for k in range(1, n + 1) if n % k == 0 and k <= (n_key_value_heads or n))


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
    check_object("config", config, PreTrainedConfig, "give a configuration of transformers")
    with building(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@functools.singledispatch
def make_student(
    teacher: Any,
    width: int,
    *,
    n_heads: int | None = None,
    init: str = "random",
    random_state: int | np.random.RandomState | None = None,
    tokens: Any = None,
) -> Any:
    """Make an untrained student of a teacher.

    Parameters
    ----------
    teacher : PreTrainedModel
        A causal language model of ``transformers``. For other classes register a function of
        these parameters with ``make_student.register``; it returns a torch module that gives logits.
    width : int
        Dimensions d of the student's residual stream, at most the teacher's.
    n_heads : int or None, default=None
        Attention heads, which divide `width`; by default those of `student_config`'s rule.
    init : {"random", "principal"}, default="random"
        ``"random"``: as the teacher's class starts its weights, which is the paper's way.
        ``"principal"``: the teacher's weights, projected on the principal directions of its residual
        stream; for GPT-NeoX, Llama and GPT-2.
    random_state : int, RandomState or None, default=None
        Seed of the random weights, of which a principal start has none but where the student has what its teacher
        lacks. Global seeds are neither used nor changed.
    tokens : int array of shape (n_sequences, seq_len), default=None
        Text that ``"principal"`` measures the residual stream on.

    Returns
    -------
    student : PreTrainedModel
        On the CPU, in float32.

    Raises
    ------
    ValueError
        If there is no rule for the teacher, or a parameter is out of its range.

    Notes
    -----
    A *principal* start normalises, reads and writes the residual stream as the teacher does, in as many of its
    principal directions as the student has dimensions. It keeps the feed-forward units and the heads that write most,
    and of heads the largest singular values of queries times keys and of outputs times values. A student of the
    teacher's own width is the teacher. An embedding that is the unembedding as well (``tie_word_embeddings``) can't
    hold the gain of the final normalisation, of which the student then has a part only.

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
        f"model, or register a function for {type(teacher).__name__} with "
        "geofloor.students.make_student.register."
    )


@make_student.register
def _make_language_model(
    teacher: PreTrainedModel,
    width: int,
    *,
    n_heads: int | None = None,
    init: str = "random",
    random_state: int | np.random.RandomState | None = None,
    tokens: Any = None,
) -> PreTrainedModel:
    check_choice("init", init, _INITS)
    check_width(teacher, width)
    config = student_config(teacher.config, width, **({} if n_heads is None else {"n_heads": n_heads}))
    with building(draw_seed(random_state)), torch.device("cpu"):
        student = type(teacher)(config).eval()
    if init == "principal":
        with torch.no_grad():
            project(teacher, student, tokens)
    return student


def default_init(teacher: Any) -> str:
    """Tell how students of a teacher start unless told otherwise.

    Parameters
    ----------
    teacher : PreTrainedModel or torch.nn.Module
        The teacher.

    Returns
    -------
    init : {"principal", "random"}
        ``"principal"`` where the teacher's family has such a start, else ``"random"``.

    Examples
    --------
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.students._architecture import default_init
    >>> default_init(load_teacher().model)
    'principal'
    """
    own = isinstance(teacher, PreTrainedModel) and make_student.dispatch(type(teacher)) is _make_language_model
    return "principal" if own and is_known(teacher) else "random"


def check_width(teacher: Any, width: Any) -> int:
    """Check a student's width, which is at most that of its teacher where that is known.

    Parameters
    ----------
    teacher : PreTrainedModel or torch.nn.Module
        The teacher.
    width : int
        The student's width.

    Returns
    -------
    width : int
        The same as a plain number.

    Raises
    ------
    ValueError
        If it is no whole number of at least 1, or above the teacher's width.

    Examples
    --------
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.students._architecture import check_width
    >>> check_width(load_teacher().model, 64)
    64
    """
    width = check_number("width", width, 1, whole=True)
    own = None
    if isinstance(teacher, PreTrainedModel):
        own = getattr(teacher.config.get_text_config(), "hidden_size", None)
    if own is not None and width > own:
        raise ValueError(
            f"width={width} exceeds the teacher's width of {own}: a student is no wider than its teacher; use at most "
            f"width={own}."
        )
    return width
