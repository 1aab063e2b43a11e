"""Training step of TopK on CPUs: only the encoder's product is dense.

Selection, decoding, gradients and Adam run over the chosen latents in the kernels of `geofloor.features._kernels`.
Gradients and weights equal those of the dense step of `geofloor.features._trainer` up to rounding.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch

from geofloor._training.products import linear
from geofloor.features._autoencoder_settings import Settings
from geofloor.features._sparse_step import Parameters, StepResult, initialize_parameters

_PREACTIVATIONS_AT_A_TIME = 2**22  # 16 MiB in float32: smaller products are slower, larger pieces leave the cache
_WORTH = 4  # latents per kept code; with fewer, dense products are about as fast
_WORTH_THREADS = 2**19  # multiplications of a kernel; with fewer, waking threads takes longer
_TASKS_PER_THREAD = 4  # so that a thread that is held up leaves work to the others


def takes_sparse_step(settings: Settings, device: torch.device) -> bool:
    """Tell whether `SparseStep` trains fits of these settings.

    The answer is the same throughout a fit, so that a resumed one has the same bits.
    """
    kept = settings.l0_per_row
    return kept is not None and device.type == "cpu" and _WORTH * kept <= settings.n_latents


@functools.cache
def compile_kernels() -> None:
    """Compile the kernels for float32, or load them from numba's cache, by a step of a small autoencoder."""
    generator = torch.Generator().manual_seed(0)
    parameters = initialize_parameters(16, torch.zeros(2), generator)
    optimizer = torch.optim.Adam(list(parameters))
    with SparseStep(parameters, optimizer, l0=2) as take:
        take(torch.randn(4, 2, generator=generator))


