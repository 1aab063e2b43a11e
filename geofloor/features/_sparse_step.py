"""Codes, loss and gradients of one training step of a sparse autoencoder, as functions of tensors.

`geofloor.features._trainer` decides which rows a step sees and applies the gradients. Few codes on a CPU take
`geofloor.features._cpu_step` instead, whose gradients are the same up to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from geofloor._training.products import add_product, linear, product, zero_sum
from geofloor.features._auxiliary_loss import AuxiliaryLoss
from geofloor.features._nested_groups import differentiate_errors, prefix_errors
from geofloor.features._precision import rounded

# Codes held at a time. A larger batch is cut into pieces, and their gradients are summed. On a CPU a piece fits the
# cache.
_CODES_AT_A_TIME = 2**25
_CODES_AT_A_TIME_ON_CPU = 2**21
_GATHERED_AT_A_TIME = 2**26  # numbers of directions gathered for the codes of a piece
# Latents per code above which gathering takes less time on a GPU than dense products do, by its bandwidth and its rate
# of products in float32. It was not measured, because no GPU was at hand.
_LATENTS_PER_GATHERED_CODE = 128


class Parameters(NamedTuple):
    """Weights of a sparse autoencoder, or their gradients.

    Attributes
    ----------
    encoder_weight : Tensor of shape (n_latents, n_inputs)
    encoder_bias : Tensor of shape (n_latents,)
    decoder_weight : Tensor of shape (n_latents, n_inputs)
        Directions of the latents, one per row, of unit norm.
    decoder_bias : Tensor of shape (n_inputs,)
        Bias subtracted before encoding and added after decoding.
    """

    encoder_weight: torch.Tensor
    encoder_bias: torch.Tensor
    decoder_weight: torch.Tensor
    decoder_bias: torch.Tensor


class StepResult(NamedTuple):
    """Loss terms and gradients of one batch.

    Attributes
    ----------
    gradients : Parameters
        Gradients of the loss.
    reconstruction : Tensor, scalar
        Squared error per row, summed over inputs and averaged over the batch.
    l1 : Tensor, scalar
        Sum of the codes per row, averaged over the batch.
    firings : Tensor of shape (n_latents,), int64
        Number of rows on which each latent fired.
    on_threshold : Tensor of shape (n_latents,) or None
        Gradient of the loss on the thresholds, if a bandwidth was given.
    l0_on_threshold : Tensor of shape (n_latents,) or None
        Gradient of the mean number of codes per row on the thresholds, if a bandwidth was given.
    of_prefixes : Tensor, scalar, or None
        Squared errors per row of all prefixes of the latents but the last, summed, if groups were given.
    """

    gradients: Parameters
    reconstruction: torch.Tensor
    l1: torch.Tensor
    firings: torch.Tensor
    on_threshold: torch.Tensor | None = None
    l0_on_threshold: torch.Tensor | None = None
    of_prefixes: torch.Tensor | None = None


def initialize_parameters(n_latents: int, decoder_bias: torch.Tensor, generator: torch.Generator) -> Parameters:
    """Draw random unit directions for the decoder and start the encoder along them.

    On average half of the latents are active at first. They reconstruct n_latents / (2·n_inputs) times the input.
    The encoder is therefore scaled by the inverse of this factor, at most by 1.
    """
    n_inputs = len(decoder_bias)
    directions = torch.randn(n_latents, n_inputs, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    scale = min(2.0 * n_inputs / n_latents, 1.0)
    return Parameters(scale * directions, torch.zeros(n_latents), directions, decoder_bias)


def encode(
    parameters: Parameters,
    inputs: torch.Tensor,
    l0: int | None = None,
    threshold: torch.Tensor | None = None,
    precision: str = "float32",
) -> torch.Tensor:
    """Compute codes, (n_rows, n_latents): ReLU((x − b_dec) W_encᵀ + b_enc), reduced by `l0` or `threshold`.

    Of each row, `l0` keeps the largest codes. `threshold`, one number or one per latent, keeps the codes above it. With
    the precision ``"bf16"`` the product is that of numbers rounded to bfloat16.
    """
    weight = rounded(precision, parameters.encoder_weight)
    return _keep(_preactivations(inputs - parameters.decoder_bias, weight, parameters.encoder_bias), l0, threshold)


def _preactivations(centered: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Multiply inputs less the decoder bias by a weight in its precision, and add the bias in its own."""
    if weight.dtype == bias.dtype:
        return linear(centered, weight, bias)
    return linear(centered.to(weight.dtype), weight).to(bias.dtype).add_(bias)


