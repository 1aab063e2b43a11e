import errno
import re
import signal
import subprocess
import sys
import warnings
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
import sklearn
import torch
from datasets import Dataset
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from geofloor import FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor._training import rows
from geofloor._training.checkpoints import write_tensors
from geofloor.features import OutlierRowsWarning, _sparse_step
from geofloor.features import _autoencoder as sparse_autoencoder
from geofloor.features._autoencoder_settings import Outcome, Settings, doubts, find_scale, resolve
from geofloor.features._sparse_step import Parameters, decode, encode, initialise, loss_and_gradients, reset_latents

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits all of them
WEIGHTS = ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_")


@pytest.fixture
def activations(rng):
    """Sparse features in superposition: 30 of them in 12 dimensions, off the origin."""
    features = rng.random((600, 30)) * (rng.random((600, 30)) < 0.1)
    return (features @ rng.normal(size=(30, 12)) + 3.0).astype(np.float32)


@pytest.fixture
def sae():
    return SparseAutoencoder.paper(
        48, batch_size=100, n_epochs=5, learning_rate=3e-3, l1_coefficient=0.05, random_state=0
    )


@pytest.fixture
def long_streams(monkeypatch):
    """Streams of more than 200 rows count as too long to be read at once."""
    monkeypatch.setattr(rows, "_SAMPLE_ROWS", 200)


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
    sae.set_params(clip_norm=0.5).partial_fit(activations)  # which takes rows in order
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
    sae = SparseAutoencoder.paper(
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
    monkeypatch.setattr("geofloor.features._autoencoder._CODES_AT_A_TIME", 48 * 37)
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


def test_a_fit_on_a_stream_does_not_depend_on_how_it_is_cut(activations, sae, long_streams):
    sae.set_params(n_epochs=1, normalization="spread", validation_fraction=0.1)
    whole = clone(sae).fit([activations])
    uneven = clone(sae).fit(np.split(activations, [3, 300, 330, 480]))
    assert uneven.n_steps_ == whole.n_steps_ == 5
    assert_same_weights(uneven, whole)
    assert uneven.explained_variance_ == whole.explained_variance_ == whole.score(activations[:60])


def test_a_short_stream_is_fitted_as_the_array_that_it_is(activations, sae):
    sae.set_params(normalization="spread", validation_fraction=0.1)
    assert_same_weights(clone(sae).fit(iter(np.split(activations, 6))), clone(sae).fit(activations))


def test_partial_fit_is_fit_on_a_stream(activations, sae, long_streams):
    sae.set_params(n_epochs=1)
    by_parts = clone(sae).partial_fit(activations[:200])
    for start in range(200, 600, 100):
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


class SeekableStream:
    """Batches of an array that can start at any row, and stop working before some row."""

    def __init__(self, X, stops_at=None):
        self.X, self.stops_at, self.asked = X, stops_at, []

    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, row):
        self.asked.append(row)
        for start in range(row, len(self.X), 70):
            if self.stops_at is not None and start >= self.stops_at:
                raise StoppedError
            yield self.X[start : start + 70]


def test_a_resumed_fit_asks_a_stream_for_the_rows_that_are_left(activations, sae, tmp_path, long_streams):
    path = tmp_path / "checkpoint"
    sae.set_params(n_epochs=1, validation_fraction=0.1, checkpoint_every=1)  # 20 rows of the sample of 200
    never_stopped = clone(sae).fit(SeekableStream(activations))
    sae.set_params(checkpoint_path=path)
    assert SparseAutoencoder.steps_done(path) == 0
    with pytest.raises(StoppedError):
        clone(sae).fit(SeekableStream(activations, stops_at=420))
    assert SparseAutoencoder.steps_done(path) == 4
    stream = SeekableStream(activations)
    resumed = clone(sae).fit(stream)
    assert stream.asked == [0, 20 + 4 * 100]
    assert_same_weights(resumed, never_stopped)
    assert resumed.history_ == never_stopped.history_
    assert SparseAutoencoder.steps_done(path) == resumed.n_steps_ == 5
    assert_same_weights(clone(sae).fit(SeekableStream(activations)), never_stopped)  # already complete
    with pytest.raises(StoppedError):  # of several epochs all rows are read, since no steps per epoch are known
        clone(sae).set_params(n_epochs=2, checkpoint_path=None).fit(SeekableStream(activations, stops_at=420))


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
    left = SparseAutoencoder.paper(**settings).fit(activations)
    helped = SparseAutoencoder.paper(**settings, resample_every=6000).fit(activations)
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
        ({"decay_fraction": 2.0}, "decay_fraction=2.0 must be a finite number of at least 0 and at most 1"),
        ({"n_epochs": "many"}, "n_epochs='many' is unknown; use a number or 'auto'"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0"),
        ({"activation": "gelu"}, "activation='gelu' is unknown"),
        ({"l1_coefficient": 0.1}, "l1_coefficient=0.1 has no effect with activation='topk'"),
        ({"activation": "relu", "l0": 3}, "l0=3 has no effect with activation='relu'"),
        ({"n_latents": 24, "expansion": 2}, "n_latents=24 and expansion=2 both"),
        ({"n_latents": 24, "l0": 25}, "l0=25 is above the number of latents, 24"),
        ({"normalization": "unit"}, "normalization='unit' is unknown"),
        ({"device": "tpu9"}, "device='tpu9'"),
    ],
)
def test_bad_parameters_are_named_before_training(activations, parameters, message):
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(**parameters).fit(activations)


