import errno
import signal
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from geofloor import SparseAutoencoder, _sparse_step, sparse_autoencoder
from geofloor._sparse_step import Parameters, decode, encode, initialise, loss_and_gradients, reset_latents
from geofloor._training.checkpoints import write_tensors

WEIGHTS = ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_")


@pytest.fixture
def activations(rng):
    """Sparse features in superposition: 30 of them in 12 dimensions, off the origin."""
    features = rng.random((600, 30)) * (rng.random((600, 30)) < 0.1)
    return (features @ rng.normal(size=(30, 12)) + 3.0).astype(np.float32)


@pytest.fixture
def sae():
    return SparseAutoencoder(48, batch_size=100, n_epochs=5, learning_rate=3e-3, l1_coefficient=0.05, random_state=0)


def random_parameters(n_latents=40, n_inputs=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(n_latents, n_inputs), (n_latents,), (n_latents, n_inputs), (n_inputs,)]
    return Parameters(*(torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes))


def plain_loss(parameters, inputs, l1_coefficient):
    """The paper's loss as it is written, for automatic differentiation."""
    codes = torch.relu((inputs - parameters.decoder_bias) @ parameters.encoder_weight.T + parameters.encoder_bias)
    reconstruction = codes @ parameters.decoder_weight + parameters.decoder_bias
    return (inputs - reconstruction).square().sum(1).mean() + l1_coefficient * codes.abs().sum(1).mean()


