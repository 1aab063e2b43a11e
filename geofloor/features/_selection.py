"""Encode a batch and choose the codes to keep, a piece of the pre-activations at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from geofloor._training.products import linear
from geofloor.features._kept_codes import AbovePerBatch, KeptCodes, LargestPerRow, drop_to, nth_largest
from geofloor.features._precision import rounded
from geofloor.features._sparse_step import Parameters
from geofloor.features._threads import KernelThreads

_PREACTIVATIONS_AT_A_TIME = 2**22  # 16 MiB in float32: smaller products are slower, larger pieces leave the cache
_BF16_AT_A_TIME = 2**23
_GUESS = 0.8  # of the last cutoff, safely below the next one
_PROBED = 32  # a batch over this is the number of rows on which ReLU's codes are counted first
_LATENTS_PER_CODE = 8  # of ReLU; with more codes, dense products are about as fast on some CPUs


class Selection:
    """Rule for the codes to keep.

    Parameters
    ----------
    parameters : Parameters
        Weights on a CPU.
    threads : KernelThreads
        Threads to use.
    activation : {"topk", "batchtopk", "relu"}
        The `l0` largest codes of each row, the largest of a batch, `l0` per row on average, or all above zero.
    l0 : int
        Number of codes per row, without effect on ReLU.
    precision : {"float32", "bf16"}
        Precision of the encoder's product. With ``"bf16"`` it proposes the codes, which are then computed again from
        the weights as they are, so that rounding changes only which codes are kept.

    Attributes
    ----------
    cutoff : float
        Largest code that the last selection of BatchTopK left out; 0 if it left out none.
    """

    def __init__(
        self, parameters: Parameters, threads: KernelThreads, *, activation: str, l0: int, precision: str
    ) -> None:
        self._parameters = parameters
        self._threads = threads
        self._activation = activation
        self._l0 = l0
        self._precision = precision
        # Of pre-activations: bits stand for numbers in bfloat16, which NumPy does not have.
        self._dtype = np.dtype(np.int16) if precision == "bf16" else parameters.encoder_bias.numpy().dtype
        self.cutoff = 0.0

    def select(self, centered: torch.Tensor, dead: torch.Tensor | None) -> tuple[KeptCodes, KeptCodes | None] | None:
        """Choose the codes to keep of inputs less the decoder bias, and those of the auxiliary loss.

        Parameters
        ----------
        centered : Tensor of shape (n_rows, n_inputs)
            Inputs less the decoder bias.
        dead : Tensor of shape (n_latents,), bool, or None
            Mask of the latents of the auxiliary loss, at least one; None for no loss.

        Returns
        -------
        kept : KeptCodes
            Codes of the rows.
        of_dead : KeptCodes or None
            For each row, the n_inputs // 2 largest codes of dead latents; None if `dead` is None.

        The result is None if ReLU has so many codes that dense products are faster. Only weights and inputs decide.
        """
        n_rows, n_inputs = centered.shape
        of_dead = None
        if dead is not None:
            latents = np.flatnonzero(dead.numpy()).astype(np.int32)
            k = min(len(latents), max(n_inputs // 2, 1))
            of_dead = LargestPerRow(n_rows, k, self._dtype, self._threads, latents)
        choose = {"topk": self._of_rows, "batchtopk": self._of_batch, "relu": self._positive}[self._activation]
        kept = choose(centered, of_dead)
        if kept is None:
            return None
        return kept, None if of_dead is None else self._exact(centered, of_dead.finish())

    def _of_rows(self, centered: torch.Tensor, of_dead: LargestPerRow | None) -> KeptCodes:
        """Choose the largest codes of each row."""
        kept = LargestPerRow(len(centered), self._l0, self._dtype, self._threads)
        for piece in self._encode(centered, of_dead):
            kept.add(*piece)
        return self._exact(centered, kept.finish())

    def _of_batch(self, centered: torch.Tensor, of_dead: LargestPerRow | None) -> KeptCodes:
        """Choose the largest codes of the batch: those above the largest of the others."""
        n_wanted = self._l0 * len(centered) + 1
        guess = self._as_preactivation(_GUESS * self.cutoff)
        kept = AbovePerBatch(self._threads, guess, n_wanted)
        for piece in self._encode(centered, of_dead):
            kept.add(*piece)
        if guess > 0 and kept.n_codes < n_wanted:  # the guess was too high
            kept = AbovePerBatch(self._threads, self._dtype.type(0), n_wanted)
            for piece in self._encode(centered, None):
                kept.add(*piece)
        codes = self._exact(centered, kept.finish())
        cutoff = nth_largest(codes, n_wanted) if len(codes.values) >= n_wanted else codes.values.dtype.type(0)
        self.cutoff = float(cutoff)
        return drop_to(codes, cutoff)

    def _positive(self, centered: torch.Tensor, of_dead: LargestPerRow | None) -> KeptCodes | None:
        """Choose the codes above zero; None if they are too many."""
        n_rows, n_latents = len(centered), len(self._parameters.encoder_bias)
        n_probed = -(-n_rows // _PROBED)
        kept = AbovePerBatch(self._threads, self._dtype.type(0))
        for piece in self._encode(centered, of_dead, n_probed):
            kept.add(*piece)
            # Rows that fire more often than the first ones are let pass, so that few products are done in vain.
            n_compared = n_probed if piece[0] == 0 else 2 * n_rows
            if _LATENTS_PER_CODE * kept.n_codes > n_latents * n_compared:
                return None
        return self._exact(centered, kept.finish())

    def _as_preactivation(self, number: float) -> Any:
        """Round a number, at least 0, to a pre-activation."""
        if self._precision == "bf16":
            return np.int16(np.float32(number).view(np.int32) >> 16)
        return self._dtype.type(number)

    def _exact(self, centered: torch.Tensor, kept: KeptCodes) -> KeptCodes:
        """Compute codes again that were chosen in bfloat16, and drop those that are not above zero."""
        if self._precision != "bf16":
            return kept
        from geofloor.features import _selection_kernels as kernels

        x, weight, bias = (each.numpy() for each in (centered, *self._parameters[:2]))
        kept = kept._replace(values=np.empty(len(kept.values), x.dtype))
        work = kept.values.size * x.shape[1]
        self._threads.divide(kernels.encode_kept, (x, weight, bias, kept.latents, *kept[2:], kept.values), len(x), work)
        return drop_to(kept, x.dtype.type(0))

    def _encode(
        self, centered: torch.Tensor, of_dead: LargestPerRow | None, n_in_first: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield pieces of the pre-activations, each with its first row, and add them to the codes of dead latents."""
        is_rounded = self._precision == "bf16"
        rows, weight, bias = (rounded(self._precision, each) for each in (centered, *self._parameters[:2]))
        piece = max((_BF16_AT_A_TIME if is_rounded else _PREACTIVATIONS_AT_A_TIME) // len(bias), 1)
        first, last = 0, min(n_in_first or piece, piece)
        while first < len(rows):
            preactivations = linear(rows[first:last], weight, bias)
            numbers = (preactivations.view(torch.int16) if is_rounded else preactivations).numpy()
            if of_dead is not None:
                of_dead.add(first, numbers)
            yield first, numbers
            first, last = last, last + piece
