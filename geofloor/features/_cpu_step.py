"""Training step on CPUs with few codes: only the encoder's product is dense.

Selection, decoding, gradients and Adam run over the chosen latents in the kernels of `geofloor.features._kernels`.
Gradients and weights equal those of the dense step of `geofloor.features._trainer` up to rounding.
"""

from __future__ import annotations

import functools
import math
from types import TracebackType
from typing import Any

import numpy as np
import torch

from geofloor.features._autoencoder_settings import Settings
from geofloor.features._kept_codes import KeptCodes, join
from geofloor.features._selection import Selection
from geofloor.features._sparse_step import Parameters, StepResult, initialize_parameters
from geofloor.features._threads import KernelThreads

_WORTH = 4  # latents per kept code; with fewer, dense products are about as fast


def takes_sparse_step(settings: Settings, device: torch.device) -> bool:
    """Tell whether `SparseStep` trains fits of these settings, though ReLU only while its codes are few.

    The answer is the same throughout a fit, so that a resumed one has the same bits.
    """
    if device.type != "cpu" or settings.groups is not None:
        return False
    if settings.activation == "jumprelu":  # whose gradients read codes below the threshold
        return False
    if settings.activation == "relu":
        return True
    return settings.l0 is not None and _WORTH * settings.l0 <= settings.n_latents


@functools.cache
def compile_kernels(activation: str, precision: str) -> None:
    """Compile the kernels for weights in float32, or load them from numba's cache, by steps of a small autoencoder."""
    generator = torch.Generator().manual_seed(0)
    parameters = initialize_parameters(16, torch.zeros(2), generator)
    if activation == "relu":
        parameters.encoder_bias.fill_(-1.0)  # or it would have too many codes
    optimizer = torch.optim.Adam(list(parameters))
    dead = None if activation == "relu" else torch.arange(16) < 4
    opened = SparseStep(parameters, optimizer, activation=activation, l0=2, auxk_coefficient=1.0, precision=precision)
    with opened as step:
        step.take(0.1 * torch.randn(4, 2, generator=generator), dead)


