"""One training step of a sparse autoencoder, as pure functions of tensors.

`SparseAutoencoder` decides what to train on and when; what a step computes is here, so that a faster
step can take its place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from geofloor._training.products import add_product, linear, product, zero_sum

# Codes held at a time: a larger batch is worked through in pieces whose gradients add up. On a CPU they fit a cache.
_CODES_AT_A_TIME = 2**25
_CODES_AT_A_TIME_ON_CPU = 2**21


class Parameters(NamedTuple):
    """Weights of a sparse autoencoder, or the gradients on them.

    Attributes
    ----------
    encoder_weight : Tensor of shape (n_latents, n_inputs)
    encoder_bias : Tensor of shape (n_latents,)
    decoder_weight : Tensor of shape (n_latents, n_inputs)
        Row i is the direction that latent i writes; of unit norm.
    decoder_bias : Tensor of shape (n_inputs,)
        Subtracted before encoding and added after decoding.
    """

    encoder_weight: torch.Tensor
    encoder_bias: torch.Tensor
    decoder_weight: torch.Tensor
    decoder_bias: torch.Tensor


class StepResult(NamedTuple):
    """What one batch gives.

    Attributes
    ----------
    gradients : Parameters
        Gradients of the loss.
    reconstruction : Tensor, scalar
        Squared error, summed over inputs and averaged over the batch.
    l1 : Tensor, scalar
        Sum of the codes, averaged over the batch.
    firings : Tensor of shape (n_latents,), int64
        Rows on which each latent fired.
    """

    gradients: Parameters
    reconstruction: torch.Tensor
    l1: torch.Tensor
    firings: torch.Tensor


def initialise(n_latents: int, decoder_bias: torch.Tensor, generator: torch.Generator) -> Parameters:
    """Random unit directions; the encoder reads along them, scaled so that decoding undoes it.

    n_latents random directions of which half are active reconstruct n_latents / (2·n_inputs) times
    the input, so the encoder starts that much smaller.
    """
    n_inputs = len(decoder_bias)
    directions = torch.randn(n_latents, n_inputs, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    scale = min(2.0 * n_inputs / n_latents, 1.0)
    return Parameters(scale * directions, torch.zeros(n_latents), directions, decoder_bias)


def encode(parameters: Parameters, inputs: torch.Tensor, l0: int | None = None) -> torch.Tensor:
    """Codes of shape (n_rows, n_latents): ReLU((x − b_dec) W_encᵀ + b_enc), of which the `l0` largest of a row stay."""
    return _encode_centred(parameters, inputs - parameters.decoder_bias, l0)


def _encode_centred(parameters: Parameters, centred: torch.Tensor, l0: int | None) -> torch.Tensor:
    codes = linear(centred, parameters.encoder_weight, parameters.encoder_bias).relu_()
    if l0 is None or l0 >= codes.shape[1]:
        return codes
    largest = codes.topk(l0, dim=1, sorted=False)
    return codes.zero_().scatter_(1, largest.indices, largest.values)


def decode(parameters: Parameters, codes: torch.Tensor) -> torch.Tensor:
    """Reconstructions of shape (n_rows, n_inputs): codes W_dec + b_dec."""
    return product(codes, parameters.decoder_weight).add_(parameters.decoder_bias)


def loss_and_gradients(
    parameters: Parameters, inputs: torch.Tensor, l1_coefficient: float, l0: int | None = None
) -> StepResult:
    """Compute the loss ‖x − x̂‖² + λ Σ_j z_j, averaged over the batch, and its gradients, by hand.

    By hand it takes five dense products where automatic differentiation takes six: the gradient on
    the pre-encoder bias needs only the sum of the codes' gradients over the batch.
    """
    n_rows, n_latents = len(inputs), len(parameters.encoder_bias)
    codes_at_a_time = _CODES_AT_A_TIME_ON_CPU if inputs.device.type == "cpu" else _CODES_AT_A_TIME
    piece = max(codes_at_a_time // n_latents, 1)
    on_encoder, on_decoder = zero_sum(parameters.encoder_weight), zero_sum(parameters.decoder_weight)
    on_encoder_bias = torch.zeros_like(parameters.encoder_bias)
    on_decoder_bias = torch.zeros_like(parameters.decoder_bias)
    reconstruction = inputs.new_zeros(())
    l1 = inputs.new_zeros(())
    firings = torch.zeros(n_latents, dtype=torch.int64, device=inputs.device)
    for start in range(0, n_rows, piece):
        centred = inputs[start : start + piece] - parameters.decoder_bias
        codes = _encode_centred(parameters, centred, l0)
        error = product(codes, parameters.decoder_weight).sub_(centred)
        reconstruction += error.square().sum()
        l1 += codes.sum()
        error *= 2.0 / n_rows
        add_product(on_decoder, codes, error)
        on_decoder_bias.add_(error.sum(dim=0))
        # Gradient on the pre-activations: only where a code is above zero.
        active = codes > 0
        firings += active.sum(dim=0)
        on_codes = product(error, parameters.decoder_weight.T, spare=codes)
        on_codes.add_(l1_coefficient / n_rows).mul_(active)
        total = on_codes.sum(dim=0)
        add_product(on_encoder, on_codes, centred)
        on_encoder_bias.add_(total)
        on_decoder_bias.addmv_(parameters.encoder_weight.T, total, alpha=-1.0)
    gradients = Parameters(on_encoder.contiguous(), on_encoder_bias, on_decoder.contiguous(), on_decoder_bias)
    return StepResult(gradients, reconstruction / n_rows, l1 / n_rows, firings)


def project_decoder_gradient(parameters: Parameters, gradients: Parameters) -> None:
    """Take out, in place, the part of the decoder's gradient that would only change norms."""
    along = (gradients.decoder_weight * parameters.decoder_weight).sum(dim=1, keepdim=True)
    gradients.decoder_weight.addcmul_(parameters.decoder_weight, along, value=-1.0)


