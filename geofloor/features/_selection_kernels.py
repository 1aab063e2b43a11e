"""Compiled loops that choose the codes to keep, each over a range of rows.

They follow the rules of `geofloor.features._kernels`. Pre-activations in bfloat16 come as their bits, int16: positive
numbers have the order of their bits, and negative numbers have negative bits.
"""

from __future__ import annotations

import numpy as np

from geofloor.features._kernels import compiled

_VALUES_PER_BLOCK = 64  # looked at together, because most blocks hold no value to keep


@compiled
def kth_largest(values, n, k):
    """Find the k-th largest of the first n values by quickselect, which reorders them."""
    low, high, wanted = 0, n - 1, k - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return values[wanted]


@compiled
def _count_at_least(values, threshold):
    count = np.int32(0)
    for i in range(len(values)):
        count += np.int32(values[i] >= threshold)
    return count


@compiled
def _select_from_row(values, k, tops, found, found_values, ranked, latents, codes):
    """Keep the k largest values of a row that are above zero, and return their number; see `select_largest`."""
    n_latents, n_columns, scalar = len(values), len(tops), values.dtype.type
    zero = scalar(0)
    for j in range(n_columns):
        tops[j] = values[j]
    for base in range(n_columns, n_latents, n_columns):
        line = values[base : min(base + n_columns, n_latents)]
        for j in range(len(line)):
            tops[j] = max(tops[j], line[j])
    # The threshold stays one that at least k columns reach, or zero.
    threshold = zero
    highest = zero
    for j in range(n_columns):
        highest = max(highest, tops[j])
    for _ in range(12):
        middle = scalar(0.5 * (float(threshold) + float(highest)))
        n_reached = _count_at_least(tops, middle)
        if n_reached >= k:
            threshold = middle
            if n_reached <= k + k // 8:
                break
        else:
            highest = middle
    n_found = 0
    for j in range(n_columns):
        if tops[j] >= threshold:
            for latent in range(j, n_latents, n_columns):
                value = values[latent]
                if value >= threshold and value > zero:
                    found[n_found] = latent
                    found_values[n_found] = value
                    n_found += 1
    if n_found <= k:
        for p in range(n_found):
            latents[p] = found[p]
            codes[p] = found_values[p]
        return n_found
    for p in range(n_found):
        ranked[p] = found_values[p]
    least = kth_largest(ranked, n_found, k)
    n_ties = k
    for p in range(n_found):
        n_ties -= found_values[p] > least
    kept = 0
    for p in range(n_found):
        tied = found_values[p] == least and n_ties > 0
        if found_values[p] > least or tied:
            n_ties -= tied
            latents[kept] = found[p]
            codes[kept] = found_values[p]
            kept += 1
    return k


@compiled
def select_largest(preactivations, first_row, k, n_columns, latents, codes, counts, start, stop):
    """Keep, for each row of pre-activations, the k largest that are above zero.

    The row is seen as a table of `n_columns` columns. At least k values reach any threshold that is reached by the
    largest values of k columns. Bisection finds such a threshold. Only the columns that reach it are searched.

    Parameters
    ----------
    preactivations : ndarray of shape (n_rows, n_latents)
        Pre-activations of a piece of the batch.
    first_row : int
        Position of the piece in the batch.
    k : int
        Codes to keep.
    n_columns : int
        Columns of the table, at least k unless there are fewer latents.
    latents, codes : ndarrays of shape (n_batch, k)
        Latents kept and their codes, written.
    counts : ndarray of shape (n_batch,)
        Number of codes kept, written.
    start, stop : int
        Rows of the piece to do.
    """
    n_latents, dtype = preactivations.shape[1], preactivations.dtype
    tops, found = np.empty(n_columns, dtype), np.empty(n_latents, np.int32)
    found_values, ranked = np.empty(n_latents, dtype), np.empty(n_latents, dtype)
    for row in range(start, stop):
        to = first_row + row
        counts[to] = _select_from_row(
            preactivations[row], k, tops, found, found_values, ranked, latents[to], codes[to]
        )  # fmt: skip


@compiled
def select_largest_among(preactivations, chosen, first_row, k, n_columns, latents, codes, counts, start, stop):
    """Keep, for each row of pre-activations, the k largest of chosen latents that are above zero.

    Parameters
    ----------
    preactivations : ndarray of shape (n_rows, n_latents)
        Pre-activations of a piece of the batch.
    chosen : ndarray of shape (n_chosen,)
        Latents to choose from.
    first_row, k, n_columns, latents, codes, counts, start, stop
        As in `select_largest`; there are at least k chosen latents.
    """
    n_chosen, dtype = len(chosen), preactivations.dtype
    values, tops, found = np.empty(n_chosen, dtype), np.empty(n_columns, dtype), np.empty(n_chosen, np.int32)
    found_values, ranked = np.empty(n_chosen, dtype), np.empty(n_chosen, dtype)
    for row in range(start, stop):
        to = first_row + row
        for j in range(n_chosen):
            values[j] = preactivations[row, chosen[j]]
        kept = latents[to]
        counts[to] = _select_from_row(values, k, tops, found, found_values, ranked, kept, codes[to])
        for p in range(counts[to]):
            kept[p] = chosen[kept[p]]


