import pytest
import torch

from geofloor.features import _sparse_step, _sparsity
from geofloor.features._auxiliary_loss import AuxiliaryLoss
from geofloor.features._sparse_step import (
    Parameters,
    compute_gradients,
    decode,
    encode,
    gather_gradients,
    reset_latents,
)


def random_parameters(n_latents=40, n_inputs=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(n_latents, n_inputs), (n_latents,), (n_latents, n_inputs), (n_inputs,)]
    return Parameters(*(torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes))


@pytest.mark.parametrize("codes_at_a_time", [2**25, 7 * 40])
def test_gradients_are_those_of_automatic_differentiation(monkeypatch, plain_loss, codes_at_a_time):
    monkeypatch.setattr(_sparse_step, "_CODES_AT_A_TIME_ON_CPU", codes_at_a_time)  # 7 rows per piece, or all at once
    parameters = Parameters(*(parameter.requires_grad_() for parameter in random_parameters()))
    inputs = torch.randn(50, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = plain_loss(parameters, inputs, 0.3)
    expected = torch.autograd.grad(loss, list(parameters))
    with torch.no_grad():
        result = compute_gradients(parameters, inputs, 0.3)
    torch.testing.assert_close(result.reconstruction + 0.3 * result.l1, loss.detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)
    codes = encode(parameters, inputs)
    assert torch.equal(result.firings, (codes > 0).sum(0))


def test_gradients_of_topk_are_those_of_automatic_differentiation():
    parameters = Parameters(*(parameter.requires_grad_() for parameter in random_parameters()))
    inputs = torch.randn(50, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    centered = inputs - parameters.decoder_bias
    codes = torch.relu(centered @ parameters.encoder_weight.T + parameters.encoder_bias)
    kept = codes * (codes >= codes.sort(dim=1, descending=True).values[:, 4:5])
    loss = (centered - kept @ parameters.decoder_weight).square().sum(1).mean()
    expected = torch.autograd.grad(loss, list(parameters))
    with torch.no_grad():
        result = compute_gradients(parameters, inputs, 0.0, 5)
        torch.testing.assert_close(encode(parameters, inputs, 5), kept.detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)
    assert int(result.firings.sum()) == 5 * 50


@pytest.mark.parametrize("gathered_at_a_time", [2**26, 7 * 5 * 9])
@pytest.mark.parametrize(("l0", "shift"), [(5, 0.0), (5, -3.0), (40, 0.0)])  # some rows have fewer codes, or all
def test_gathered_gradients_are_those_of_dense_products(monkeypatch, gathered_at_a_time, l0, shift):
    monkeypatch.setattr(_sparse_step, "_GATHERED_AT_A_TIME", gathered_at_a_time)
    parameters = random_parameters()
    parameters.encoder_bias.add_(shift)
    inputs = torch.randn(30, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dead = torch.arange(40) % 3 == 0
    results = [
        compute(parameters, inputs, 0.2, l0, auxiliary=AuxiliaryLoss(parameters, dead, 0.5))
        for compute in (gather_gradients, compute_gradients)
    ]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_codes_above_a_threshold_have_the_gradients_of_automatic_differentiation():
    parameters = Parameters(*(parameter.requires_grad_() for parameter in random_parameters()))
    inputs = torch.randn(50, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    threshold = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    centered = inputs - parameters.decoder_bias
    codes = torch.relu(centered @ parameters.encoder_weight.T + parameters.encoder_bias)
    kept = codes * (codes > threshold)
    assert 0 < (kept > 0).sum() < (codes > 0).sum()
    loss = (centered - kept @ parameters.decoder_weight).square().sum(1).mean()
    expected = torch.autograd.grad(loss, list(parameters))
    with torch.no_grad():
        result = compute_gradients(parameters, inputs, 0.0, threshold=threshold)
        torch.testing.assert_close(encode(parameters, inputs, threshold=threshold), kept.detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


class Jump(torch.autograd.Function):
    """Codes p · 1[p > θ], with the straight-through gradients of Rajamanoharan et al. (2024), as they are written."""

    @staticmethod
    def forward(ctx, p, threshold, bandwidth):
        ctx.save_for_backward(p, threshold)
        ctx.bandwidth = bandwidth
        return p * (p > threshold)

    @staticmethod
    def backward(ctx, gradient):
        p, threshold = ctx.saved_tensors
        rectangle = (((p - threshold) / ctx.bandwidth).abs() < 0.5).double()
        on_threshold = -threshold / ctx.bandwidth * rectangle * gradient
        return gradient * (p > threshold), on_threshold.sum(0), None


class Count(torch.autograd.Function):
    """Number of codes 1[p > θ], of which only the threshold has a gradient."""

    @staticmethod
    def forward(ctx, p, threshold, bandwidth):
        ctx.save_for_backward(p, threshold)
        ctx.bandwidth = bandwidth
        return (p > threshold).double()

    @staticmethod
    def backward(ctx, gradient):
        p, threshold = ctx.saved_tensors
        rectangle = (((p - threshold) / ctx.bandwidth).abs() < 0.5).double()
        return None, (-rectangle / ctx.bandwidth * gradient).sum(0), None


@pytest.mark.parametrize("codes_at_a_time", [2**25, 7 * 40])
def test_gradients_of_jumprelu_are_the_straight_through_ones(monkeypatch, codes_at_a_time):
    monkeypatch.setattr(_sparse_step, "_CODES_AT_A_TIME_ON_CPU", codes_at_a_time)  # 7 rows per piece, or all at once
    parameters = Parameters(*(parameter.requires_grad_() for parameter in random_parameters()))
    inputs = torch.randn(50, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    threshold = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    bandwidth = torch.tensor(0.7, dtype=torch.float64)
    centered = inputs - parameters.decoder_bias
    p = centered @ parameters.encoder_weight.T + parameters.encoder_bias
    codes = Jump.apply(p, threshold, 0.7)
    reconstruction = (centered - codes @ parameters.decoder_weight).square().sum(1).mean()
    l0 = Count.apply(p, threshold, 0.7).sum(1).mean()
    penalty = _sparsity._PENALTY * reconstruction.detach() * (l0 / 5 - 1).square()
    expected = torch.autograd.grad(reconstruction + penalty, [*parameters, threshold])
    with torch.no_grad():
        result = compute_gradients(parameters, inputs, 0.0, threshold=threshold, bandwidth=bandwidth)
        value, on_threshold = _sparsity.penalize_l0(result, 50, 5)
    torch.testing.assert_close(value, penalty.detach())
    torch.testing.assert_close(result.reconstruction, reconstruction.detach())
    for gradient, reference in zip([*result.gradients, on_threshold], expected, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_reset_latents_points_dead_ones_at_residuals(activations):
    parameters = random_parameters(20, 12, torch.float32)
    before = Parameters(*(p.clone() for p in parameters))
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[3, 7]] = True
    moments = [torch.ones(20, 12), torch.ones(20)]
    inputs = torch.from_numpy(activations)
    residual = inputs - decode(before, encode(before, inputs))
    reset_latents(parameters, moments, dead, inputs, torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(parameters.decoder_weight[3], residual)
    assert cosine.max() > 0.9999
    assert torch.equal(parameters.encoder_bias[dead], torch.zeros(2))
    norms = parameters.encoder_weight.norm(dim=1)
    torch.testing.assert_close(norms[dead], (0.2 * norms[~dead].mean()).expand(2))
    for after, earlier in zip(parameters[:3], before[:3], strict=True):
        assert torch.equal(after[~dead], earlier[~dead])
    for moment in moments:
        assert (moment[dead] == 0).all()
        assert (moment[~dead] == 1).all()