class SparseStep:
    """Steps of one fit, with their threads and with the memory of the gradients.

    A step uses as many threads as torch. They belong to this object, so that a fit in a forked process has its own.

    Parameters
    ----------
    parameters : Parameters
        Weights on a CPU, changed in place by each step.
    optimizer : torch.optim.Adam
        Optimizer of the weights. Its moments are used and changed as by its own step.
    activation : {"topk", "batchtopk", "relu"}
        Rule for choosing the codes to keep.
    l0 : int or None
        Number of codes to keep per row, on average for BatchTopK; without effect on ReLU.
    clip_norm : float or None
        Largest joint norm of the gradients; None for no clipping.
    auxk_coefficient : float
        Weight α of the auxiliary loss of dead latents.
    precision : {"float32", "bf16"}
        Precision of the encoder's product.

    Notes
    -----
    The auxiliary loss is that of Gao et al. (2024), Appendix A.2: α‖e − ê‖², summed over inputs and averaged over the
    batch. e = x − x̂ is the error of the reconstruction, as a constant. ê = Σ_j z_j d_j is its reconstruction by the
    dead latents with the largest pre-activations, n_inputs // 2 per row or all of them if fewer are dead. Only the
    weights of dead latents have gradients of it.
    """

    def __init__(
        self,
        parameters: Parameters,
        optimizer: torch.optim.Adam,
        *,
        activation: str = "topk",
        l0: int | None = None,
        clip_norm: float | None = None,
        auxk_coefficient: float = 0.0,
        precision: str = "float32",
    ) -> None:
        self._parameters = parameters
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._auxk_coefficient = auxk_coefficient
        self._gradients = Parameters(*(torch.zeros_like(parameter) for parameter in parameters))
        self._is_written = np.zeros(len(parameters.encoder_bias), dtype=bool)
        self._threads = KernelThreads()
        self._selection = Selection(parameters, self._threads, activation=activation, l0=l0 or 0, precision=precision)

    def __enter__(self) -> SparseStep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.close()

    @property
    def cutoff(self) -> torch.Tensor:
        """Largest code that the last step of BatchTopK left out, a scalar; 0 if it left out none."""
        return torch.tensor(self._selection.cutoff, dtype=self._parameters.encoder_bias.dtype)

    def take(
        self, inputs: torch.Tensor, dead: torch.Tensor | None = None, l1_coefficient: float = 0.0
    ) -> StepResult | None:
        """Take a step of Adam on a batch, (n_rows, n_inputs), at the optimizer's learning rate.

        Parameters
        ----------
        inputs : Tensor of shape (n_rows, n_inputs)
            The batch.
        dead : Tensor of shape (n_latents,), bool, or None
            Mask of the latents that the auxiliary loss trains; None for none of them.
        l1_coefficient : float
            Penalty λ on the codes.

        Returns
        -------
        result : StepResult or None
            Loss terms without the auxiliary loss, and gradients before clipping, with the decoder's projected. The
            gradients are valid until the next step. None, before any change, if ReLU has so many codes on this batch
            that a dense step is faster. This depends on weights and batch alone.
        """
        from geofloor.features import _kernels as kernels

        n_rows, n_inputs = inputs.shape
        n_latents = len(self._is_written)
        centered = inputs - self._parameters.decoder_bias
        has_auxiliary = self._auxk_coefficient and dead is not None and bool(dead.any())
        selected = self._selection.select(centered, dead if has_auxiliary else None)
        if selected is None:
            return None
        kept, of_dead = selected

        encoder, _, decoder, _ = (parameter.numpy() for parameter in self._parameters)
        on_encoder, on_encoder_bias, on_decoder, on_decoder_bias = (each.numpy() for each in self._gradients)
        x, scalar = centered.numpy(), encoder.dtype.type
        on_error, on_l1 = scalar(2.0 / n_rows), scalar(l1_coefficient / n_rows)
        n_parts = 1 if of_dead is None else 2
        error = np.empty((n_parts * n_rows, n_inputs), x.dtype)
        on_codes, squares, totals, error_sums = self._decode(kernels, x, kept, on_error, on_l1, error[:n_rows])
        if of_dead is not None:
            unexplained = error[:n_rows] * scalar(-0.5 * n_rows)
            on_error = scalar(2.0 * self._auxk_coefficient / n_rows)
            of_auxiliary = self._decode(kernels, unexplained, of_dead, on_error, scalar(0.0), error[n_rows:])
            kept, on_codes = join(kept, of_dead), np.concatenate([on_codes, of_auxiliary[0]])

        starts, rows = np.empty(n_latents + 1, np.int64), np.empty(on_codes.size, np.int32)
        firings = np.empty(n_latents, np.int64)
        grouped = np.empty(on_codes.size, x.dtype), np.empty(on_codes.size, x.dtype)
        places = (kept.firsts, kept.counts, n_rows)
        kernels.group_by_latent(kept.latents, kept.values, on_codes, *places, starts, firings, rows, *grouped)

        bias_sums = np.empty((-(-n_latents // kernels.LATENTS_PER_BLOCK), n_inputs), x.dtype)
        latent_squares = np.empty(n_latents, x.dtype)
        sums = (on_encoder, on_encoder_bias, on_decoder, self._is_written, bias_sums, latent_squares)
        arguments = (x, error, encoder, decoder, starts, rows, *grouped, *sums)
        self._threads.divide(kernels.sum_gradients, arguments, len(bias_sums), 2 * on_codes.size * n_inputs)
        np.add(error_sums.sum(axis=0), bias_sums.sum(axis=0), out=on_decoder_bias)

        squared_norm = float(latent_squares.sum(dtype=np.float64))
        self._update(kernels, squared_norm)
        # Selection skips latents whose weights overflowed. Their gradients make the loss non-finite instead.
        overflow = 0.0 * squared_norm
        return StepResult(
            self._gradients,
            torch.from_numpy(squares).sum() / n_rows + overflow,
            torch.from_numpy(totals).sum() / n_rows,
            torch.from_numpy(firings),
        )

    def _decode(
        self, kernels: Any, targets: np.ndarray, kept: KeptCodes, on_error: Any, on_l1: Any, error: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the gradients of the codes, squared errors, sums of codes and block sums; write the errors' gradients.

        See `decode_and_differentiate` of the kernels.
        """
        n_rows, n_inputs = targets.shape
        on_codes = np.empty_like(kept.values)
        squares, totals = np.empty(n_rows, targets.dtype), np.empty(n_rows, targets.dtype)
        error_sums = np.empty((-(-n_rows // kernels.ROWS_PER_BLOCK), n_inputs), targets.dtype)
        given = (targets, self._parameters.decoder_weight.numpy(), *kept, on_error, on_l1)
        arguments = (*given, error, on_codes, squares, totals, error_sums)
        work = 2 * kept.values.size * n_inputs
        self._threads.divide(kernels.decode_and_differentiate, arguments, len(error_sums), work)
        return on_codes, squares, totals, error_sums

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
        self._threads.divide(kernels.take_adam_step, arguments, len(self._is_written), 8 * arrays[0][0].size)
        kernels.take_adam_step_on_vector(*arrays[3], constants)

    def _state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the optimizer's state of a parameter, as its own first step would make it."""
        state = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
