"""Untrained students of a teacher."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from geofloor._training.seeds import draw_seed
from geofloor._validation import check_choice, check_object
from geofloor.language_models._loading import building, load_config
from geofloor.students._families import check_positive_width, student_config
from geofloor.students._principal import check_principal_start, has_principal_start, project

_INITS = ("random", "principal")


def count_parameters(config: PreTrainedConfig) -> int:
    """Count the parameters of a causal language model without allocating them.

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of ``transformers``.

    Returns
    -------
    n_parameters : int
        Number of parameters; shared ones count once.

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
    head_dim: int | None = None,
    init: str = "random",
    random_state: int | np.random.RandomState | None = None,
    tokens: Any = None,
) -> Any:
    """Make an untrained student of a teacher.

    Parameters
    ----------
    teacher : PreTrainedModel
        A causal language model of ``transformers``. For other classes register a function with
        ``make_student.register``. It takes these parameters (`n_heads` and `head_dim` may be left out) and
        returns a torch module that maps token ids to logits.
    width : int
        Dimensions d of the student's residual stream, at most the teacher's.
    n_heads : int or None, default=None
        Attention heads. They must divide `width`. By default the rule of `student_config` chooses them.
    head_dim : int or None, default=None
        Dimensions of each head: see `student_config`.
    init : {"random", "principal"}, default="random"
        ``"random"`` initializes weights as the teacher's class does; the paper starts its students this way.
        ``"principal"`` projects the teacher's weights on the principal directions of its residual stream; available
        for the families of :doc:`/how_to/supported_models`.
    random_state : int, RandomState or None, default=None
        Seed for the initial weights. With ``init="principal"`` it only affects parameters that the teacher does not
        have. Global seeds are neither used nor changed.
    tokens : int array of shape (n_sequences, seq_len), default=None
        Text on which ``init="principal"`` measures the residual stream.

    Returns
    -------
    student : PreTrainedModel
        The student, on the CPU and in float32.

    Raises
    ------
    ValueError
        If the teacher has no rule (mixtures of experts, state-space models and encoders have none), or a parameter is
        out of its range.

    Notes
    -----
    After a *principal* start the student normalizes, reads and writes the residual stream as the teacher does, but in
    `width` principal directions only. It keeps the heads and feed-forward units with the largest outputs. In each head
    it keeps the largest singular values of the query-key and of the output-value products. Heads with normalized
    queries and keys are kept whole. A student of the teacher's own width is the teacher.

    Two gains can't be absorbed by a neighboring weight. If normalizations subtract the mean and the unembedding is the
    embedding (GPT-2, OPT), the final gain is averaged over each direction. If a normalization comes after a sublayer
    (Gemma 2 and 3, OLMo 2), the sublayer's output keeps its direction at every token, and its length on average.

    See Also
    --------
    student_config : The rule for the student's sizes.
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
        f"model, or register a function for {type(teacher).__name__} with geofloor.students.make_student.register."
    )


@make_student.register
def _make_language_model(
    teacher: PreTrainedModel,
    width: int,
    *,
    n_heads: int | None = None,
    head_dim: int | None = None,
    init: str = "random",
    random_state: int | np.random.RandomState | None = None,
    tokens: Any = None,
) -> PreTrainedModel:
    check_choice("init", init, _INITS)
    check_width(teacher, width)
    config = _config_of(teacher.config, width, n_heads=n_heads, head_dim=head_dim)
    with building(draw_seed(random_state)), torch.device("cpu"):
        student = type(teacher)(config).eval()
    if init == "principal":
        with torch.no_grad():
            project(teacher, student, tokens)
    return student


def default_init(teacher: Any) -> str:
    """Choose how students of a teacher start by default.

    Parameters
    ----------
    teacher : PreTrainedModel or torch.nn.Module
        The teacher.

    Returns
    -------
    init : {"principal", "random"}
        ``"principal"`` if the teacher's family supports it, else ``"random"``.

    Examples
    --------
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.students._architecture import default_init
    >>> default_init(load_teacher().model)
    'principal'
    """
    # A function registered for a subclass of PreTrainedModel may know no other start than a random one.
    return "principal" if _is_own(type(teacher)) and has_principal_start(teacher) else "random"


def check_student(teacher: Any, width: int, *, init: str = "random", **heads: int) -> None:
    """Refuse a student that `make_student` would refuse, without making it.

    Parameters
    ----------
    teacher : PreTrainedModel or torch.nn.Module
        The teacher.
    width : int
        The student's width.
    init : {"auto", "random", "principal"}, default="random"
        How the student starts.
    **heads
        ``n_heads`` and ``head_dim``, as far as the caller has chosen them.

    Raises
    ------
    ValueError
        If the teacher has no rule, a size is out of its range, or the start is not available.

    Examples
    --------
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.students._architecture import check_student
    >>> check_student(load_teacher().model, 256)
    Traceback (most recent call last):
        ...
    ValueError: width=256 exceeds the teacher's width of 128: a student is no wider than its teacher; use at most...
    """
    check_width(teacher, width)
    if _is_own(type(teacher)):
        _config_of(teacher.config, width, **heads)
        if init == "principal":
            check_principal_start(teacher)
    elif make_student.dispatch(type(teacher)) is make_student.dispatch(object):
        make_student(teacher, width)  # which refuses it


def check_named_student(
    teacher: str, width: int, *, model_kwargs: Mapping[str, Any] | None = None, **heads: int
) -> None:
    """Refuse a student of a teacher given by name, before the teacher's weights are loaded.

    Parameters
    ----------
    teacher : str
        Name or folder of the teacher.
    width : int
        The student's width.
    model_kwargs : dict or None, default=None
        Arguments of ``from_pretrained``.
    **heads
        As in `check_student`.

    Raises
    ------
    OSError
        If there is no such model.
    ValueError
        If the teacher has no rule, or a size is out of its range.
    """
    config = load_config("teacher", teacher, model_kwargs)
    if config is not None and _is_own(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), PreTrainedModel)):
        _config_of(config, width, **heads)


def _config_of(config: PreTrainedConfig, width: int, **heads: int | None) -> PreTrainedConfig:
    # Registered rules need have neither n_heads nor head_dim.
    return student_config(config, width, **{name: value for name, value in heads.items() if value is not None})


def _is_own(kind: type) -> bool:
    """Tell whether students of a class of models are made here, not by a function that a user registered."""
    return make_student.dispatch(kind) is _make_language_model


def model_width(model: Any) -> int | None:
    """Return the width of a model's residual stream, or None if its configuration does not give one."""
    if not isinstance(model, PreTrainedModel):
        return None
    return getattr(model.config.get_text_config(), "hidden_size", None)


def check_width(teacher: Any, width: Any) -> int:
    """Check a student's width against its teacher's.

    Parameters
    ----------
    teacher : PreTrainedModel or torch.nn.Module
        The teacher.
    width : int
        The student's width.

    Returns
    -------
    width : int
        The width as a Python integer.

    Raises
    ------
    ValueError
        If the width is no whole number of at least 1, or exceeds the teacher's.

    Examples
    --------
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.students._architecture import check_width
    >>> check_width(load_teacher().model, 64)
    64
    """
    width = check_positive_width("width", width)
    own = model_width(teacher)
    if own is not None and width > own:
        raise ValueError(
            f"width={width} exceeds the teacher's width of {own}: a student is no wider than its teacher; use at most "
            f"width={own}."
        )
    return width