@compiled
def count_above(preactivations, bound, counts, start, stop):
    """Count, for each row of pre-activations, (n_rows, n_latents), the values above a bound.

    Parameters
    ----------
    preactivations : ndarray of shape (n_rows, n_latents)
        Pre-activations of a piece of the batch.
    bound : scalar
        The bound, at least 0.
    counts : ndarray of shape (n_rows,), int32
        Number of values above it, written.
    start, stop : int
        Rows to do.
    """
    for row in range(start, stop):
        values = preactivations[row]
        count = np.int32(0)
        for j in range(len(values)):
            count += np.int32(values[j] > bound)
        counts[row] = count


@compiled
def collect_above(preactivations, bound, firsts, latents, values, start, stop):
    """Copy, for each row of pre-activations, the values above a bound, in the order of the latents.

    Parameters
    ----------
    preactivations : ndarray of shape (n_rows, n_latents)
        Pre-activations of a piece of the batch.
    bound : scalar
        The bound, at least 0.
    firsts : ndarray of shape (n_rows,), int64
        Position of the first value of each row.
    latents, values : ndarrays of shape (n_codes,)
        Latents and values, written.
    start, stop : int
        Rows to do.
    """
    n_latents = preactivations.shape[1]
    for row in range(start, stop):
        position = firsts[row]
        for base in range(0, n_latents, _VALUES_PER_BLOCK):
            block = preactivations[row, base : min(base + _VALUES_PER_BLOCK, n_latents)]
            n_above = np.int32(0)
            for j in range(len(block)):
                n_above += np.int32(block[j] > bound)
            if n_above == 0:
                continue
            for j in range(len(block)):
                if block[j] > bound:
                    latents[position] = base + j
                    values[position] = block[j]
                    position += 1


@compiled
def drop_to(bound, latents, values, firsts, counts):
    """Drop the codes up to a bound, in place, move the others together, and return their number.

    Parameters
    ----------
    bound : scalar
        The bound.
    latents, values : ndarrays of shape (n_codes,)
        Latents and codes, changed.
    firsts, counts : ndarrays of shape (n_rows,)
        Position of the first code of each row, and number of its codes, changed.
    """
    n_kept = 0
    for row in range(len(counts)):
        first, last = firsts[row], firsts[row] + counts[row]
        firsts[row] = n_kept
        for p in range(first, last):
            if values[p] > bound:
                latents[n_kept] = latents[p]
                values[n_kept] = values[p]
                n_kept += 1
        counts[row] = n_kept - firsts[row]
    return n_kept


@compiled
def encode_kept(centered, encoder, bias, latents, firsts, counts, values, start, stop):
    """Compute the pre-activations of kept latents, for a range of rows.

    Parameters
    ----------
    centered : ndarray of shape (n_rows, n_inputs)
        Inputs less the decoder bias.
    encoder : ndarray of shape (n_latents, n_inputs)
        Encoder weight.
    bias : ndarray of shape (n_latents,)
        Encoder bias.
    latents : ndarray of shape (n_codes,)
        Latents kept.
    firsts, counts : ndarrays of shape (n_rows,)
        Position of the first code of each row, and number of its codes.
    values : ndarray of shape (n_codes,)
        Pre-activations, written.
    start, stop : int
        Rows to do.
    """
    n_inputs = centered.shape[1]
    for row in range(start, stop):
        x, n, first = centered[row], counts[row], firsts[row]
        j, z = latents[first : first + n], values[first : first + n]
        for p in range(0, n - 3, 4):
            w0, w1, w2, w3 = encoder[j[p]], encoder[j[p + 1]], encoder[j[p + 2]], encoder[j[p + 3]]
            s0, s1, s2, s3 = bias[j[p]], bias[j[p + 1]], bias[j[p + 2]], bias[j[p + 3]]
            for c in range(n_inputs):
                s0 += x[c] * w0[c]
                s1 += x[c] * w1[c]
                s2 += x[c] * w2[c]
                s3 += x[c] * w3[c]
            z[p], z[p + 1], z[p + 2], z[p + 3] = s0, s1, s2, s3
        for p in range(n - n % 4, n):
            s0, w0 = bias[j[p]], encoder[j[p]]
            for c in range(n_inputs):
                s0 += x[c] * w0[c]
            z[p] = s0
