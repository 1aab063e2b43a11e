"""From text to tokens to activations of a language model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def token_blocks(
    texts: Iterable[str], tokenizer: Any, *, length: int, max_blocks: int | None = None
) -> np.ndarray:
    """Tokenise texts, join them with the end-of-text token and cut the stream into blocks.

    Parameters
    ----------
    texts : iterable of str
        Documents; an iterator is read only as far as needed.
    tokenizer : PreTrainedTokenizerBase
        A ``transformers`` tokenizer with an end-of-text token.
    length : int
        Tokens a block. What is left over at the end is dropped.
    max_blocks : int or None, default=None
        Stop after this many blocks.

    Returns
    -------
    tokens : ndarray of shape (n_sequences, length), int64
        Token ids.

    Raises
    ------
    ValueError
        If `length` is below 2, the tokenizer has no end-of-text token, or the texts give no block.
    """
    if length < 2:
        raise ValueError(f"length={length!r}: a block needs at least 2 tokens.")
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer has no eos_token, which separates documents; set tokenizer.eos_token.")
    blocks: list[np.ndarray] = []
    rest = np.empty(0, dtype=np.int64)
    for text in texts:
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        rest = np.concatenate([rest, np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int64)])
        n_whole = len(rest) // length
        if n_whole:
            blocks.append(rest[: n_whole * length].reshape(n_whole, length))
            rest = rest[n_whole * length :]
        if max_blocks is not None and sum(map(len, blocks)) >= max_blocks:
            break
    if not blocks:
        raise ValueError(f"texts hold fewer than length={length} tokens; give more text or shorter blocks.")
    return np.concatenate(blocks)[:max_blocks]