@pytest.mark.parametrize("codes_at_a_time", [2**25, 7 * 40])
def test_gradients_are_those_of_automatic_differentiation(monkeypatch, codes_at_a_time):
    monkeypatch.setattr(_sparse_step, "_CODES_AT_A_TIME_ON_CPU", codes_at_a_time)  # 7 rows a piece, or all at once
    parameters = Parameters(*(parameter.requires_grad_() for parameter in random_parameters()))
    inputs = torch.randn(50, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = plain_loss(parameters, inputs, 0.3)
    expected = torch.autograd.grad(loss, list(parameters))
    with torch.no_grad():
        result = loss_and_gradients(parameters, inputs, 0.3)
    torch.testing.assert_close(result.reconstruction + 0.3 * result.l1, loss.detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)
    codes = encode(parameters, inputs)
    assert torch.equal(result.firings, (codes > 0).sum(0))


def test_training_is_the_textbook_loop(activations, sae):
    """Autograd, projection, clipping, torch's Adam and renormalisation, step by step."""
    sae.set_params(n_epochs=1, clip_norm=0.5)
    sae.fit([activations])  # a stream: in order
    bias = torch.from_numpy(activations.mean(axis=0, dtype=np.float64).astype(np.float32))
    seed = np.random.RandomState(0).randint(np.iinfo(np.int32).max)
    parameters = [p.clone().requires_grad_() for p in initialise(48, bias, torch.Generator().manual_seed(int(seed)))]
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


def test_directions_keep_unit_norm_and_the_callers_data_is_left_alone(activations, sae):
    before = activations.copy()
    sae.set_params(normalization="mean_norm").fit(activations)
    np.testing.assert_allclose(np.linalg.norm(sae.decoder_, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(activations, before)


def test_a_planted_dictionary_is_found(rng):
    directions = rng.normal(size=(16, 16))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    features = rng.exponential(size=(20_000, 16)) * (rng.random((20_000, 16)) < 0.05)
    activations = features @ directions
    sae = SparseAutoencoder(
        32, batch_size=500, n_epochs=20, learning_rate=1e-2, l1_coefficient=0.3, decay_fraction=0.3, random_state=0
    ).fit(activations)
    best = (directions @ sae.decoder_.T).max(axis=1)
    assert best.min() > 0.99
    assert sae.score(activations) > 0.9


@pytest.mark.parametrize("normalization", ["mean_norm", "mean_square"])
def test_normalisation_is_folded_into_codes_of_raw_data(activations, sae, normalization):
    sae.set_params(normalization=normalization)
    small, large = clone(sae).fit(activations), clone(sae).fit(1024 * activations)
    norms = np.linalg.norm(activations.astype(np.float64), axis=1)
    scale = np.sqrt(12) / norms.mean() if normalization == "mean_norm" else 1 / np.sqrt(np.square(norms).mean())
    assert small.scale_ == pytest.approx(scale)
    codes, scaled = small.transform(activations).toarray(), large.transform(1024 * activations).toarray()
    np.testing.assert_allclose(scaled, 1024 * codes, rtol=1e-4, atol=1e-2)
    assert large.score(1024 * activations) == pytest.approx(small.score(activations), abs=1e-4)
    # The decoder's own reading of the codes is on the raw scale too.
    np.testing.assert_allclose(
        small.inverse_transform(codes), codes @ small.decoder_ + small.decoder_bias_, rtol=1e-4, atol=1e-5
    )
    residual = activations - small.inverse_transform(codes)
    assert np.square(residual).sum(1).mean() < np.square(activations - activations.mean(0)).sum(1).mean()


def test_transform_is_the_encoder_in_csr(activations, sae):
    sae.fit(activations)
    codes = sae.transform(activations)
    expected = np.maximum((activations - sae.decoder_bias_) @ sae.encoder_.T + sae.encoder_bias_, 0)
    assert codes.format == "csr"
    assert codes.dtype == np.float32
    assert (codes.data > 0).all()
    np.testing.assert_allclose(codes.toarray(), expected, atol=1e-5)
    with sklearn.config_context(sparse_interface="sparray"):
        assert isinstance(sae.transform(activations), sp.csr_array)
    np.testing.assert_allclose(sae.inverse_transform(codes), sae.inverse_transform(codes.toarray()), atol=1e-5)


def test_transform_in_pieces_equals_transform_at_once(monkeypatch, activations, sae):
    sae.fit(activations)
    whole, score = sae.transform(activations), sae.score(activations)
    monkeypatch.setattr("geofloor.sparse_autoencoder._CODES_AT_A_TIME", 48 * 37)
    np.testing.assert_allclose(sae.transform(activations).toarray(), whole.toarray(), atol=1e-5)
    assert sae.score(activations) == pytest.approx(score)


def test_score_is_explained_variance(activations, sae):
    sae.fit(activations)
    residual = activations - sae.inverse_transform(sae.transform(activations))
    total = np.square(activations - activations.mean(axis=0, dtype=np.float64)).sum()
    assert sae.score(activations) == pytest.approx(1 - np.square(residual, dtype=np.float64).sum() / total, rel=1e-5)


def test_score_of_constant_rows(sae, activations):
    sae.fit(activations)
    assert sae.score(np.tile(activations[:1], (5, 1))) == 0


def test_history_has_a_row_for_each_step(activations, sae):
    sae.set_params(n_epochs=1, dead_after=100).fit(activations)
    assert [row["step"] for row in sae.history_] == [1, 2, 3, 4, 5, 6]
    assert sae.history_[-1]["n_tokens"] == sae.n_tokens_seen_ == 600
    first = sae.history_[0]
    assert first["loss"] == pytest.approx(first["reconstruction"] + 0.05 * first["l1"])
    assert 0 < first["l0"] <= 48


def assert_same_weights(a, b):
    for name in WEIGHTS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_same_seed_same_bits(activations, sae):
    assert_same_weights(clone(sae).fit(activations), clone(sae).fit(activations))


def test_memory_maps_are_trained_on_as_arrays_are(activations, sae, tmp_path):
    np.save(tmp_path / "x.npy", activations)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_same_weights(clone(sae).fit(mapped), clone(sae).fit(activations))


def test_streams_are_cut_to_the_batch_size_whatever_their_own(activations, sae):
    sae.set_params(n_epochs=1, normalization=None)
    whole = clone(sae).fit([activations])
    uneven = clone(sae).fit(iter(np.split(activations, [300, 330, 480])))
    assert uneven.n_steps_ == whole.n_steps_ == 6
    # Only the starting mean, taken from the first batch, may differ.
    np.testing.assert_allclose(uneven.decoder_bias_, whole.decoder_bias_, atol=0.1)


def test_partial_fit_is_fit_on_a_stream(activations, sae):
    sae.set_params(n_epochs=1)
    by_parts = clone(sae)
    for start in range(0, 600, 100):
        by_parts.partial_fit(activations[start : start + 100])
    assert_same_weights(by_parts, clone(sae).fit(iter(np.split(activations, 6))))


def test_partial_fit_goes_on_after_pickling(activations, sae, tmp_path):
    straight = clone(sae).partial_fit(activations[:300]).partial_fit(activations[300:])
    joblib.dump(clone(sae).partial_fit(activations[:300]), tmp_path / "sae.joblib")
    restored = joblib.load(tmp_path / "sae.joblib")
    assert_same_weights(restored.partial_fit(activations[300:]), straight)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 4, 13, 29])
def test_a_stopped_fit_goes_on_to_the_same_bits(activations, sae, tmp_path, monkeypatch, steps):
    settings = {"resample_every": 700, "decay_fraction": 0.2, "warmup_steps": 3}
    never_stopped = clone(sae).set_params(**settings).fit(activations)
    stopped = clone(sae).set_params(**settings, checkpoint_path=tmp_path / "checkpoint", checkpoint_every=3)
    step = SparseAutoencoder._step

    def stop_after(self, state, *arguments):
        if state.step == steps:
            raise StoppedError
        step(self, state, *arguments)

    monkeypatch.setattr(SparseAutoencoder, "_step", stop_after)
    with pytest.raises(StoppedError):
        clone(stopped).fit(activations)
    monkeypatch.undo()
    resumed = clone(stopped).fit(activations)
    assert_same_weights(resumed, never_stopped)
    assert resumed.history_ == never_stopped.history_
    assert_same_weights(clone(stopped).fit(activations), never_stopped)  # already complete


_KILLED = """
import sys
import numpy as np
from geofloor import SparseAutoencoder

def batches():
    for i in range(60):
        print(i, flush=True)
        yield np.random.default_rng(i).normal(size=(64, 16))

SparseAutoencoder(
    64, batch_size=64, resample_every=640, checkpoint_path=sys.argv[1], checkpoint_every=4, random_state=3
).fit(batches()).save(sys.argv[2])
"""


def test_sigkill_at_several_points_loses_nothing(tmp_path):
    def start(name):
        arguments = [sys.executable, "-c", _KILLED, str(tmp_path / name), str(tmp_path / f"{name}.safetensors")]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    with start("never stopped") as process:
        process.communicate()
    for last_line in ("5", "22", "47"):
        with start("killed") as process:
            for line in process.stdout:
                if line.strip() == last_line:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
    with start("killed") as process:
        process.communicate()
    killed, never_stopped = (
        SparseAutoencoder.load(tmp_path / f"{name}.safetensors") for name in ("killed", "never stopped")
    )
    assert_same_weights(killed, never_stopped)
    assert killed.history_ == never_stopped.history_


def test_the_history_of_a_resumed_fit_has_its_names_in_the_same_order(activations, sae, tmp_path):
    sae.set_params(checkpoint_path=tmp_path / "checkpoint").fit(activations)
    resumed = clone(sae).fit(activations)
    assert [list(row) for row in resumed.history_] == [list(row) for row in sae.history_]
    sae.save(tmp_path / "saved")
    assert list(SparseAutoencoder.load(tmp_path / "saved").history_[0]) == list(sae.history_[0])


@pytest.mark.parametrize(
    "odd",
    [
        {"learning_rate": np.float32(3e-3)},
        {"l1_coefficient": np.float16(0.05)},
        {"betas": np.array([0.9, 0.999])},
        {"betas": [0.9, 0.999]},
        {"batch_size": np.int64(100), "random_state": np.int64(0)},
        {"clip_norm": np.float64(1.0), "device": torch.device("cpu")},
    ],
)
def test_numbers_of_other_libraries_are_kept_in_files(activations, sae, tmp_path, odd):
    sae.set_params(n_epochs=1, **odd, checkpoint_path=tmp_path / "checkpoint").fit(activations)
    sae.save(tmp_path / "saved")
    assert_same_weights(SparseAutoencoder.load(tmp_path / "saved"), sae)
    assert_same_weights(clone(sae).fit(activations), sae)  # from its checkpoint
    assert SparseAutoencoder.load(tmp_path / "saved").betas == (0.9, 0.999)


def test_what_can_not_be_written_is_refused_before_the_first_step(activations, sae, tmp_path, monkeypatch):
    monkeypatch.setattr(SparseAutoencoder, "_start", None)
    for wrong, message in [
        ({"verbose": Decimal(1)}, "verbose=.*is a Decimal, which no file can hold"),
        ({"l1_coefficient": Fraction(1, 20)}, "l1_coefficient="),
        ({"betas": (0.9, 1.0)}, "betas=.* below 1"),
        ({"checkpoint_path": tmp_path}, "checkpoint_path=.* is a folder"),
        ({"checkpoint_path": tmp_path / ("x" * 300)}, "checkpoint_path=.* can't be written"),
    ]:
        with pytest.raises(ValueError, match=message):
            clone(sae).set_params(**wrong).fit(activations)


def test_a_disk_that_is_full_at_the_end_leaves_the_fit(activations, sae, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = clone(sae).fit(activations)
    monkeypatch.setattr(sparse_autoencoder, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        sae.set_params(checkpoint_path=tmp_path / "checkpoint").fit(activations)
    assert_same_weights(sae, expected)


def test_a_checkpoint_of_something_else_is_refused(activations, sae, tmp_path):
    sae.set_params(checkpoint_path=tmp_path / "checkpoint").fit(activations)
    with pytest.raises(ValueError, match="other values of l1_coefficient"):
        clone(sae).set_params(l1_coefficient=0.1).fit(activations)
    with pytest.raises(ValueError, match="other values of random_state"):
        clone(sae).set_params(random_state=1).fit(activations)
    with pytest.raises(ValueError, match="made with other data"):
        clone(sae).fit(activations + 1)
    write_tensors(tmp_path / "checkpoint", {"a": torch.zeros(1)}, kind="something else", metadata={})
    with pytest.raises(ValueError, match="holds a something else"):
        clone(sae).fit(activations)


def test_save_and_load(activations, sae, tmp_path):
    sae.fit(activations).save(tmp_path / "sae.safetensors")
    loaded = SparseAutoencoder.load(tmp_path / "sae.safetensors")
    assert_same_weights(loaded, sae)
    assert loaded.get_params() == {**sae.get_params(), "device": "auto"}
    assert loaded.history_ == sae.history_
    assert (loaded.transform(activations) != sae.transform(activations)).nnz == 0


def test_a_loaded_autoencoder_is_trained_on_from_its_weights(activations, sae, tmp_path):
    sae.set_params(normalization="mean_norm").fit(activations).save(tmp_path / "sae.safetensors")
    loaded = SparseAutoencoder.load(tmp_path / "sae.safetensors").set_params(learning_rate=1e-6)
    loaded.partial_fit(activations)
    assert loaded.n_steps_ == sae.n_steps_ + 6
    assert len(loaded.history_) == len(sae.history_) + 6
    np.testing.assert_allclose(loaded.encoder_, sae.encoder_, atol=1e-4)
    assert loaded.score(activations) == pytest.approx(sae.score(activations), abs=1e-3)


def test_damaged_and_foreign_files_are_refused_by_name(activations, sae, tmp_path):
    path = tmp_path / "sae.safetensors"
    sae.fit(activations).save(path)
    good = path.read_bytes()
    for damaged, message in [
        (good[: len(good) // 2], "truncated"),
        (b"", "truncated"),
        (good[:-1] + bytes([good[-1] ^ 1]), "altered"),
        (good.replace(b'\\"l1_coefficient\\": 0.05', b'\\"l1_coefficient\\": 0.06'), "altered"),
        (b"not a safetensors file at all", "truncated or no safetensors file"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"sae\.safetensors.*{message}"):
            SparseAutoencoder.load(path)
    from safetensors.torch import save_file

    save_file({"W_enc": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="not written by geofloor"):
        SparseAutoencoder.load(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        SparseAutoencoder.load(tmp_path / "missing")


def test_reset_latents_points_dead_ones_at_what_is_missed(activations):
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


def test_resampling_brings_latents_back(activations):
    # A penalty this large kills a third of the latents if they are never resampled.
    settings = {"l1_coefficient": 4.0, "learning_rate": 1e-2, "batch_size": 100, "n_epochs": 60, "dead_after": 3000}
    settings |= {"n_latents": 48, "random_state": 0}
    left = SparseAutoencoder(**settings).fit(activations)
    helped = SparseAutoencoder(**settings, resample_every=6000).fit(activations)
    resampled = [row for row in helped.history_ if row["n_resampled"]]
    assert resampled
    assert resampled[-1]["n_tokens"] <= 36_000 - 6000
    assert helped.history_[-1]["dead"] < left.history_[-1]["dead"]


def test_grid_search_over_its_parameters(activations, sae):
    search = GridSearchCV(sae, {"n_latents": [4, 48]}, cv=2).fit(activations)
    assert search.best_params_ == {"n_latents": 48}


def test_default_size_and_names_of_the_codes(activations):
    sae = SparseAutoencoder(expansion=4, random_state=0).fit(activations)
    assert sae.n_latents_ == 48
    assert sae.get_feature_names_out()[:2].tolist() == ["sparseautoencoder0", "sparseautoencoder1"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_latents": 0}, "n_latents=0 must be a whole number of at least 1"),
        ({"expansion": 1.5}, "expansion=1.5 must be a whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"l1_coefficient": -1.0}, "l1_coefficient=-1.0"),
        ({"learning_rate": np.nan}, "learning_rate=nan"),
        ({"decay_fraction": 2.0}, "decay_fraction=2.0 must be a finite number between 0 and 1"),
        ({"normalization": "unit"}, "normalization='unit' is unknown"),
        ({"device": "tpu9"}, "device='tpu9'"),
    ],
)
def test_bad_parameters_are_named_before_training(activations, parameters, message):
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(**parameters).fit(activations)


def test_bad_data_is_named(activations, sae, tmp_path):
    broken = activations.copy()
    broken[123, 4] = np.nan
    np.save(tmp_path / "x.npy", broken)
    for X, message in [
        (broken, "X contains NaN"),
        (np.load(tmp_path / "x.npy", mmap_mode="r"), "NaN or infinity, first in row 123"),
        (iter([activations, broken]), "X contains NaN"),
        ([activations, activations[:, :5]], "has 5 inputs, the first had 12"),
        (iter([]), "empty iterable"),
        (activations[:, 0], "Expected 2D array"),
    ]:
        with pytest.raises(ValueError, match=message):
            clone(sae).set_params(n_epochs=1).fit(X)
    with pytest.raises(ValueError, match="one-time iterator"):
        clone(sae).fit(iter([activations]))
    with pytest.raises(ValueError, match="data of known length"):
        clone(sae).set_params(decay_fraction=0.5, n_epochs=1).fit(iter([activations]))
    with pytest.raises(ValueError, match="12 features"):
        clone(sae).fit(activations).transform(activations[:, :5])
    with pytest.raises(ValueError, match="n_latents_=48"):
        clone(sae).fit(activations).inverse_transform(np.ones((2, 5)))
    with pytest.raises(NotFittedError):
        sae.score(activations)


def test_a_loss_that_overflows_stops_the_fit_and_keeps_the_last_good_checkpoint(activations, sae, tmp_path):
    path = tmp_path / "checkpoint"
    stream = [activations] * 2 + [np.full_like(activations, 1e30)]
    with pytest.raises(ValueError, match="loss became .*learning_rate=0.003"):
        sae.set_params(n_epochs=1, checkpoint_path=path, checkpoint_every=5).fit(stream)
    assert path.exists()