def _keep(preactivations: torch.Tensor, l0: int | None, threshold: torch.Tensor | None) -> torch.Tensor:
    """Turn pre-activations into codes, in place."""
    codes = preactivations.relu_()
    if threshold is not None:
        return codes.mul_(codes > threshold)
    if l0 is None or l0 >= codes.shape[1]:
        return codes
    largest = codes.topk(l0, dim=1, sorted=False)
    return codes.zero_().scatter_(1, largest.indices, largest.values)


def decode(parameters: Parameters, codes: torch.Tensor) -> torch.Tensor:
    """Reconstruct inputs from codes, (n_rows, n_inputs): z W_dec + b_dec."""
    return product(codes, parameters.decoder_weight).add_(parameters.decoder_bias)


def rows_at_a_time(parameters: Parameters) -> int:
    """Choose the number of rows with codes in memory at a time."""
    on_cpu = parameters.encoder_bias.device.type == "cpu"
    return max((_CODES_AT_A_TIME_ON_CPU if on_cpu else _CODES_AT_A_TIME) // len(parameters.encoder_bias), 1)


def compute_gradients(
    parameters: Parameters,
    inputs: torch.Tensor,
    l1_coefficient: float | torch.Tensor,
    l0: int | None = None,
    threshold: torch.Tensor | None = None,
    bandwidth: torch.Tensor | None = None,
    auxiliary: AuxiliaryLoss | None = None,
    groups: tuple[int, ...] | None = None,
    precision: str = "float32",
) -> StepResult:
    """Compute the loss ‖x − x̂‖² + λ Σ_j z_j, averaged over the batch, and its gradients; see `encode` for the codes.

    Written by hand, the gradients take five dense products instead of the six of automatic differentiation, because
    the gradient of the decoder bias needs only the sum over the batch of the gradients of the pre-activations.

    With a bandwidth ε, the thresholds θ ≥ 0 have gradients too. A code z = p · 1[p > θ] jumps where its pre-activation
    p passes θ. The straight-through estimate of Rajamanoharan et al. (2024) replaces the jump's derivative by a
    rectangle of width ε: ∂z/∂θ = −(θ/ε) 1[|p − θ| < ε/2], and for the number of codes −(1/ε) 1[|p − θ| < ε/2].

    The gradients include those of an auxiliary loss, if it is given. Its value is not part of the result.

    With groups, the lengths of prefixes of the latents, the loss is the sum over prefixes of the squared error of the
    reconstruction by the latents of the prefix alone. The auxiliary loss is about the error of the last.
    """
    n_rows, n_latents = len(inputs), len(parameters.encoder_bias)
    few = l0 is not None and _LATENTS_PER_GATHERED_CODE * l0 <= n_latents
    if l0 is not None and few and inputs.device.type == "cuda" and threshold is None and groups is None:
        return gather_gradients(parameters, inputs, l1_coefficient, l0, auxiliary, precision)
    piece = rows_at_a_time(parameters)
    weight = rounded(precision, parameters.encoder_weight)
    on_encoder, on_decoder = zero_sum(parameters.encoder_weight), zero_sum(parameters.decoder_weight)
    on_encoder_bias = torch.zeros_like(parameters.encoder_bias)
    on_decoder_bias = torch.zeros_like(parameters.decoder_bias)
    reconstruction = inputs.new_zeros(())
    l1 = inputs.new_zeros(())
    firings = torch.zeros(n_latents, dtype=torch.int64, device=inputs.device)
    on_threshold = torch.zeros_like(parameters.encoder_bias)
    n_near = torch.zeros_like(firings)
    ends = (n_latents,) if groups is None else groups
    of_prefixes = inputs.new_zeros(())
    for start in range(0, n_rows, piece):
        centered = inputs[start : start + piece] - parameters.decoder_bias
        codes = _preactivations(centered, weight, parameters.encoder_bias)
        if threshold is not None and bandwidth is not None:
            near = (codes - threshold).abs_() < bandwidth / 2
            codes.mul_(codes > threshold)
        else:
            near = None
            codes = _keep(codes, l0, threshold)
        errors = prefix_errors(codes, parameters.decoder_weight, centered, ends)
        reconstruction += errors[-1].square().sum()
        for error in errors[:-1]:
            of_prefixes += error.square().sum()
        l1 += codes.sum()
        if auxiliary is not None:
            auxiliary.add(centered, errors[-1], n_rows)
        # The gradient of the pre-activations is zero where the code is.
        active = codes > 0
        firings += active.sum(dim=0)
        on_codes, on_reconstruction = differentiate_errors(
            errors, codes, parameters.decoder_weight, ends, on_decoder, n_rows
        )
        on_decoder_bias.add_(on_reconstruction.sum(dim=0))
        if near is not None:
            on_threshold += (on_codes * near).sum(dim=0)
            n_near += near.sum(dim=0)
        on_codes.add_(l1_coefficient / n_rows).mul_(active)
        total = on_codes.sum(dim=0)
        add_product(on_encoder, on_codes, centered)
        on_encoder_bias.add_(total)
        on_decoder_bias.addmv_(parameters.encoder_weight.T, total, alpha=-1.0)
    gradients = Parameters(on_encoder.contiguous(), on_encoder_bias, on_decoder.contiguous(), on_decoder_bias)
    if auxiliary is not None:
        auxiliary.add_to(gradients)
    if threshold is None or bandwidth is None:
        return StepResult(
            gradients,
            reconstruction / n_rows,
            l1 / n_rows,
            firings,
            of_prefixes=None if groups is None else of_prefixes / n_rows,
        )
    on_threshold.mul_(-threshold / bandwidth)
    l0_on_threshold = n_near / (-n_rows * bandwidth)
    return StepResult(gradients, reconstruction / n_rows, l1 / n_rows, firings, on_threshold, l0_on_threshold)


def gather_gradients(
    parameters: Parameters,
    inputs: torch.Tensor,
    l1_coefficient: float | torch.Tensor,
    l0: int,
    auxiliary: AuxiliaryLoss | None = None,
    precision: str = "float32",
) -> StepResult:
    """Compute the result of `compute_gradients` for TopK, with the encoder's product as the only dense one.

    Directions of the chosen latents are gathered, and gradients are added to their rows. On a GPU these sums have no
    fixed order, so that results differ by rounding from run to run.
    """
    n_rows, n_latents = len(inputs), len(parameters.encoder_bias)
    l0 = min(l0, n_latents)
    weight = rounded(precision, parameters.encoder_weight)
    gradients = Parameters(*(torch.zeros_like(parameter) for parameter in parameters))
    reconstruction, l1 = inputs.new_zeros(()), inputs.new_zeros(())
    firings = torch.zeros(n_latents, dtype=torch.int64, device=inputs.device)
    piece = max(min(rows_at_a_time(parameters), _GATHERED_AT_A_TIME // (l0 * inputs.shape[1])), 1)
    for start in range(0, n_rows, piece):
        centered = inputs[start : start + piece] - parameters.decoder_bias
        kept = _preactivations(centered, weight, parameters.encoder_bias).topk(l0, dim=1, sorted=False)
        codes, latents = kept.values.relu_(), kept.indices.reshape(-1)
        active = codes > 0
        directions = parameters.decoder_weight[kept.indices]
        error = torch.bmm(codes[:, None], directions).squeeze(1).sub_(centered)
        reconstruction += error.square().sum()
        l1 += codes.sum()
        firings.index_add_(0, latents, active.reshape(-1).long())
        if auxiliary is not None:
            auxiliary.add(centered, error, n_rows)
        error = error * (2.0 / n_rows)
        on_codes = torch.bmm(directions, error[:, :, None]).squeeze(2).add_(l1_coefficient / n_rows).mul_(active)
        del directions
        gradients.decoder_bias.add_(error.sum(dim=0))
        gradients.encoder_bias.index_add_(0, latents, on_codes.reshape(-1))
        gradients.decoder_weight.index_add_(0, latents, (codes[:, :, None] * error[:, None]).flatten(0, 1))
        gradients.encoder_weight.index_add_(0, latents, (on_codes[:, :, None] * centered[:, None]).flatten(0, 1))
    gradients.decoder_bias.addmv_(parameters.encoder_weight.T, gradients.encoder_bias, alpha=-1.0)
    if auxiliary is not None:
        auxiliary.add_to(gradients)
    return StepResult(gradients, reconstruction / n_rows, l1 / n_rows, firings)


def project_decoder_gradient(parameters: Parameters, gradients: Parameters) -> None:
    """Remove, in place, the component of the decoder's gradient along each direction: it only changes norms."""
    along = (gradients.decoder_weight * parameters.decoder_weight).sum(dim=1, keepdim=True)
    gradients.decoder_weight.addcmul_(parameters.decoder_weight, along, value=-1.0)


def normalize_decoder(parameters: Parameters) -> None:
    """Scale the decoder's directions, in place, to unit norm."""
    parameters.decoder_weight.div_(torch.linalg.vector_norm(parameters.decoder_weight, dim=1, keepdim=True))


def reset_latents(
    parameters: Parameters, moments: list[torch.Tensor], dead: torch.Tensor, inputs: torch.Tensor,
    generator: torch.Generator, l0: int | None = None, threshold: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Point dead latents, in place, at badly reconstructed inputs.

    The method is that of Bricken et al. (2023). Rows are drawn with probability proportional to their squared loss.
    The residual of a row becomes the direction of a latent and, at a fifth of the mean norm of the living latents, its
    encoder weight. The encoder bias and the optimizer's moments of the latent become zero.

    Parameters
    ----------
    parameters : Parameters
        Weights, changed in place.
    moments : list of Tensor
        Moments of the encoder's weight and bias and of the decoder's weight, each with n_latents as its first
        dimension; changed in place.
    dead : Tensor of shape (n_latents,), bool
        Mask of the latents to reset.
    inputs : Tensor of shape (n_rows, n_inputs)
        Batch to draw from.
    generator : torch.Generator
        Random generator on the CPU.
    l0 : int or None, default=None
        Number of codes to keep per row; None to keep all.
    threshold : Tensor or None, default=None
        Keep the codes above it; None to keep all.
    """
    indices = dead.nonzero().squeeze(1)
    if not len(indices):
        return
    piece = max(_CODES_AT_A_TIME // len(dead), 1)
    inputs = inputs[:piece]
    residual = inputs - decode(parameters, encode(parameters, inputs, l0, threshold))
    weights = residual.square().sum(dim=1).square().double().cpu()
    if not weights.sum() > 0:
        return  # every row is reconstructed exactly, so that no residual gives a direction
    rows = torch.multinomial(weights, len(indices), replacement=True, generator=generator).to(inputs.device)
    directions = residual[rows] / torch.linalg.vector_norm(residual[rows], dim=1, keepdim=True)
    alive = parameters.encoder_weight[~dead]
    norm = torch.linalg.vector_norm(alive, dim=1).mean() if len(alive) else torch.tensor(1.0 / math.sqrt(len(dead)))
    parameters.decoder_weight[indices] = directions
    parameters.encoder_weight[indices] = 0.2 * norm * directions
    parameters.encoder_bias[indices] = 0.0
    for moment in moments:
        moment[indices] = 0.0