def test_bad_data_is_named(activations, sae, tmp_path, monkeypatch):
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
        (activations.reshape(20, 30, 12), r"X has shape \(20, 30, 12\); .*X.reshape\(-1, 12\)"),
        ("activations.npy", "X='activations.npy' is text"),
        (Dataset.from_dict({"states": activations.tolist()}), r"X is a Dataset with the columns \['states'\]"),
        (np.ma.masked_less(activations, 3), "X is a masked array"),
    ]:
        with pytest.raises(ValueError, match=message):
            clone(sae).set_params(n_epochs=1).fit(X)
    monkeypatch.setattr(rows, "_SAMPLE_ROWS", 200)
    with pytest.raises(ValueError, match="one-time iterator"):
        clone(sae).fit(iter([activations]))
    with pytest.raises(ValueError, match="decay_fraction=0.5 needs data of known length"):
        clone(sae).set_params(decay_fraction=0.5, n_epochs=1).fit(iter([activations]))
    with pytest.raises(ValueError, match="12 features"):
        clone(sae).fit(activations).transform(activations[:, :5])
    with pytest.raises(ValueError, match="n_latents_=48"):
        clone(sae).fit(activations).inverse_transform(np.ones((2, 5)))
    with pytest.raises(NotFittedError):
        sae.score(activations)


def test_a_loss_that_overflows_stops_the_fit_and_keeps_the_last_good_checkpoint(
    activations, sae, tmp_path, long_streams
):
    path = tmp_path / "checkpoint"
    stream = [activations] * 2 + [np.full_like(activations, 1e30)]
    with pytest.raises(ValueError, match="loss became .*learning_rate=0.003"):
        sae.set_params(n_epochs=1, checkpoint_path=path, checkpoint_every=5).fit(stream)
    assert path.exists()


# Defaults