def clip_gradients(gradients: Parameters, max_norm: float) -> None:
    """Scale all gradients, in place, so that their joint norm is at most `max_norm`."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def normalise_decoder(parameters: Parameters) -> None:
    """Bring the decoder's directions back to unit norm, in place."""
    parameters.decoder_weight.div_(torch.linalg.vector_norm(parameters.decoder_weight, dim=1, keepdim=True))


def reset_latents(
    parameters: Parameters, moments: list[torch.Tensor], dead: torch.Tensor, inputs: torch.Tensor,
    generator: torch.Generator, l0: int | None = None,
) -> None:  # fmt: skip
    """Point dead latents, in place, at inputs that the autoencoder reconstructs badly.

    As Bricken et al. (2023): rows are drawn with probability proportional to their squared loss; a
    latent's direction becomes the row's residual, its encoder the same at a fifth of the mean norm of
    the living, its bias zero, and what the optimiser remembers of it is forgotten.

    Parameters
    ----------
    parameters : Parameters
        Changed in place.
    moments : list of Tensor
        Optimiser state of the encoder's weight and bias and of the decoder's weight: tensors whose
        first dimension is n_latents. Changed in place.
    dead : Tensor of shape (n_latents,), bool
        Latents to reset.
    inputs : Tensor of shape (n_rows, n_inputs)
        A batch to draw from.
    generator : torch.Generator
        On the CPU.
    l0 : int or None, default=None
        Codes that stay per row; None for ReLU.
    """
    indices = dead.nonzero().squeeze(1)
    if not len(indices):
        return
    piece = max(_CODES_AT_A_TIME // len(dead), 1)
    inputs = inputs[:piece]
    residual = inputs - decode(parameters, encode(parameters, inputs, l0))
    weights = residual.square().sum(dim=1).square().double().cpu()
    if not weights.sum() > 0:
        return  # every row is reconstructed: there is nothing to point at
    rows = torch.multinomial(weights, len(indices), replacement=True, generator=generator).to(inputs.device)
    directions = residual[rows] / torch.linalg.vector_norm(residual[rows], dim=1, keepdim=True)
    alive = parameters.encoder_weight[~dead]
    norm = torch.linalg.vector_norm(alive, dim=1).mean() if len(alive) else torch.tensor(1.0 / math.sqrt(len(dead)))
    parameters.decoder_weight[indices] = directions
    parameters.encoder_weight[indices] = 0.2 * norm * directions
    parameters.encoder_bias[indices] = 0.0
    for moment in moments:
        moment[indices] = 0.0
