import pytest
import torch

from geofloor import SparseAutoencoder
from geofloor.features import _sparse_step, _trainer
from geofloor.features._autoencoder_settings import resolve_settings
from geofloor.features._auxiliary_loss import AuxiliaryLoss
from geofloor.features._sparse_step import Parameters, compute_gradients
from geofloor.features._trainer import start_training, take_step

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn


def auxiliary_loss(parameters, inputs, kept, dead, n_codes):
    """Compute α⁻¹ times the loss as Gao et al. (2024) define it, for automatic differentiation."""
    weight, bias, directions, decoder_bias = parameters
    error = (inputs - kept @ directions - decoder_bias).detach()
    preactivations = (inputs - decoder_bias.detach()) @ weight.T + bias
    of_dead = preactivations[:, dead]
    smallest = of_dead.sort(dim=1, descending=True).values[:, n_codes - 1 : n_codes]
    codes = torch.relu(of_dead * (of_dead >= smallest))
    return (error - codes @ directions[dead]).square().sum(1).mean()


@pytest.mark.parametrize("codes_at_a_time", [2**25, 7 * 40])
@pytest.mark.parametrize("n_dead", [1, 3, 30])  # fewer than n_inputs // 2 = 4, and more
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu"])
def test_gradients_are_those_of_automatic_differentiation(monkeypatch, activation, n_dead, codes_at_a_time):
    monkeypatch.setattr(_sparse_step, "_CODES_AT_A_TIME_ON_CPU", codes_at_a_time)  # 7 rows per piece, or all at once
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 9), (40,), (40, 9), (9,)]
    parameters = Parameters(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))
    inputs = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[torch.randperm(40, generator=generator)[:n_dead]] = True
    rule = {
        "topk": {"l0": 5},
        "batchtopk": {"threshold": torch.tensor(3.0, dtype=torch.float64)},
        "jumprelu": {
            "threshold": torch.rand(40, generator=generator, dtype=torch.float64),
            "bandwidth": torch.tensor(0.7, dtype=torch.float64),
        },
    }[activation]
    plain = compute_gradients(parameters, inputs, 0.0, **rule)
    auxiliary = AuxiliaryLoss(parameters, dead, 0.25)
    result = compute_gradients(parameters, inputs, 0.0, **rule, auxiliary=auxiliary)
    kept = _sparse_step.encode(parameters, inputs, rule.get("l0"), rule.get("threshold"))
    parameters = Parameters(*(parameter.requires_grad_() for parameter in parameters))
    loss = 0.25 * auxiliary_loss(parameters, inputs, kept, dead, min(n_dead, 4))
    expected = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    assert expected[3] is None
    for gradient, before, reference in zip(result.gradients, plain.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, before if reference is None else before + reference)
    for number, before in zip(result[1:], plain[1:], strict=True):
        assert number is None or torch.equal(number, before)
    with torch.no_grad():
        added = result.gradients.encoder_weight - plain.gradients.encoder_weight
        assert (added[dead] != 0).any(dim=1).sum() >= min(n_dead, 4)
        assert torch.equal(added[~dead], torch.zeros_like(added[~dead]))


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("coefficient", ["auto", 0.0])
def test_steps_train_the_latents_that_have_been_idle(activations, activation, coefficient):
    sae = SparseAutoencoder(48, activation=activation, l0=3, auxk_coefficient=coefficient, dead_after=600)
    settings = resolve_settings(sae, None, 12)
    state = start_training(activations, settings, 0, torch.device("cpu"))
    state.parameters.encoder_weight[3] *= 1e-3  # its codes are above zero and never among the largest
    before = state.parameters.encoder_weight[3].clone()
    for is_trained in (False, coefficient == "auto"):
        take_step(state, settings, activations)
        assert torch.equal(state.parameters.encoder_weight[3], before) != is_trained
    assert state.idle_tokens[3] == 1200


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_fits_with_dead_latents_do_not_depend_on_the_kind_of_step(monkeypatch, activations, activation):
    sae = SparseAutoencoder(48, activation=activation, l0=3, dead_after=200, batch_size=100, random_state=0)
    sae.set_params(normalization=None, n_epochs=3, device="cpu").fit(activations)
    assert 0 < sae.history_[-1]["dead"] < 1
    by_kernels = sae.encoder_, sae.encoder_bias_, sae.decoder_, sae.decoder_bias_
    monkeypatch.setattr(_trainer, "takes_sparse_step", lambda settings, device: False)
    sae.fit(activations)
    for found, expected in zip(
        by_kernels, (sae.encoder_, sae.encoder_bias_, sae.decoder_, sae.decoder_bias_), strict=True
    ):
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected), atol=1e-4, rtol=0.0)
