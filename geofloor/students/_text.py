"""Text to train on and held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._token_rows import TokenRows
from geofloor.students._settings import DistillationSettings


@dataclass(frozen=True)
class TextSplit:
    """Sequences to train on and sequences to evaluate on."""

    train: TokenRows
    n_train: int  # training uses the first ones of `train`
    held_out: TokenRows  # may be the same object as `train`
    eval_rows: np.ndarray  # consecutive rows of `held_out`

    def count_positions(self) -> np.ndarray:
        """Count the tokens of each held-out sequence, without padding."""
        batch = self.held_out.take(self.eval_rows)
        return np.full(len(batch.ids), batch.ids.shape[1]) if batch.mask is None else batch.mask.sum(axis=1)

    def fingerprint(self) -> str:
        """Compute checksums of all tokens, and append the evaluated rows."""
        first, end = self.eval_rows[0], self.eval_rows[-1] + 1
        held_out = "" if self.held_out is self.train else self.held_out.fingerprint(end)
        return f"{self.train.fingerprint()}:{held_out}:{first}:{end}"


def split_text(teacher: LanguageModel, tokens: Any, eval_tokens: Any, settings: DistillationSettings) -> TextSplit:
    """Check tokens against the teacher's vocabulary, and hold some out for evaluation.

    Parameters
    ----------
    teacher : LanguageModel
        The teacher.
    tokens, eval_tokens : int array-like of shape (n_sequences, seq_len), datasets.Dataset or None
        As in `DistilledStudent.fit`.
    settings : DistillationSettings
        Tells which share of `tokens` to hold out if `eval_tokens` is None.

    Raises
    ------
    ValueError
        If they are no token ids of the teacher, or nothing is left to train on.
    """
    train = teacher.token_rows(tokens, "tokens", settings.pad_token_id)
    if eval_tokens is not None:
        held_out = teacher.token_rows(eval_tokens, "eval_tokens", settings.pad_token_id)
        n_train, first = len(train), 0
    else:
        held_out = train
        n_train = first = len(train) - max(round(settings.validation_fraction * len(train)), 1)
        if n_train < 1:
            raise ValueError(
                f"tokens has {len(train)} sequence(s), of which validation_fraction={settings.validation_fraction:g} "
                "leaves none to train on; give more, or eval_tokens."
            )
    end = min(first + settings.eval_sequences, len(held_out))
    return TextSplit(train, n_train, held_out, np.arange(first, end))
