"""Distill students of several widths in one pass."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from geofloor._validation import check_iterable, check_number, check_object, check_path, shown
from geofloor.students._families import check_positive_width
from geofloor.students._student import DistilledStudent, fit_together

_OWN = frozenset({"teacher", "width", "random_state", "checkpoint_path"})  # never taken from another student


def distill_widths(
    teacher: Any,
    tokens: Any,
    widths: Sequence[int | tuple[int, int]],
    *,
    budgets: Sequence[int] | None = None,
    random_state: int | None = 0,
    eval_tokens: Any = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    like: DistilledStudent | None = None,
    **settings: Any,
) -> list[DistilledStudent]:
    """Distill students of several widths and budgets in one pass, with one forward pass of the teacher per batch.

    Each student ends as `DistilledStudent.fit` with the same seed and settings would end; on a CPU, with the same
    bits.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like or torch.nn.Module
        As in `DistilledStudent`.
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
        As in `DistilledStudent.fit`.
    widths : sequence of int or of (int, int)
        Widths, or pairs of width and seed.
    budgets : sequence of int, default=None
        Numbers of steps, in place of `n_steps`: each width is trained once for each of them, to the end of a
        learning-rate schedule of its own. `LossForecaster` forecasts longer training from such runs. All students see
        the same batches, so that the longest budget pays for all passes of the teacher.
    random_state : int or None, default=0
        Seed of students whose seed `widths` does not give.
    eval_tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset, default=None
        As in `DistilledStudent.fit`.
    checkpoint_dir : str, path or None, default=None
        Folder for a checkpoint of each student. The same call resumes from them.
    like : DistilledStudent, default=None
        Student whose parameters replace the defaults, such as one that `DistilledStudent.paper` made. Its teacher,
        width, seed and checkpoint are not used.
    **settings
        Other parameters of `DistilledStudent`.

    Returns
    -------
    students : list of DistilledStudent
        Fitted students, in the order of `widths`, and for each width in the order of `budgets`. ``n_steps_`` holds the
        steps of each.

    Raises
    ------
    ValueError
        As `DistilledStudent.fit`, if `widths` is empty or holds the same student twice, if `budgets` is empty, holds a
        budget twice or is given with `n_steps`.

    Examples
    --------
    >>> import numpy as np
    >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    >>> from geofloor.students import distill_widths
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    ...     initializer_range=0.2,
    ... )
    >>> tokens = np.random.default_rng(0).integers(32, size=(512, 12))
    >>> students = distill_widths(GPTNeoXForCausalLM(config), tokens, [8, (8, 1), 12], n_steps=100)
    >>> [(student.width, student.random_state, student.n_steps_) for student in students]
    [(8, 0, 100), (8, 1, 100), (12, 0, 100)]

    Runs of three budgets forecast longer training:

    >>> from geofloor import LossForecaster
    >>> runs = distill_widths(GPTNeoXForCausalLM(config), tokens, [8, 12], budgets=(100, 140, 200))
    >>> [(student.width, student.n_steps_) for student in runs][:4]
    [(8, 100), (8, 140), (8, 200), (12, 100)]
    >>> widths, losses, steps = zip(*((run.width, run.floor_, run.n_steps_) for run in runs))
    >>> forecast = LossForecaster("power", teacher_width=16).fit(
    ...     widths, losses, n_steps=steps, n_tokens=runs[0].batch_size_ * 12
    ... )
    >>> bool(forecast.predict([10], n_steps=800)[0] < forecast.predict([10])[0])
    True
    """
    pairs = _widths_and_seeds(widths, random_state)
    if "checkpoint_path" in settings:
        raise ValueError(
            f"checkpoint_path={shown(settings['checkpoint_path'])} is one file, and every student needs its own; give "
            "checkpoint_dir, a folder."
        )
    folder = None if checkpoint_dir is None else check_path("checkpoint_dir", checkpoint_dir)
    lengths = _budgets(budgets, settings)
    if like is not None:
        check_object("like", like, DistilledStudent, "give a DistilledStudent, such as DistilledStudent.paper(...)")
        settings = {name: value for name, value in like.get_params(deep=False).items() if name not in _OWN} | settings
    students = [
        DistilledStudent(
            teacher,
            width,
            random_state=seed,
            checkpoint_path=folder and folder / f"width-{width}-seed-{seed}{suffix}.safetensors",
            **settings | own,
        )
        for width, seed in pairs
        for suffix, own in lengths
    ]
    fit_together(students, tokens, eval_tokens)
    return students


def _widths_and_seeds(widths: Any, random_state: Any) -> list[tuple[int, Any]]:
    """Read the width and seed of each student, in the order given."""
    if isinstance(widths, str | bytes) or not isinstance(widths, Iterable) or getattr(widths, "shape", None) == ():
        raise ValueError(f"widths={shown(widths)} must be a list of widths, or of pairs of width and seed.")
    listed = list(widths)
    pairs = []
    for each in listed:
        pair = tuple(each) if isinstance(each, tuple | list | np.ndarray) and np.ndim(each) else (each, random_state)
        if len(pair) != 2:
            raise ValueError(f"widths={shown(listed)} holds {shown(each)}; give a width, or a pair of width and seed.")
        pairs.append((check_positive_width("widths", pair[0]), pair[1]))
    if not pairs or any(pair in pairs[:place] for place, pair in enumerate(pairs)):
        raise ValueError(f"widths={shown(listed)} must hold at least one width and no student twice.")
    return pairs


def _budgets(budgets: Any, settings: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Read the budgets: for each the end of a checkpoint's name, and the parameters of a student."""
    if budgets is None:
        return [("", {})]
    if "n_steps" in settings:
        raise ValueError(f"n_steps={shown(settings['n_steps'])} and budgets={shown(budgets)} exclude each other.")
    steps = [check_number("budgets", each, 1, whole=True) for each in check_iterable("budgets", budgets, "give a list")]
    if not steps or len(set(steps)) < len(steps):
        raise ValueError(f"budgets={shown(budgets)} must hold at least one number of steps and none twice.")
    return [(f"-steps-{each}", {"n_steps": each}) for each in steps]
