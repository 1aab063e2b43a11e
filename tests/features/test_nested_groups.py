import numpy as np
import pytest
import torch
from sklearn.base import clone

from geofloor import SparseAutoencoder
from geofloor.features import _sparse_step
from geofloor.features._auxiliary_loss import AuxiliaryLoss
from geofloor.features._sparse_step import Parameters, compute_gradients, encode

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn


def prefix_losses(parameters, inputs, mask, groups):
    """Compute the loss of each prefix as Bussmann et al. (2025) define it, for automatic differentiation."""
    weight, bias, directions, decoder_bias = parameters
    codes = torch.relu((inputs - decoder_bias) @ weight.T + bias) * mask
    return [
        (inputs - codes[:, :m] @ directions[:m] - decoder_bias).square().sum(1).mean() for m in groups
    ]  # fmt: skip


@pytest.mark.parametrize("codes_at_a_time", [2**25, 7 * 40])
@pytest.mark.parametrize("groups", [(40,), (10, 40), (6, 7, 25, 40)])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_gradients_are_those_of_automatic_differentiation(monkeypatch, activation, groups, codes_at_a_time):
    monkeypatch.setattr(_sparse_step, "_CODES_AT_A_TIME_ON_CPU", codes_at_a_time)  # 7 rows per piece, or all at once
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 9), (40,), (40, 9), (9,)]
    parameters = Parameters(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))
    inputs = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    rule = {"l0": 5} if activation == "topk" else {"threshold": torch.tensor(3.0, dtype=torch.float64)}
    dead = torch.arange(40) % 3 == 0
    auxiliary = AuxiliaryLoss(parameters, dead, 0.25)
    result = compute_gradients(parameters, inputs, 0.0, **rule, groups=groups)
    with_auxiliary = compute_gradients(parameters, inputs, 0.0, **rule, groups=groups, auxiliary=auxiliary)
    alone = AuxiliaryLoss(parameters, dead, 0.25)
    codes = encode(parameters, inputs, rule.get("l0"), rule.get("threshold"))
    alone.add(inputs - parameters.decoder_bias, _sparse_step.decode(parameters, codes) - inputs, 50)
    parameters = Parameters(*(parameter.requires_grad_() for parameter in parameters))
    losses = prefix_losses(parameters, inputs, codes > 0, groups)
    expected = torch.autograd.grad(sum(losses), list(parameters))
    torch.testing.assert_close(result.reconstruction, losses[-1].detach())
    torch.testing.assert_close(result.of_prefixes, sum(losses[:-1], torch.tensor(0.0, dtype=torch.float64)).detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)
    alone.add_to(result.gradients)
    for gradient, reference in zip(with_auxiliary.gradients, result.gradients, strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_a_prefix_reconstructs_better_if_it_is_a_group(activations, activation):
    def unexplained(sae):
        codes = sae.transform(activations).toarray()[:, :6]
        return np.square(activations - codes @ sae.decoder_[:6] - sae.decoder_bias_).sum()

    whole = SparseAutoencoder(48, activation=activation, l0=3, n_epochs=100, random_state=0)
    nested = clone(whole).set_params(groups=(6, 48)).fit(activations)
    assert unexplained(nested) < 0.6 * unexplained(whole.fit(activations))


def test_the_history_holds_the_loss_of_all_prefixes(activations):
    sae = SparseAutoencoder(groups=[6, 24], l0=3, normalization=None, batch_size=600, learning_rate=0.0, random_state=0)
    sae.partial_fit(activations)
    assert sae.n_latents_ == 24
    inputs = torch.from_numpy(activations)
    parameters = Parameters(*map(torch.from_numpy, (sae.encoder_, sae.encoder_bias_, sae.decoder_, sae.decoder_bias_)))
    first, last = prefix_losses(parameters, inputs, encode(parameters, inputs, 3) > 0, (6, 24))
    assert sae.history_[0]["loss"] == pytest.approx(float(first + last), rel=1e-5)
    assert sae.history_[0]["reconstruction"] == pytest.approx(float(last), rel=1e-5)


def test_groups_are_kept_in_files(activations, tmp_path):
    sae = SparseAutoencoder(groups=np.array([6, 24]), l0=3, n_epochs=1, random_state=0, checkpoint_path=tmp_path / "a")
    sae.fit(activations).save(tmp_path / "saved")
    assert SparseAutoencoder.load(tmp_path / "saved").groups == (6, 24)
    with pytest.raises(ValueError, match="other values of groups"):
        clone(sae).set_params(groups=(7, 24)).fit(activations)
    np.testing.assert_array_equal(clone(sae).fit(activations).decoder_, sae.decoder_)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"groups": (8, 4, 24)}, r"groups=\(8, 4, 24\) must be increasing whole numbers"),
        ({"groups": (4, 4, 24)}, "must be increasing whole numbers"),
        ({"groups": (0, 24)}, "must be increasing whole numbers of at least 1"),
        ({"groups": (3.5, 24)}, "must be increasing whole numbers"),
        ({"groups": ()}, "groups is empty"),
        ({"groups": 24}, "groups has shape"),
        ({"groups": "all"}, "groups"),
        ({"groups": (4, 20)}, r"groups=\(4, 20\) must end with the number of latents, 24; add it, or set n_latents"),
        ({"groups": (2, 24)}, r"groups=\(2, 24\) starts with fewer latents than l0=3"),
        ({"groups": (4, 8, 24), "batch_size": 2}, "batch_size=2 is below the number of groups, 3"),
        ({"groups": (4, 24), "activation": "jumprelu"}, "needs activation='topk' or 'batchtopk', not 'jumprelu'"),
        ({"groups": (4, 24), "activation": "relu"}, "needs activation='topk' or 'batchtopk', not 'relu'"),
    ],
)
def test_groups_that_do_not_fit_are_refused(activations, parameters, message):
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(24, l0=3, random_state=0).set_params(**parameters).fit(activations)


def test_groups_of_another_dictionary_are_refused_by_partial_fit(activations):
    sae = SparseAutoencoder(24, l0=3, random_state=0).partial_fit(activations)
    with pytest.raises(ValueError, match=r"groups=\(4, 20\) must end with the number of latents, 24"):
        sae.set_params(n_latents=None, groups=(4, 20)).partial_fit(activations)
