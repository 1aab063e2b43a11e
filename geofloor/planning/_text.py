"""Text of a plan: measured, held out, and trained on."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np

from geofloor._validation import shown
from geofloor.language_models import token_blocks
from geofloor.language_models._loading import load_tokenizer
from geofloor.planning._settings import PlanSettings

_HELD_OUT = 1 / 20, 1 / 4, 4096  # share of the measured sequences; at most; positions wanted


class PlanTokens(NamedTuple):
    """Token ids, each of shape (n_sequences, length)."""

    measured: np.ndarray
    held_out: np.ndarray
    trained: np.ndarray  # by students; it begins with text that nothing else saw

    def digest(self, *parts: str) -> str:
        """Return the SHA-256 of some parts."""
        digest = hashlib.sha256()
        for part in parts or self._fields:
            array = np.ascontiguousarray(getattr(self, part), dtype=np.int64)
            digest.update(f"{part} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def read_text(
    texts: Any, teacher: Any, settings: PlanSettings, *, tokenizer: Any = None, model_kwargs: Any = None
) -> PlanTokens:
    """Tokenize as much text as a plan needs, and divide it.

    Parameters
    ----------
    texts : iterable of str, datasets.Dataset, or int array of shape (n_sequences, length)
        Documents, or token ids.
    teacher : PreTrainedModel, str or path
        Gives the tokenizer, unless `tokenizer` is given.
    settings : PlanSettings
        How much text to take.
    tokenizer, model_kwargs
        As in `plan_distillation`.

    Raises
    ------
    ValueError
        If there is no tokenizer, or the text gives fewer than four sequences.
    """
    n_wanted = settings.n_blocks + settings.n_trained
    if getattr(texts, "ndim", None) == 2:
        blocks = np.asarray(texts)[:n_wanted]
    else:
        found, why = load_tokenizer(tokenizer, teacher, model_kwargs)
        if found is None:
            raise ValueError(f"tokenizer=None, and {why}; give a tokenizer, or token ids in place of texts.")
        if isinstance(texts, str | bytes):
            raise ValueError(f"texts={shown(texts)} is one text; give a list of texts.")
        blocks = token_blocks(texts, found, length=settings.length, max_blocks=n_wanted)
    if len(blocks) < 4:
        raise ValueError(
            f"texts give {len(blocks)} sequence(s) of {blocks.shape[1]} tokens, and a plan needs 4 at least; give more "
            "text, or lower length."
        )
    measured, more = blocks[: settings.n_blocks], blocks[settings.n_blocks :]
    share, most, wanted = _HELD_OUT
    n = len(measured)
    n_held_out = max(round(share * n), min(round(most * n), -(-wanted // blocks.shape[1])), 2)
    measured, held_out = measured[:-n_held_out], measured[-n_held_out:]
    return PlanTokens(measured, held_out, np.concatenate([more, measured]))
