"""The loss of a student of width zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from geofloor._training.devices import memory_advice, to_device
from geofloor._validation import check_number
from geofloor.language_models._divergence import Targets, ZeroWidth
from geofloor.language_models._hooks import evaluating
from geofloor.language_models._loading import load_language_model
from geofloor.language_models._logits import LanguageModel


def zero_width_kl(
    teacher: Any,
    tokens: Any,
    *,
    temperature: float = 2.0,
    batch_size: int = 8,
    pad_token_id: int | None = None,
    teacher_kwargs: dict[str, Any] | None = None,
    device: str = "auto",
) -> float:
    r"""Loss of a student of width 0, which gives every position the same distribution: no student need be trained.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like or torch.nn.Module
        As in `DistilledStudent`.
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
        Token ids, preferably those that students are evaluated on.
    temperature : float, default=2.0
        T.
    batch_size : int, default=8
        Sequences a forward pass.
    pad_token_id : int or None, default=None
        As in `DistilledStudent`.
    teacher_kwargs : dict or None, default=None
        As in `DistilledStudent`.
    device : str, default="auto"
        As in `DistilledStudent`.

    Returns
    -------
    kl : float
        In nats a token.

    Raises
    ------
    ValueError
        If teacher and tokens don't fit each other, `temperature` is not above 0, or the teacher's logits are not
        finite.

    See Also
    --------
    geofloor.forecasting.Anchored : Takes it as `zero_width_loss`.

    Notes
    -----
    Of all distributions q, the mean :math:`\bar p` of the teacher's has the smallest mean divergence,
    :math:`\min_q \frac{1}{N} \sum_n \mathrm{KL}(p_n \Vert q) = H(\bar p) - \frac{1}{N} \sum_n H(p_n)`, the information
    that a position gives about its next token.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.language_models import zero_width_kl
    >>> tokens = np.random.default_rng(0).integers(2048, size=(8, 64))
    >>> 0 < zero_width_kl(load_teacher().path, tokens) < 7.63  # log 2048
    True
    """
    batch_size = check_number("batch_size", batch_size, 1, whole=True)
    temperature = check_number("temperature", temperature, 0, open_low=True)
    place, module = load_language_model(teacher, teacher_kwargs, device)
    model = LanguageModel(module, f"teacher={type(module).__name__}")
    rows = model.token_rows(tokens, "tokens", pad_token_id)
    sums = ZeroWidth(model.n_vocabulary)
    with evaluating(module), torch.no_grad(), memory_advice(f"lower batch_size={batch_size}"):
        for start in range(0, len(rows), batch_size):
            batch = rows.take(np.arange(start, min(start + batch_size, len(rows))))
            states = model.rows(to_device(batch.ids, place))
            if batch.mask is not None:
                states = states._replace(rows=states.rows[to_device(batch.mask.reshape(-1), place)])
            sums.add(Targets(states, temperature))
    kl = sums.loss()
    if not np.isfinite(kl):
        raise ValueError("The teacher's logits are not finite; check its weights, or load it with more range.")
    return kl