class SparseStep:
    """Steps of one fit, with their threads and with the memory of the gradients.

    A step uses as many threads as torch. They belong to this object, and a fit in a forked process has its own.

    Parameters
    ----------
    parameters : Parameters
        Weights on a CPU, changed in place by each step.
    optimizer : torch.optim.Adam
        Optimizer of the weights. Its moments are used and changed as by its own step.
    l0 : int
        Number of codes to keep per row.
    l1_coefficient : float
        Penalty λ on the codes.
    clip_norm : float or None
        Largest joint norm of the gradients; None for no clipping.
    """

    def __init__(
        self,
        parameters: Parameters,
        optimizer: torch.optim.Adam,
        *,
        l0: int,
        l1_coefficient: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self._parameters = parameters
        self._optimizer = optimizer
        self._l0 = l0
        self._l1_coefficient = l1_coefficient
        self._clip_norm = clip_norm
        self._gradients = Parameters(*(torch.zeros_like(parameter) for parameter in parameters))
        self._is_written = np.zeros(len(parameters.encoder_bias), dtype=bool)
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Callable[[torch.Tensor], StepResult]:
        return self.take

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown()

    def take(self, inputs: torch.Tensor) -> StepResult:
        """Take a step of Adam on a batch, (n_rows, n_inputs), at the optimizer's learning rate.

        The gradients in the result are those before clipping, with the decoder's projected. They are valid until the
        next step.
        """
        from geofloor.features import _kernels as kernels

        n_rows, n_inputs = inputs.shape
        n_latents = len(self._is_written)
        centered = inputs - self._parameters.decoder_bias
        latents, codes, counts = self._select(centered)

        encoder, _, decoder, _ = (parameter.numpy() for parameter in self._parameters)
        on_encoder, on_encoder_bias, on_decoder, on_decoder_bias = (each.numpy() for each in self._gradients)
        x, scalar = centered.numpy(), encoder.dtype.type
        error, on_codes = np.empty_like(x), np.empty_like(codes)
        squares, totals = np.empty(n_rows, x.dtype), np.empty(n_rows, x.dtype)
        error_sums = np.empty((-(-n_rows // kernels.ROWS_PER_BLOCK), n_inputs), x.dtype)
        on_error, on_l1 = scalar(2.0 / n_rows), scalar(self._l1_coefficient / n_rows)
        work = 2 * codes.size * n_inputs
        given = (x, decoder, latents, codes, counts, on_error, on_l1)
        written = (error, on_codes, squares, totals, error_sums)
        self._divide(kernels.decode_and_differentiate, (*given, *written), len(error_sums), work)

        starts, rows = np.empty(n_latents + 1, np.int64), np.empty(codes.size, np.int32)
        grouped = np.empty(codes.size, x.dtype), np.empty(codes.size, x.dtype)
        kernels.group_by_latent(latents, codes, on_codes, counts, starts, rows, *grouped)

        bias_sums = np.empty((-(-n_latents // kernels.LATENTS_PER_BLOCK), n_inputs), x.dtype)
        latent_squares = np.empty(n_latents, x.dtype)
        sums = (on_encoder, on_encoder_bias, on_decoder, self._is_written, bias_sums, latent_squares)
        arguments = (x, error, encoder, decoder, starts, rows, *grouped, *sums)
        self._divide(kernels.sum_gradients, arguments, len(bias_sums), work)
        np.add(error_sums.sum(axis=0), bias_sums.sum(axis=0), out=on_decoder_bias)

        squared_norm = float(latent_squares.sum(dtype=np.float64))
        self._update(kernels, squared_norm)
        # Selection skips latents whose weights overflowed. Their gradients make the loss non-finite instead.
        overflow = 0.0 * squared_norm
        return StepResult(
            self._gradients,
            torch.from_numpy(squares).sum() / n_rows + overflow,
            torch.from_numpy(totals).sum() / n_rows,
            torch.from_numpy(np.diff(starts)),
        )

    def _select(self, centered: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encode, and keep the largest codes of each row: their latents, the codes and their number."""
        from geofloor.features import _kernels as kernels

        weight, bias = self._parameters.encoder_weight, self._parameters.encoder_bias
        n_rows, n_latents, k = len(centered), len(bias), self._l0
        latents = np.empty((n_rows, k), np.int32)
        codes = np.empty((n_rows, k), weight.numpy().dtype)
        counts = np.empty(n_rows, np.int32)
        n_columns = min(16 * -(-8 * k // 16), n_latents)
        piece = max(_PREACTIVATIONS_AT_A_TIME // n_latents, 1)
        for first_row in range(0, n_rows, piece):
            preactivations = linear(centered[first_row : first_row + piece], weight, bias).numpy()
            arguments = (preactivations, first_row, k, n_columns, latents, codes, counts)
            self._divide(kernels.select_largest, arguments, len(preactivations), preactivations.size)
        return latents, codes, counts

    def _update(self, kernels: Any, squared_norm: float) -> None:
        """Clip the gradients and take a step of Adam; `squared_norm` is that of all but the decoder bias's."""
        group = self._optimizer.param_groups[0]
        states = [self._state(parameter) for parameter in self._parameters]
        for state in states:
            state["step"] += 1
        n_steps = float(states[0]["step"])
        beta1, beta2 = group["betas"]
        step_size = group["lr"] / (1 - beta1**n_steps)
        clip = 1.0
        if self._clip_norm is not None:
            norm = math.sqrt(squared_norm + float(self._gradients.decoder_bias.double().square().sum()))
            clip = self._clip_norm / max(norm + 1e-6, self._clip_norm)
        constants = np.array(
            [beta1, beta2, group["eps"], step_size, 1 / math.sqrt(1 - beta2**n_steps), clip],
            self._parameters.encoder_bias.numpy().dtype,
        )
        arrays = [
            (parameter.numpy(), gradient.numpy(), state["exp_avg"].numpy(), state["exp_avg_sq"].numpy())
            for parameter, gradient, state in zip(self._parameters, self._gradients, states, strict=True)
        ]
        arguments = (*arrays[0], *arrays[1], *arrays[2], self._is_written, constants)
        self._divide(kernels.take_adam_step, arguments, len(self._is_written), 8 * arrays[0][0].size)
        kernels.take_adam_step_on_vector(*arrays[3], constants)

    def _state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the optimizer's state of a parameter, as its own first step would make it."""
        state = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _divide(self, kernel: Callable[..., None], arguments: tuple[Any, ...], n: int, work: int) -> None:
        """Call a kernel on the range from 0 to n, divided between threads if it has enough work for them."""
        n_threads = min(torch.get_num_threads(), n)
        if n_threads < 2 or work < _WORTH_THREADS:
            kernel(*arguments, 0, n)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(torch.get_num_threads() - 1, thread_name_prefix="geofloor")
        size = -(-n // (_TASKS_PER_THREAD * n_threads))
        tasks = deque((start, min(start + size, n)) for start in range(0, n, size))

        def run() -> None:
            while True:
                try:
                    start, stop = tasks.popleft()
                except IndexError:
                    return
                kernel(*arguments, start, stop)

        others = [self._threads.submit(run) for _ in range(n_threads - 1)]
        run()
        for other in others:
            other.result()
