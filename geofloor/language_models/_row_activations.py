"""Activations of rows of token ids, without padding and skipped positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from geofloor.language_models._extractor import ActivationExtractor
from geofloor.language_models._positions import Positions
from geofloor.language_models._token_rows import TokenRows


def row_activations(
    extractor: ActivationExtractor, rows: TokenRows, *, skip_first: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Stream the activations of all rows.

    Parameters
    ----------
    extractor : ActivationExtractor
        Fitted, with the same `skip_first` and `batch_size`.
    rows : TokenRows
        Token ids.
    skip_first : int
        Positions left out at the start of each sequence.
    batch_size : int
        Sequences per forward pass.

    Yields
    ------
    activations : ndarray of shape (n_tokens, d_model), float32
        At least one row.

    Raises
    ------
    ValueError
        If all sequences are too short.
    """
    longest, found = 0, False
    positions = Positions(skip_first, extractor.exclude_tokens_)
    for start in range(0, len(rows), 64 * batch_size):
        batch = rows.take(np.arange(start, min(start + 64 * batch_size, len(rows))))
        lengths = np.full(len(batch.ids), rows.length) if batch.mask is None else batch.mask.sum(axis=1)
        longest = max(longest, lengths.max())
        used = [ids[:n] for ids, n in zip(batch.ids, lengths, strict=True) if positions.count(ids[:n])]
        if used:
            found = True
            yield from extractor.iter_batches(used)
    if not found:
        raise (
            too_short(skip_first, longest)
            if longest <= skip_first
            else ValueError(
                "exclude_tokens leaves no position of any sequence; exclude fewer tokens, or give other text."
            )
        )


def too_short(skip_first: int, length: int) -> ValueError:
    """Return the error for sequences without a position after the skipped ones."""
    return ValueError(
        f"skip_first={skip_first} leaves nothing of sequences of {length} tokens; lower it, or give longer sequences."
    )
