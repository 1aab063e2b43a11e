"""The loss of a student of width 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import xlogy

from geofloor._training.devices import memory_advice, to_device
from geofloor._validation import check_number
from geofloor.language_models._divergence import Targets
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
    model_kwargs: dict[str, Any] | None = None,
    n_vocabulary: int | None = None,
    device: str = "auto",
) -> float:
    r"""Compute the loss of a student of width 0, in nats per token, without training one.

    A student of width 0 gives every position the same distribution.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like or torch.nn.Module
        As in `DistilledStudent`.
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
        Token ids, preferably of the text that students are evaluated on.
    temperature : float, default=2.0
        T, by which logits are divided.
    batch_size : int, default=8
        Sequences per forward pass.
    pad_token_id : int or None, default=None
        Token that pads sequences at their end. Its positions do not count.
    model_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name. It is loaded in float32 unless they hold a
        ``dtype``.
    n_vocabulary : int or None, default=None
        Number of tokens that count, the first ones. Rows of the unembedding beyond it, as those added to round up its
        size, get no probability. None counts all.
    device : str, default="auto"
        As in `DistilledStudent`.

    Returns
    -------
    kl : float
        Loss, in nats per token.

    Raises
    ------
    ValueError
        If teacher and tokens do not fit each other, `temperature` is not above 0, or the teacher's logits are not
        finite.

    See Also
    --------
    LossForecaster : Starts its forecasts from this loss.

    Notes
    -----
    Of all distributions q, the mean :math:`\bar p` of the teacher's distributions has the smallest mean divergence,
    :math:`\min_q \frac{1}{N} \sum_n \mathrm{KL}(p_n \Vert q) = H(\bar p) - \frac{1}{N} \sum_n H(p_n)`. This is the
    information that a position gives about its next token.

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
    place, module = load_language_model(teacher, model_kwargs, device)
    model = LanguageModel(module, f"teacher={type(module).__name__}", n_vocabulary=n_vocabulary)
    rows = model.token_rows(tokens, "tokens", pad_token_id)
    loss = ZeroWidthLoss(model.n_vocabulary)
    with evaluating(module), torch.no_grad(), memory_advice(f"lower batch_size={batch_size}"):
        for start in range(0, len(rows), batch_size):
            batch = rows.take(np.arange(start, min(start + batch_size, len(rows))))
            logits = model.logits(to_device(batch.ids, place))
            if batch.mask is not None:
                logits = logits.at(to_device(batch.mask.reshape(-1), place))
            loss.add(Targets(logits, temperature))
    kl = loss.loss()
    if not np.isfinite(kl):
        raise ValueError("The teacher's logits are not finite; check its weights, or load it with more range.")
    return kl


class ZeroWidthLoss:
    """Sums for the loss of a student of width 0: the divergence of the teacher's distributions from their mean.

    Parameters
    ----------
    n_vocabulary : int
        Number of tokens.
    """

    def __init__(self, n_vocabulary: int) -> None:
        self.total = np.zeros(n_vocabulary)  # sum of the teacher's probabilities
        self.negative_entropy = 0.0
        self.n_positions = 0

    def add(self, targets: Targets) -> None:
        """Add a batch of positions."""
        for index in range(len(targets.chunks)):
            probabilities, negative_entropies = targets.chunk(index)
            self.total += probabilities.sum(dim=0).cpu().double().numpy()
            self.negative_entropy += float(negative_entropies.cpu().double().sum())
        self.n_positions += len(targets.source.rows)

    def loss(self) -> float:
        """Return the loss over all positions, in nats per token."""
        mean = self.total / self.n_positions
        return float(self.negative_entropy / self.n_positions - xlogy(mean, mean).sum())
