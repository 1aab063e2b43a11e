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


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel, cached on disk if there is a folder to write to."""
    options: dict[str, Any] = {"nogil": True, "fastmath": _REORDERED, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds neither the package's folder nor the user's cache writable
        return njit(**options)(function)


@compiled
def decode_and_differentiate(
    targets, decoder, latents, codes, firsts, counts, on_error, on_l1, error, on_codes, squares, totals, error_sums,
    start, stop,
):  # fmt: skip
    """Decode rows and compute the gradients of their errors and codes, for blocks of rows.

    Parameters
    ----------
    targets : ndarray of shape (n_batch, n_inputs)
        Rows to reconstruct without the decoder bias.
    decoder : ndarray of shape (n_latents, n_inputs)
        Directions of the latents.
    latents, codes : ndarrays of shape (n_codes,)
        Latents kept and their codes.
    firsts, counts : ndarrays of shape (n_batch,)
        Position of the first code of each row, and number of its codes.
    on_error : scalar
        Factor from an error to its gradient, such as 2 / n_batch.
    on_l1 : scalar
        Gradient of the penalty on each code, λ / n_batch.
    error : ndarray of shape (n_batch, n_inputs)
        Gradients of the errors, written.
    on_codes : ndarray of shape (n_codes,)
        Gradients of the codes, written.
    squares, totals : ndarrays of shape (n_batch,)
        Squared error and sum of the codes of each row, written.
    error_sums : ndarray of shape (n_blocks, n_inputs)
        Sum over a block of rows of the gradients of the errors, written.
    start, stop : int
        Blocks to do.
    """
    n_batch, n_inputs = targets.shape
    zero = targets.dtype.type(0)
    for block in range(start, stop):
        block_sum = error_sums[block]
        for c in range(n_inputs):
            block_sum[c] = zero
        for row in range(block * ROWS_PER_BLOCK, min((block + 1) * ROWS_PER_BLOCK, n_batch)):
            x, e, n, first = targets[row], error[row], counts[row], firsts[row]
            j, z, on_z = latents[first : first + n], codes[first : first + n], on_codes[first : first + n]
            total = zero
            for p in range(n):
                total += z[p]
            totals[row] = total
            for c in range(n_inputs):
                e[c] = -x[c]
            # Four directions at a time read and write the error a quarter as often.
            for p in range(0, n - 3, 4):
                z0, z1, z2, z3 = z[p], z[p + 1], z[p + 2], z[p + 3]
                d0, d1, d2, d3 = decoder[j[p]], decoder[j[p + 1]], decoder[j[p + 2]], decoder[j[p + 3]]
                for c in range(n_inputs):
                    e[c] += (z0 * d0[c] + z1 * d1[c]) + (z2 * d2[c] + z3 * d3[c])
            for p in range(n - n % 4, n):
                z0, d0 = z[p], decoder[j[p]]
                for c in range(n_inputs):
                    e[c] += z0 * d0[c]
            square = zero
            for c in range(n_inputs):
                square += e[c] * e[c]
                e[c] *= on_error
                block_sum[c] += e[c]
            squares[row] = square
            for p in range(0, n - 3, 4):
                d0, d1, d2, d3 = decoder[j[p]], decoder[j[p + 1]], decoder[j[p + 2]], decoder[j[p + 3]]
                s0 = s1 = s2 = s3 = on_l1
                for c in range(n_inputs):
                    s0 += e[c] * d0[c]
                    s1 += e[c] * d1[c]
                    s2 += e[c] * d2[c]
                    s3 += e[c] * d3[c]
                on_z[p], on_z[p + 1], on_z[p + 2], on_z[p + 3] = s0, s1, s2, s3
            for p in range(n - n % 4, n):
                s0, d0 = on_l1, decoder[j[p]]
                for c in range(n_inputs):
                    s0 += e[c] * d0[c]
                on_z[p] = s0


@compiled
def group_by_latent(
    latents, codes, on_codes, firsts, counts, n_batch, starts, firings, rows, grouped_codes, grouped_on_codes
):
    """Group codes and their gradients by latent, in the order of the rows.

    Parameters
    ----------
    latents, codes, on_codes : ndarrays of shape (n_codes,)
        Latents kept, their codes and the gradients of the codes.
    firsts, counts : ndarrays of shape (n_rows,)
        Position of the first code of each row, and number of its codes. Rows from `n_batch` on are those of the
        auxiliary loss.
    n_batch : int
        Rows of the batch.
    starts : ndarray of shape (n_latents + 1,), int64
        First position of each latent in the arrays below, written.
    firings : ndarray of shape (n_latents,), int64
        Number of rows of the batch with a code of each latent, written.
    rows, grouped_codes, grouped_on_codes : ndarrays of shape (n_codes,)
        Row, code and gradient, written.
    """
    n_latents = len(firings)
    starts[:] = 0
    for row in range(len(counts)):
        for p in range(firsts[row], firsts[row] + counts[row]):
            starts[latents[p] + 1] += 1
        if row == n_batch - 1:
            firings[:] = starts[1:]
    for j in range(n_latents):
        starts[j + 1] += starts[j]
    free = starts.copy()
    for row in range(len(counts)):
        for p in range(firsts[row], firsts[row] + counts[row]):
            latent = latents[p]
            position = free[latent]
            free[latent] = position + 1
            rows[position] = row
            grouped_codes[position] = codes[p]
            grouped_on_codes[position] = on_codes[p]


@compiled
def sum_gradients(
    centered, error, encoder, decoder, starts, rows, codes, on_codes, on_encoder, on_bias, on_decoder, is_written,
    bias_sums, squares, start, stop,
):  # fmt: skip
    """Sum the gradients of the weights of each latent, and project those of its direction, for blocks of latents.

    Parameters
    ----------
    centered : ndarray of shape (n_batch, n_inputs)
        Inputs less the decoder bias.
    error : ndarray of shape (n_batch, n_inputs) or (2 · n_batch, n_inputs)
        Gradients of the errors, and of those of the auxiliary loss.
    encoder, decoder : ndarrays of shape (n_latents, n_inputs)
        Weights.
    starts, rows, codes, on_codes : ndarrays
        Result of `group_by_latent`.
    on_encoder, on_bias, on_decoder : ndarrays of shape (n_latents, n_inputs), (n_latents,), (n_latents, n_inputs)
        Gradients, written.
    is_written : ndarray of shape (n_latents,), bool
        Whether the gradients of a latent are other than zero, changed in place.
    bias_sums : ndarray of shape (n_blocks, n_inputs)
        Gradient of the decoder bias through the encoder, summed over a block, written. The auxiliary loss has none.
    squares : ndarray of shape (n_latents,)
        Squared norm of the gradients of each latent, written.
    start, stop : int
        Blocks to do.
    """
    n_latents, n_inputs = decoder.shape
    n_batch = len(centered)
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
            total = auxiliary = square = along = zero
            n_pairs = (last - first) // 2
            for q in range(n_pairs):
                p = first + 2 * q
                r0, r1 = rows[p], rows[p + 1]
                z0, z1, g0, g1, e0, e1 = codes[p], codes[p + 1], on_codes[p], on_codes[p + 1], error[r0], error[r1]
                total += g0 + g1
                if r1 >= n_batch:  # rows of the auxiliary loss come last
                    auxiliary += g1
                    r1 -= n_batch
                if r0 >= n_batch:
                    auxiliary += g0
                    r0 -= n_batch
                x0, x1 = centered[r0], centered[r1]
                for c in range(n_inputs):
                    on_e[c] += g0 * x0[c] + g1 * x1[c]
                    on_d[c] += z0 * e0[c] + z1 * e1[c]
            for p in range(first + 2 * n_pairs, last):
                r0, z0, g0, e0 = rows[p], codes[p], on_codes[p], error[rows[p]]
                total += g0
                if r0 >= n_batch:
                    auxiliary += g0
                    r0 -= n_batch
                x0 = centered[r0]
                for c in range(n_inputs):
                    on_e[c] += g0 * x0[c]
                    on_d[c] += z0 * e0[c]
            on_bias[j] = total
            if last > first:
                for c in range(n_inputs):
                    along += on_d[c] * d[c]
                    block_sum[c] -= (total - auxiliary) * w[c]
                square = total * total
                for c in range(n_inputs):
                    on_d[c] -= along * d[c]
                    square += on_d[c] * on_d[c] + on_e[c] * on_e[c]
            squares[j] = square


@compiled
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


@compiled
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


@compiled
def take_adam_step_on_vector(parameter, gradient, moment, second_moment, constants):
    """Take a step of Adam on a vector, in place; see `take_adam_step`."""
    _adam(parameter, gradient, moment, second_moment, False, constants)
