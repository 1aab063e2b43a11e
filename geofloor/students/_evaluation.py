"""Measure any student in the units of `DistilledStudent`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from geofloor._training.devices import memory_advice, to_device
from geofloor._validation import check_number, warn_caller
from geofloor.language_models._divergence import Targets, row_kls
from geofloor.language_models._hooks import evaluating
from geofloor.language_models._loading import load_language_model
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._positions import Positions, tokens_to_exclude
from geofloor.language_models._sequence_means import mean_and_error
from geofloor.students._student import DistilledStudent


class StudentLoss(NamedTuple):
    """Loss of a student, measured against its teacher."""

    loss: float  # KL divergence from the teacher, in nats per token
    standard_error: float  # over sequences, in nats per token; NaN for one sequence
    n_positions: int  # positions that count


def evaluate_student(
    student: Any,
    teacher: Any,
    tokens: Any,
    *,
    temperature: float = 2.0,
    batch_size: int = 8,
    pad_token_id: int | None = None,
    exclude_tokens: Any = None,
    model_kwargs: dict[str, Any] | None = None,
    n_vocabulary: int | None = None,
    device: str = "auto",
) -> StudentLoss:
    r"""Measure the loss of a student, trained anywhere, in nats per token.

    The loss is that of `DistilledStudent`, of the bounds and of the forecasts. Students trained by TRL, by the
    ``Trainer`` of ``transformers`` or by your own loop can so be compared with them, and `LossForecaster` can be fitted
    to their losses.

    Parameters
    ----------
    student : PreTrainedModel, str, path-like, torch.nn.Module or DistilledStudent
        The student: a causal language model of ``transformers``, its name on the hub or its folder, a module that maps
        token ids to logits, or a fitted `DistilledStudent`. It is not changed.
    teacher : PreTrainedModel, str, path-like or torch.nn.Module
        The teacher, with the same tokenizer. It is not changed.
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
        Token ids, held out from training.
    temperature : float, default=2.0
        T, by which both logits are divided. It is that of bounds and forecasts, whatever the student was trained at.
    batch_size : int, default=8
        Sequences per forward pass.
    pad_token_id : int or None, default=None
        Token that pads sequences at their end. Its positions do not count.
    exclude_tokens : "special", list of int or None, default=None
        Tokens whose positions do not count: ids, or ``"special"`` for the special tokens of a teacher given by name.
    model_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name. Both models are loaded in float32 unless
        they hold a ``dtype``, which is that of the teacher. To load the student otherwise, give it as an object.
    n_vocabulary : int or None, default=None
        Number of tokens that count, the first ones, where the vocabularies of the two models are rounded up
        differently. None counts all.
    device : str, default="auto"
        As in `DistilledStudent`; a student elsewhere is copied to the teacher's device.

    Returns
    -------
    loss : StudentLoss
        Named tuple of the ``loss`` in nats per token, its ``standard_error`` over sequences, and ``n_positions``.

    Raises
    ------
    TypeError
        If a model is an object of another kind.
    ValueError
        If student, teacher and tokens do not fit each other, an argument is out of range, no position counts, or a
        logit is not finite.
    MemoryError
        If the device has too little memory; the message names what to lower.

    Warns
    -----
    UserWarning
        If the student has more parameters than the teacher, as when they are exchanged.

    See Also
    --------
    distillation_kl : Computes the same divergence of two tensors of logits, with a gradient.
    DistilledStudent.score : Returns the negative of this loss.

    Notes
    -----
    The loss is the forward divergence at the temperature T, without the factor T² of some training losses, averaged
    over all N positions of the text,

    .. math:: \frac{1}{N} \sum_n \mathrm{KL}\bigl(p_n^T \,\Vert\, q_n^T\bigr), \qquad
              p_n^T = \mathrm{softmax}(z_n / T),

    with p the teacher and q the student. The standard error is that of this mean, with sequences as the unit of
    sampling.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.students import evaluate_student, make_student
    >>> teacher = load_teacher().model
    >>> student = make_student(teacher, 64, random_state=0)  # untrained
    >>> tokens = np.random.default_rng(0).integers(2048, size=(8, 32))
    >>> found = evaluate_student(student, teacher, tokens)
    >>> found.n_positions, 0 < found.standard_error < found.loss < 7.63  # log 2048
    (256, True)
    """
    temperature = check_number("temperature", temperature, 0, open_low=True)
    batch_size = check_number("batch_size", batch_size, 1, whole=True)
    place, teacher_module = load_language_model(teacher, model_kwargs, device)
    name = f"student={type(student).__name__}"
    if isinstance(student, DistilledStudent):
        check_is_fitted(student)
        student = student.model_
    _, student_module = load_language_model(student, None, place, argument="student")
    theirs = LanguageModel(teacher_module, f"teacher={type(teacher_module).__name__}", n_vocabulary=n_vocabulary)
    model = LanguageModel(student_module, name, n_vocabulary=n_vocabulary)
    if model.n_vocabulary != theirs.n_vocabulary:
        raise ValueError(
            f"{name} gives logits of {model.n_vocabulary} tokens, and the teacher of {theirs.n_vocabulary}. They must "
            "have one tokenizer. If they do, and a vocabulary is rounded up, set n_vocabulary to the size of the "
            "tokenizer."
        )
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (student_module, teacher_module)]
    if sizes[0] > sizes[1]:
        warn_caller(
            f"The student has {sizes[0]:,} parameters and the teacher {sizes[1]:,}. If they are exchanged, the loss is "
            "the divergence in the other direction; give the student first.",
            UserWarning,
        )
    excluded = tokens_to_exclude(exclude_tokens, teacher, model_kwargs, theirs.n_tokens)
    rows = theirs.token_rows(tokens, "tokens", pad_token_id, excluded=excluded)
    if model.max_length is not None and rows.length > model.max_length:
        raise ValueError(
            f"tokens has sequences of {rows.length} tokens, and the student has {model.max_length} positions; cut them."
        )
    positions = Positions(0, excluded)
    sums, counts = [], []
    with (
        evaluating(teacher_module),
        evaluating(student_module),
        torch.no_grad(),
        memory_advice(f"lower batch_size={batch_size}"),
    ):
        for start in range(0, len(rows), batch_size):
            batch = rows.take(np.arange(start, min(start + batch_size, len(rows))))
            ids = to_device(batch.ids, place)
            kls = row_kls(model.logits(ids), Targets(theirs.logits(ids), temperature)).view(ids.shape)
            counted = positions.included(batch.ids)
            if batch.mask is not None:
                counted &= batch.mask
            if not counted.all():
                kls = torch.where(to_device(counted, place), kls, 0.0)
            sums.append(kls.sum(dim=1).cpu().double().numpy())
            counts.append(counted.sum(axis=1))
    all_sums, all_counts = np.concatenate(sums), np.concatenate(counts)
    if not all_counts.any():
        raise ValueError(f"exclude_tokens={exclude_tokens!r:.60} leaves no position of tokens; exclude fewer.")
    loss, error = mean_and_error(all_sums, all_counts)
    if not np.isfinite(loss):
        raise ValueError(
            "The loss is not finite: a model gives logits that are NaN or infinite, or the student gives probability 0 "
            "to tokens that the teacher does not. Check the weights, or set n_vocabulary if these tokens round up the "
            "vocabulary."
        )
    return StudentLoss(loss, error, int(all_counts.sum()))
