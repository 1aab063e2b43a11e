import numpy as np
import pytest
import torch

from geofloor import SparseAutoencoder
from geofloor._training.seeds import draw_seed
from geofloor.features._autoencoder_settings import resolve_settings
from geofloor.features._sparse_step import Parameters, initialize_parameters
from geofloor.features._trainer import start_training, train

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn
WEIGHTS = ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_")


def test_training_is_the_textbook_loop(activations, sae, plain_loss):
    """Compare with autograd, projection, clipping, torch's Adam and normalization, step by step."""
    sae.set_params(clip_norm=0.5).partial_fit(activations)  # which takes rows in order
    bias = torch.from_numpy(activations.mean(axis=0, dtype=np.float64).astype(np.float32))
    seed = np.random.RandomState(0).randint(np.iinfo(np.int32).max)
    parameters = [
        p.clone().requires_grad_() for p in initialize_parameters(48, bias, torch.Generator().manual_seed(int(seed)))
    ]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for start in range(0, 600, 100):
        optimizer.zero_grad()
        plain_loss(Parameters(*parameters), torch.from_numpy(activations[start : start + 100]), 0.05).backward()
        decoder = parameters[2]
        decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True).detach() * decoder.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
    for name, parameter in zip(WEIGHTS, parameters, strict=True):
        np.testing.assert_allclose(getattr(sae, name), parameter.detach().numpy(), atol=2e-5, err_msg=name)


def test_history_has_a_row_for_each_step(activations, sae):
    sae.set_params(n_epochs=1, dead_after=100).fit(activations)
    assert [row["step"] for row in sae.history_] == [1, 2, 3, 4, 5, 6]
    assert sae.history_[-1]["n_tokens"] == sae.n_tokens_seen_ == 600
    first = sae.history_[0]
    assert first["loss"] == pytest.approx(first["reconstruction"] + 0.05 * first["l1"])
    assert 0 < first["l0"] <= 48


def test_resampling_brings_latents_back(activations):
    # A penalty this large kills a third of the latents if they are never resampled.
    settings = {"l1_coefficient": 4.0, "learning_rate": 1e-2, "batch_size": 100, "n_epochs": 60, "dead_after": 3000}
    settings |= {"n_latents": 48, "random_state": 0}
    left = SparseAutoencoder.paper(**settings).fit(activations)
    helped = SparseAutoencoder.paper(**settings, resample_every=6000).fit(activations)
    resampled = [row for row in helped.history_ if row["n_resampled"]]
    assert resampled
    assert resampled[-1]["n_tokens"] <= 36_000 - 6000
    assert helped.history_[-1]["dead"] < left.history_[-1]["dead"]


def test_a_loss_that_overflows_stops_the_fit_and_keeps_the_last_good_checkpoint(
    activations, sae, tmp_path, long_streams
):
    path = tmp_path / "checkpoint"
    stream = [activations] * 2 + [np.full_like(activations, 1e30)]
    with pytest.raises(ValueError, match="loss became .*learning_rate=0.003"):
        sae.set_params(n_epochs=1, checkpoint_path=path, checkpoint_every=5).fit(stream)
    assert path.exists()


def test_arrays_and_settings_are_all_that_training_needs(activations, sae):
    settings = resolve_settings(sae, None, 12)
    state = start_training(activations, settings, draw_seed(0), torch.device("cpu"))
    written = []
    train(
        state,
        settings,
        np.split(activations, 6),
        checkpoint_every=2,
        write_checkpoint=lambda state: written.append((state.step, len(state.history))),
    )
    assert written == [(2, 2), (4, 4), (6, 6)]
    sae.partial_fit(activations)
    np.testing.assert_array_equal(state.parameters.encoder_weight.numpy(), sae.encoder_)
    assert state.history == sae.history_
    with pytest.raises(AttributeError):
        settings.learning_rate = 1.0


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu", "relu"])
def test_a_last_step_that_overflows_is_refused(activations, activation):
    sae = SparseAutoencoder(48, activation=activation, n_epochs=1, batch_size=1000, learning_rate=1e30, random_state=0)
    with pytest.raises(ValueError, match=r"The largest weight became .* at step 1; lower learning_rate=1e\+30"):
        sae.fit(activations)
