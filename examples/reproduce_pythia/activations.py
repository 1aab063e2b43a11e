"""
Activations on the fly
======================

Stored, 300M activations of 1,024 dimensions would take 1.2 TB.
"""

from itertools import islice

import numpy as np


class Activations:
    """Stream of the activations of sequences, taken in a given order.

    Each batch has about `n_rows` activations. A resumed `SparseAutoencoder` calls `iter_from`: the teacher does not
    run again on sequences already trained on.
    """

    def __init__(self, extractor, sequences, order, n_rows):
        self.extractor, self.sequences, self.order = extractor, sequences, order
        self.per_sequence = sequences.shape[1] - extractor.skip_first
        self.per_batch = max(n_rows // self.per_sequence, 1)  # sequences

    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, row):
        """Yield the batches from a row on.

        The forward passes are those of a run from the first row, because other batches could give other bits.
        """
        n_skipped, left_out = divmod(row, self.per_batch * self.per_sequence)
        for start in range(n_skipped * self.per_batch, len(self.order), self.per_batch):
            chosen = self.order[start : start + self.per_batch]
            yield self.extractor.transform(self.sequences[chosen])[left_out:]
            left_out = 0

    def first(self, n_batches):
        """Return the first batches as one array."""
        return np.concatenate(list(islice(self, n_batches)))
