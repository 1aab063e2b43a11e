import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from geofloor import SparseAutoencoder
from geofloor.features import _sparse_step
from geofloor.features._autoencoder_settings import THRESHOLDED, resolve_settings
from geofloor.features._sparse_step import Parameters, compute_gradients, encode
from geofloor.features._sparsity import average_cutoff, find_cutoff
from geofloor.features._trainer import read_measurements, start_training, take_step

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn


def sparse_rows(rng, n_rows, n_inputs=16, n_features=32, rate=0.08):
    """Make rows of sparse features in superposition, with sizes from 0.5 to 1.5, and return the directions too."""
    directions = rng.normal(size=(n_features, n_inputs))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sizes = (0.5 + rng.random((n_rows, n_features))) * (rng.random((n_rows, n_features)) < rate)
    return (sizes @ directions).astype(np.float32), directions


@pytest.mark.parametrize("codes_at_a_time", [2**25, 7 * 40])
def test_the_cutoff_of_a_batch_leaves_its_largest_codes(monkeypatch, rng, codes_at_a_time):
    monkeypatch.setattr(_sparse_step, "_CODES_AT_A_TIME_ON_CPU", codes_at_a_time)  # 7 rows per piece, or all at once
    shapes = [(40, 9), (40,), (40, 9), (9,)]
    parameters = Parameters(*(torch.from_numpy(rng.normal(size=shape)) for shape in shapes))
    inputs = torch.from_numpy(rng.normal(size=(50, 9)))
    codes = encode(parameters, inputs)
    cutoff = find_cutoff(parameters, inputs, 3)
    torch.testing.assert_close(cutoff, codes.flatten().sort(descending=True).values[150])
    assert int(compute_gradients(parameters, inputs, 0.0, threshold=cutoff).firings.sum()) == 150
    assert find_cutoff(parameters, inputs, 39) == 0  # fewer codes are above zero


def test_the_threshold_is_a_mean_of_cutoffs():
    threshold = torch.zeros(2, dtype=torch.float64)
    for step, cutoff in enumerate([4.0, 2.0, 6.0], start=1):
        average_cutoff(threshold, torch.tensor(cutoff, dtype=torch.float64), step)
    torch.testing.assert_close(threshold, torch.full((2,), 4.0, dtype=torch.float64))
    average_cutoff(threshold, torch.tensor(5.0, dtype=torch.float64), 1000)  # the last of 100 steps, no more
    torch.testing.assert_close(threshold, torch.full((2,), 4.01, dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.1, 10.0])
@pytest.mark.parametrize("l0", [2, 3, 5])
@pytest.mark.parametrize(
    ("activation", "normalization", "n_epochs"),
    [
        ("batchtopk", "spread", 12),
        ("batchtopk", None, 12),
        ("jumprelu", "spread", 12),
        ("jumprelu", None, 12),
        ("relu", "spread", 30),  # its penalty needs more steps to have its effect
    ],
)
def test_held_out_rows_have_the_mean_number_of_codes_asked_for(rng, activation, normalization, n_epochs, l0, scale):
    X = np.float32(scale) * sparse_rows(rng, 8000)[0]
    sae = SparseAutoencoder(
        64,
        activation=activation,
        l0=l0,
        normalization=normalization,
        n_epochs=n_epochs,
        batch_size=128,
        random_state=0,
    ).fit(X[:6000])
    assert sae.transform(X[6000:]).nnz / 2000 == pytest.approx(l0, rel=0.05)


@pytest.mark.parametrize("activation", THRESHOLDED)
def test_codes_of_a_row_do_not_depend_on_the_other_rows(activations, activation):
    sae = SparseAutoencoder(24, activation=activation, l0=3, n_epochs=2, random_state=0).fit(activations)
    codes = sae.transform(activations).toarray()
    assert len({*(codes > 0).sum(axis=1)}) > 1
    for row in (0, 17):
        np.testing.assert_allclose(sae.transform(activations[row : row + 1]).toarray()[0], codes[row], rtol=1e-5)
    assert (codes[codes > 0] > np.broadcast_to(sae.threshold_, codes.shape)[codes > 0]).all()


