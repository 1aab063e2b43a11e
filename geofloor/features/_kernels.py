"""Compiled loops of the sparse training step, each over a range of rows or latents.

Numba compiles a kernel at its first call and caches it for later processes. A kernel releases the interpreter's lock
and starts no threads, so that callers may divide its range between threads of their own, in forked processes too.
Every number is computed by one thread, in an order that does not depend on the ranges: results have the same bits for
any number of threads. Only sums along a row may be reordered by the compiler, in the same way for every row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

ROWS_PER_BLOCK = 32  # of one partial sum over rows
LATENTS_PER_BLOCK = 128  # of one partial sum over latents

_REORDERED = {"reassoc", "contract", "nsz"}  # lets sums use vector instructions, and keeps NaN and infinities


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel, cached on disk if there is a folder to write to."""
    options: dict[str, Any] = {"nogil": True, "fastmath": _REORDERED, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds neither the package's folder nor the user's cache writable
        return njit(**options)(function)


@_compiled
def _kth_largest(values, n, k):
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


@_compiled
def _count_at_least(values, threshold):
    count = np.int32(0)
    for i in range(len(values)):
        count += np.int32(values[i] >= threshold)
    return count


@_compiled
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
    n_latents = preactivations.shape[1]
    tops = np.empty(n_columns, preactivations.dtype)
    found = np.empty(n_latents, np.int32)
    found_values = np.empty(n_latents, preactivations.dtype)
    ranked = np.empty(n_latents, preactivations.dtype)
    zero = preactivations.dtype.type(0)
    half = preactivations.dtype.type(0.5)
    for row in range(start, stop):
        values = preactivations[row]
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
            middle = half * (threshold + highest)
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
        target = first_row + row
        if n_found <= k:
            counts[target] = n_found
            for p in range(n_found):
                latents[target, p] = found[p]
                codes[target, p] = found_values[p]
            continue
        for p in range(n_found):
            ranked[p] = found_values[p]
        least = _kth_largest(ranked, n_found, k)
        n_ties = k
        for p in range(n_found):
            n_ties -= found_values[p] > least
        kept = 0
        for p in range(n_found):
            tied = found_values[p] == least and n_ties > 0
            if found_values[p] > least or tied:
                n_ties -= tied
                latents[target, kept] = found[p]
                codes[target, kept] = found_values[p]
                kept += 1
        counts[target] = k


@_compiled
def decode_and_differentiate(
    centered, decoder, latents, codes, counts, on_error, on_l1, error, on_codes, squares, totals, error_sums,
    start, stop,
):  # fmt: skip
    """Decode rows and compute the gradients of their errors and codes, for blocks of rows.

    Parameters
    ----------
    centered : ndarray of shape (n_batch, n_inputs)
        Inputs less the decoder bias.
    decoder : ndarray of shape (n_latents, n_inputs)
        Directions of the latents.
    latents, codes : ndarrays of shape (n_batch, k)
        Latents kept and their codes.
    counts : ndarray of shape (n_batch,)
        Number of codes kept.
    on_error : scalar
        Factor from an error to its gradient, 2 / n_batch.
    on_l1 : scalar
        Gradient of the penalty on each code, λ / n_batch.
    error : ndarray of shape (n_batch, n_inputs)
        Gradients of the errors, written.
    on_codes : ndarray of shape (n_batch, k)
        Gradients of the codes, written.
    squares, totals : ndarrays of shape (n_batch,)
        Squared error and sum of the codes of each row, written.
    error_sums : ndarray of shape (n_blocks, n_inputs)
        Sum over a block of rows of the gradients of the errors, written.
    start, stop : int
        Blocks to do.
    """
    n_batch, n_inputs = centered.shape
    zero = centered.dtype.type(0)
    for block in range(start, stop):
        block_sum = error_sums[block]
        for c in range(n_inputs):
            block_sum[c] = zero
        for row in range(block * ROWS_PER_BLOCK, min((block + 1) * ROWS_PER_BLOCK, n_batch)):
            x, e, n = centered[row], error[row], counts[row]
            total = zero
            for p in range(n):
                total += codes[row, p]
            totals[row] = total
            for c in range(n_inputs):
                e[c] = -x[c]
            # Four directions at a time read and write the error a quarter as often.
            for p in range(0, n - 3, 4):
                z0, z1, z2, z3 = codes[row, p], codes[row, p + 1], codes[row, p + 2], codes[row, p + 3]
                d0, d1 = decoder[latents[row, p]], decoder[latents[row, p + 1]]
                d2, d3 = decoder[latents[row, p + 2]], decoder[latents[row, p + 3]]
                for c in range(n_inputs):
                    e[c] += (z0 * d0[c] + z1 * d1[c]) + (z2 * d2[c] + z3 * d3[c])
            for p in range(n - n % 4, n):
                z0, d0 = codes[row, p], decoder[latents[row, p]]
                for c in range(n_inputs):
                    e[c] += z0 * d0[c]
            square = zero
            for c in range(n_inputs):
                square += e[c] * e[c]
                e[c] *= on_error
                block_sum[c] += e[c]
            squares[row] = square
            for p in range(0, n - 3, 4):
                d0, d1 = decoder[latents[row, p]], decoder[latents[row, p + 1]]
                d2, d3 = decoder[latents[row, p + 2]], decoder[latents[row, p + 3]]
                s0 = s1 = s2 = s3 = on_l1
                for c in range(n_inputs):
                    s0 += e[c] * d0[c]
                    s1 += e[c] * d1[c]
                    s2 += e[c] * d2[c]
                    s3 += e[c] * d3[c]
                on_codes[row, p], on_codes[row, p + 1], on_codes[row, p + 2], on_codes[row, p + 3] = s0, s1, s2, s3
            for p in range(n - n % 4, n):
                s0, d0 = on_l1, decoder[latents[row, p]]
                for c in range(n_inputs):
                    s0 += e[c] * d0[c]
                on_codes[row, p] = s0


@_compiled
def group_by_latent(latents, codes, on_codes, counts, starts, rows, grouped_codes, grouped_on_codes):
    """Group codes and their gradients by latent, in the order of the rows.

    Parameters
    ----------
    latents, codes, on_codes : ndarrays of shape (n_batch, k)
        Latents kept, their codes and the gradients of the codes.
    counts : ndarray of shape (n_batch,)
        Number of codes kept.
    starts : ndarray of shape (n_latents + 1,), int64
        First position of each latent in the arrays below, written.
    rows, grouped_codes, grouped_on_codes : ndarrays of shape (n_batch · k,)
        Row of the batch, code and gradient, written.
    """
    n_latents = len(starts) - 1
    starts[:] = 0
    for row in range(len(counts)):
        for p in range(counts[row]):
            starts[latents[row, p] + 1] += 1
    for j in range(n_latents):
        starts[j + 1] += starts[j]
    free = starts.copy()
    for row in range(len(counts)):
        for p in range(counts[row]):
            latent = latents[row, p]
            position = free[latent]
            free[latent] = position + 1
            rows[position] = row
            grouped_codes[position] = codes[row, p]
            grouped_on_codes[position] = on_codes[row, p]


@_compiled
def sum_gradients(
    centered, error, encoder, decoder, starts, rows, codes, on_codes, on_encoder, on_bias, on_decoder, is_written,
    bias_sums, squares, start, stop,
):  # fmt: skip
    """Sum the gradients of the weights of each latent, and project those of its direction, for blocks of latents.

    Parameters
    ----------
    centered, error : ndarrays of shape (n_batch, n_inputs)
        Inputs less the decoder bias, and gradients of the errors.
    encoder, decoder : ndarrays of shape (n_latents, n_inputs)
        Weights.
    starts, rows, codes, on_codes : ndarrays
        Result of `group_by_latent`.
    on_encoder, on_bias, on_decoder : ndarrays of shape (n_latents, n_inputs), (n_latents,), (n_latents, n_inputs)
        Gradients, written.
    is_written : ndarray of shape (n_latents,), bool
        Whether the gradients of a latent are other than zero, changed in place.
    bias_sums : ndarray of shape (n_blocks, n_inputs)
        Gradient of the decoder bias through the encoder, summed over a block, written.
    squares : ndarray of shape (n_latents,)
        Squared norm of the gradients of each latent, written.
    start, stop : int
        Blocks to do.
    """
    n_latents, n_inputs = decoder.shape
    zero = centered.dtype.type(0)
    for block in range(start, stop):
        block_sum = bias_sums[block]
        for c in range(n_inputs):
            block_sum[c] = zero
        for j in range(block * LATENTS_PER_BLOCK, min((block + 1) * LATENTS_PER_BLOCK, n_latents)):
            first, last = starts[j], starts[j + 1]
            on_e, on_d, w, d = on_encoder[j], on_decoder[j], encoder[j], decoder[j]
            if is_written[j] or last > first:
                for c in range(n_inputs):
                    on_e[c] = zero
                    on_d[c] = zero
            is_written[j] = last > first
            total = square = along = zero
            n_pairs = (last - first) // 2
            for q in range(n_pairs):
                p = first + 2 * q
                z0, z1, g0, g1 = codes[p], codes[p + 1], on_codes[p], on_codes[p + 1]
                x0, x1, e0, e1 = centered[rows[p]], centered[rows[p + 1]], error[rows[p]], error[rows[p + 1]]
                total += g0 + g1
                for c in range(n_inputs):
                    on_e[c] += g0 * x0[c] + g1 * x1[c]
                    on_d[c] += z0 * e0[c] + z1 * e1[c]
            for p in range(first + 2 * n_pairs, last):
                z0, g0, x0, e0 = codes[p], on_codes[p], centered[rows[p]], error[rows[p]]
                total += g0
                for c in range(n_inputs):
                    on_e[c] += g0 * x0[c]
                    on_d[c] += z0 * e0[c]
            on_bias[j] = total
            if last > first:
                for c in range(n_inputs):
                    along += on_d[c] * d[c]
                    block_sum[c] -= total * w[c]
                square = total * total
                for c in range(n_inputs):
                    on_d[c] -= along * d[c]
                    square += on_d[c] * on_d[c] + on_e[c] * on_e[c]
            squares[j] = square


@_compiled
def _adam(parameter, gradient, moment, second_moment, is_zero, constants):
    """Take a step of Adam on a row of weights, in place; see `take_adam_step`."""
    beta1, beta2, eps = constants[0], constants[1], constants[2]
    step_size, root, clip = constants[3], constants[4], constants[5]
    one = parameter.dtype.type(1)
    if is_zero:
        for c in range(len(parameter)):
            m = beta1 * moment[c]
            v = beta2 * second_moment[c]
            moment[c] = m
            second_moment[c] = v
            parameter[c] -= step_size * m / (np.sqrt(v) * root + eps)
    else:
        for c in range(len(parameter)):
            g = clip * gradient[c]
            m = moment[c] + (one - beta1) * (g - moment[c])
            v = beta2 * second_moment[c] + (one - beta2) * g * g
            moment[c] = m
            second_moment[c] = v
            parameter[c] -= step_size * m / (np.sqrt(v) * root + eps)


@_compiled
def take_adam_step(
    encoder, on_encoder, encoder_moment, encoder_second, bias, on_bias, bias_moment, bias_second,
    decoder, on_decoder, decoder_moment, decoder_second, is_written, constants, start, stop,
):  # fmt: skip
    """Take a step of Adam on the weights of latents, in place, and scale their directions to unit norm.

    The moments of latents without a gradient decay as with dense gradients.

    Parameters
    ----------
    encoder, on_encoder, encoder_moment, encoder_second : ndarrays of shape (n_latents, n_inputs)
        Weights, gradients, and means of the gradients and of their squares.
    bias, on_bias, bias_moment, bias_second : ndarrays of shape (n_latents,)
        The same of the encoder bias.
    decoder, on_decoder, decoder_moment, decoder_second : ndarrays of shape (n_latents, n_inputs)
        The same of the directions.
    is_written : ndarray of shape (n_latents,), bool
        Whether the gradients of a latent are other than zero.
    constants : ndarray of shape (6,)
        Adam's two decay rates and its ε, the step size corrected for bias, the inverse root of the second correction,
        and the factor of clipping.
    start, stop : int
        Latents to do.
    """
    for j in range(start, stop):
        is_zero = not is_written[j]
        _adam(encoder[j], on_encoder[j], encoder_moment[j], encoder_second[j], is_zero, constants)
        d = decoder[j]
        _adam(d, on_decoder[j], decoder_moment[j], decoder_second[j], is_zero, constants)
        square = decoder.dtype.type(0)
        for c in range(len(d)):
            square += d[c] * d[c]
        norm = np.sqrt(square)
        for c in range(len(d)):
            d[c] /= norm
    _adam(bias[start:stop], on_bias[start:stop], bias_moment[start:stop], bias_second[start:stop], False, constants)


@_compiled
def take_adam_step_on_vector(parameter, gradient, moment, second_moment, constants):
    """Take a step of Adam on a vector, in place; see `take_adam_step`."""
    _adam(parameter, gradient, moment, second_moment, False, constants)