def sparse_features(n_rows, n_inputs=64, n_features=400, rate=0.02, seed=0):
    """Rows of sparse features in superposition, of uniform size."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_features, n_inputs))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sizes = rng.random((n_rows, n_features)) * (rng.random((n_rows, n_features)) < rate)
    return (sizes @ directions).astype(np.float32)


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("factor", [1e-3, pytest.param(1e3, marks=pytest.mark.slow)])
def test_defaults_find_sparse_features_at_any_scale_of_the_data(factor):
    X = factor * sparse_features(24_000)
    pipeline = make_pipeline(SparseAutoencoder(random_state=0), FeatureStatistics(), FloorPredictor()).fit(X[:20_000])
    sae, statistics, floor = pipeline.named_steps.values()
    assert sae.score(X[20_000:]) > 0.9
    assert sae.explained_variance_ > 0.9
    assert statistics.alpha_ > 0.96
    assert sae.l0_ <= 0.05 * sae.n_latents_
    assert statistics.critical_width_ < 2 * 64
    assert np.isfinite(floor.predict([16, 32])).all()


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_what_was_trained_too_little_says_so_at_the_callers_line(activations):
    with pytest.warns(ConvergenceWarning, match="600 rows only.*of the latents|600 rows only") as caught:
        SparseAutoencoder(n_latents=48, n_epochs=3, random_state=0).fit(activations)
    assert [each.filename for each in caught] == [__file__]
    assert "12 steps only; raise n_epochs=3" in str(caught[0].message)


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_noise_without_sparse_features_is_told(rng):
    with pytest.warns(ConvergenceWarning, match="hardly better than Gaussian noise"):
        SparseAutoencoder(random_state=0).fit(rng.normal(size=(6000, 16)))


def outcome(**changes):
    """A fit that nothing speaks against, but for what is changed."""
    settings = Settings(1000, 30, 0.0, 128, 5, 2000, 1e-3, 100, 0.3)
    row = {"loss": 1.0, "l0": 30.0, "dead": 0.1}
    history = [{**row, "step": step, **changes.get("row", {})} for step in range(1, changes.get("n_steps", 2000) + 1)]
    for step, each in enumerate(history):
        each["loss"] -= changes.get("slope", 0.0) * step
        each["l0"] += changes.get("l0_slope", 0.0) * (len(history) - step)
    return Outcome(
        history, settings, changes.get("n_rows", 50_000), changes.get("held_out", 0.9), changes.get("noise", 0.7)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_rows": 4999}, "it saw 4,999 rows only; give at least 5,000"),
        ({"n_steps": 499}, "it took 499 steps only; raise n_epochs=5"),
        ({"slope": 4e-4}, "the loss still fell by 4.0% of the first over the last tenth of the steps; raise n_epochs"),
        ({"l0_slope": 0.05}, "L0 still fell by 5 over the last tenth of the steps"),
        ({"row": {"l0": 101.0}}, "101 of 1,000 latents fire per token, which is not sparse; lower l0"),
        ({"row": {"dead": 0.7}}, "70% of the latents are dead; lower learning_rate"),
        ({"held_out": 0.4}, "explains 40% of the variance of held-out rows only"),
        ({"noise": 0.895}, "hardly better than Gaussian noise of the same covariance"),
    ],
)
def test_each_reason_to_doubt_a_fit_has_its_remedy(changes, reason):
    assert doubts(outcome()) == []
    (found,) = doubts(outcome(**changes))
    assert re.search(reason, found)


def test_rows_far_from_all_others_are_told():
    X = sparse_features(20_000, n_inputs=8, n_features=12, rate=0.3)
    sinks = X.copy()
    sinks[::1000] *= 300
    with pytest.warns(OutlierRowsWarning, match=r"X has 20 row\(s\) in 20,000 with 9\d% of the variance") as caught:
        SparseAutoencoder(8, n_epochs=1, random_state=0).fit(sinks)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutlierRowsWarning)
        clean = SparseAutoencoder(8, n_epochs=1, random_state=0).fit(X)
    # A handful of rows does not set the scale.
    assert find_scale(sinks, "spread") == pytest.approx(clean.scale_, rel=0.01)


@pytest.mark.parametrize("rows_of_all", [np.zeros, np.ones])
@pytest.mark.parametrize("normalization", ["spread", "mean_norm", "mean_square", None])
def test_rows_that_are_all_equal_are_learned(rows_of_all, normalization):
    X = rows_of_all((50, 4), dtype=np.float32)
    sae = SparseAutoencoder(8, normalization=normalization, n_epochs=1, random_state=0).fit(X)
    assert np.isfinite(sae.encoder_).all()
    assert sae.score(X) == 1.0


def test_activations_of_any_type_give_one_result(activations, sae, tmp_path):
    coarse = torch.from_numpy(activations).bfloat16()
    values = coarse.float().numpy()
    np.save(tmp_path / "x.npy", values)
    expected = clone(sae).fit(values)
    read_only = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not writable")
        for X in (coarse, coarse.clone().requires_grad_(), values.astype(np.float16), read_only, values.tolist()):
            found = clone(sae).fit(X)
            assert_same_weights(found, expected)
            assert found.score(X) == expected.score(values)
            np.testing.assert_array_equal(found.transform(X).toarray(), expected.transform(values).toarray())


def test_a_stream_is_scored_as_its_rows_are(activations, sae):
    sae.fit(activations)
    score = sae.score(activations)
    assert sae.score(piece for piece in np.split(activations, [100, 250])) == pytest.approx(score, rel=1e-12)
    assert sae.transform(np.split(activations, [100, 250])).shape == (600, 48)
    for method in (sae.score, sae.transform):
        with pytest.raises(ValueError, match="X gave no batch; .* a generator only once"):
            method(iter([]))


def test_huge_rows_are_scored(activations, sae):
    assert np.isfinite(sae.fit(activations).score(np.float32(1e20) * activations))


def test_gradients_of_topk_are_those_of_automatic_differentiation():
    parameters = Parameters(*(parameter.requires_grad_() for parameter in random_parameters()))
    inputs = torch.randn(50, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    centered = inputs - parameters.decoder_bias
    codes = torch.relu(centered @ parameters.encoder_weight.T + parameters.encoder_bias)
    kept = codes * (codes >= codes.sort(dim=1, descending=True).values[:, 4:5])
    loss = (centered - kept @ parameters.decoder_weight).square().sum(1).mean()
    expected = torch.autograd.grad(loss, list(parameters))
    with torch.no_grad():
        result = loss_and_gradients(parameters, inputs, 0.0, 5)
        torch.testing.assert_close(encode(parameters, inputs, 5), kept.detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)
    assert int(result.firings.sum()) == 5 * 50


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "n_steps"), [(5000, 128, 3600), (50_000, 128, 3600), (10**9, 8192, 0)]
)
def test_batches_and_epochs_follow_from_the_rows(n_rows, batch_size, n_steps):
    rows_given = SimpleNamespace(n_rows=n_rows, steps_per_epoch=lambda size: max(n_rows // size, 1))
    settings = resolve(SparseAutoencoder(), rows_given, 768)
    assert settings.batch_size == batch_size
    assert settings.n_steps == settings.n_epochs * (n_rows // batch_size)
    assert settings.n_epochs == (1 if n_rows > 10**8 else -(-n_steps // (n_rows // batch_size)))
    assert settings.n_latents == min(32 * 768, max(n_rows // 8, 2 * 768))
    assert 0 < settings.learning_rate <= 0.024 / 768**0.5


def test_the_papers_settings_are_a_preset(activations):
    sae = SparseAutoencoder.paper(random_state=0)
    assert (sae.l1_coefficient, sae.learning_rate, sae.batch_size, sae.n_epochs) == (8e-4, 3e-4, 32_768, 1)
    sae.fit(activations)
    assert (sae.n_latents_, sae.l0_, sae.scale_, sae.n_steps_) == (32 * 12, None, 1.0, 1)
    assert SparseAutoencoder.paper(10, n_epochs=2).get_params()["n_latents"] == 10