@pytest.mark.parametrize(("activation", "l0"), [("topk", 4), ("batchtopk", 4), ("jumprelu", 2), ("relu", 4)])
def test_features_are_found(rng, activation, l0):
    X, directions = sparse_rows(rng, 10_000)
    sae = SparseAutoencoder(64, activation=activation, l0=l0, n_epochs=20, random_state=0).fit(X)
    assert ((directions @ sae.decoder_.T).max(axis=1) >= 0.9).mean() >= 0.9


def test_partial_fit_refuses_another_activation(activations):
    sae = SparseAutoencoder(24, activation="batchtopk", l0=3, random_state=0).partial_fit(activations)
    with pytest.raises(ValueError, match="activation='topk' is not that of the earlier steps, 'batchtopk'"):
        clone(sae).partial_fit(activations).set_params(activation="topk").partial_fit(activations)


@pytest.mark.parametrize("activation", THRESHOLDED)
def test_partial_fit_after_load_keeps_the_threshold(activations, tmp_path, activation):
    sae = SparseAutoencoder(24, activation=activation, l0=3, n_epochs=50, random_state=0).fit(activations)
    sae.save(tmp_path / "saved")
    loaded = SparseAutoencoder.load(tmp_path / "saved").set_params(learning_rate=1e-6)
    loaded.partial_fit(activations)
    np.testing.assert_allclose(loaded.threshold_, sae.threshold_, rtol=0.02)


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("activation", THRESHOLDED)
def test_a_target_out_of_reach_warns(activations, activation):
    sae = SparseAutoencoder(24, activation=activation, l0=23, n_epochs=5, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"rows have 1\d(\.\d)? codes on average, not l0=23; lower l0"):
        sae.fit(activations)


@pytest.mark.parametrize("activation", [*THRESHOLDED, "relu"])
@pytest.mark.parametrize("rows_of_all", [np.zeros, np.ones])
def test_equal_rows_are_learned(activation, rows_of_all):
    X = rows_of_all((50, 4), dtype=np.float32)
    sae = SparseAutoencoder(8, activation=activation, l0=2, n_epochs=1, random_state=0).fit(X)
    assert np.isfinite(sae.encoder_).all()
    assert activation == "relu" or np.isfinite(sae.threshold_).all()
    assert sae.score(X) == 1.0


def test_a_reset_gives_latents_a_fifth_of_the_mean_threshold(activations):
    sae = SparseAutoencoder(48, activation="jumprelu", l0=6, resample_every=600, random_state=0)
    settings = resolve_settings(sae, None, 12)
    state = start_training(activations, settings, 0, torch.device("cpu"))
    state.parameters.encoder_bias[[3, 7]] = -100.0
    take_step(state, settings, activations)
    read_measurements(state, settings)
    threshold = state.threshold
    reset = threshold == threshold[3]
    assert reset[7]
    assert int(reset.sum()) == state.history[-1]["n_resampled"] < 48
    torch.testing.assert_close(threshold[3], 0.2 * threshold[~reset].mean())
    moments = state.optimizer.state[state.optimizer.param_groups[1]["params"][0]]
    assert (moments["exp_avg"][reset] == 0).all()
    assert (moments["exp_avg"][~reset] != 0).any()


def test_the_steered_penalty_is_reported_and_kept(activations, tmp_path):
    sae = SparseAutoencoder(24, activation="relu", l0=3, n_epochs=50, random_state=0).fit(activations)
    last = sae.history_[-2:]
    steered = [(row["loss"] - row["reconstruction"]) / row["l1"] for row in last]
    excess = np.clip([row["l0"] / 3 - 1 for row in last], -0.1, 0.1)
    gain = 0.015 * np.sqrt(3600 / sae.n_steps_)
    assert steered[1] == pytest.approx(steered[0] * np.exp(gain * excess[0]), rel=1e-4)
    assert sae.l1_coefficient_ == pytest.approx(steered[1] * np.exp(gain * excess[1]), rel=1e-4)
    sae.save(tmp_path / "saved")
    loaded = SparseAutoencoder.load(tmp_path / "saved")
    assert (loaded.l0_, loaded.l1_coefficient_) == (3, sae.l1_coefficient_)
    loaded.partial_fit(activations)
    row = loaded.history_[sae.n_steps_]
    assert (row["loss"] - row["reconstruction"]) / row["l1"] == pytest.approx(sae.l1_coefficient_, rel=1e-4)
