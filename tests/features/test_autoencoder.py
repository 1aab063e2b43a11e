import warnings

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
from small_processes import call_apart

from geofloor import FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor._training import rows
from geofloor.features import OutlierRowsWarning, _trainer
from geofloor.features._autoencoder_settings import ACTIVATIONS, find_scale

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn
WEIGHTS = ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_", "threshold_")


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
def test_normalization_is_folded_into_codes_of_raw_data(activations, sae, normalization):
    sae.set_params(normalization=normalization)
    small, large = clone(sae).fit(activations), clone(sae).fit(1024 * activations)
    norms = np.linalg.norm(activations.astype(np.float64), axis=1)
    scale = np.sqrt(12) / norms.mean() if normalization == "mean_norm" else 1 / np.sqrt(np.square(norms).mean())
    assert small.scale_ == pytest.approx(scale)
    codes, scaled = small.transform(activations).toarray(), large.transform(1024 * activations).toarray()
    np.testing.assert_allclose(scaled, 1024 * codes, rtol=1e-4, atol=1e-2)
    assert large.score(1024 * activations) == pytest.approx(small.score(activations), abs=1e-4)
    # The decoder reads the codes on the raw scale too.
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


def sparsity(kind):
    """Return parameters for an activation in place of the paper's, or for the paper's with a target."""
    activation, _, target = kind.partition(" ")
    return {"activation": activation, "l0": 4, "l1_coefficient": "auto"} if target or kind != "relu" else {}


def assert_same_weights(a, b):
    for name in WEIGHTS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_same_seed_same_bits(activations, sae):
    assert_same_weights(clone(sae).fit(activations), clone(sae).fit(activations))


def test_a_memory_map_gives_the_bits_of_an_array(activations, sae, tmp_path):
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


def test_a_short_stream_gives_the_bits_of_an_array(activations, sae):
    sae.set_params(normalization="spread", validation_fraction=0.1)
    assert_same_weights(clone(sae).fit(iter(np.split(activations, 6))), clone(sae).fit(activations))


def test_partial_fit_is_fit_on_a_stream(activations, sae, long_streams):
    sae.set_params(n_epochs=1)
    by_parts = clone(sae).partial_fit(activations[:200])
    for start in range(200, 600, 100):
        by_parts.partial_fit(activations[start : start + 100])
    assert_same_weights(by_parts, clone(sae).fit(iter(np.split(activations, 6))))


@pytest.mark.parametrize("kind", [*ACTIVATIONS, "relu with l0"])
def test_partial_fit_goes_on_after_pickling(activations, sae, tmp_path, kind):
    sae.set_params(**sparsity(kind))
    straight = clone(sae).partial_fit(activations[:300]).partial_fit(activations[300:])
    joblib.dump(clone(sae).partial_fit(activations[:300]), tmp_path / "sae.joblib")
    restored = joblib.load(tmp_path / "sae.joblib")
    assert_same_weights(restored.partial_fit(activations[300:]), straight)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 4, 13, 29])
@pytest.mark.parametrize("kind", [*ACTIVATIONS, "relu with l0"])
def test_a_stopped_fit_resumes_to_the_same_bits(activations, sae, tmp_path, monkeypatch, kind, steps):
    settings = {"resample_every": 700, "decay_fraction": 0.2, "warmup_steps": 3, "dead_after": 100, **sparsity(kind)}
    never_stopped = clone(sae).set_params(**settings).fit(activations)
    stopped = clone(sae).set_params(**settings, checkpoint_path=tmp_path / "checkpoint", checkpoint_every=3)
    step = _trainer.take_step

    def stop_after(state, *arguments):
        if state.step == steps:
            raise StoppedError
        step(state, *arguments)

    monkeypatch.setattr(_trainer, "take_step", stop_after)
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


def fit_apart(report, checkpoint, result):
    rows._SAMPLE_ROWS = 200  # the batches are a stream, not read at once

    def batches():
        for i in range(60):
            report(i)
            yield np.random.default_rng(i).normal(size=(64, 16))

    settings = {"batch_size": 64, "resample_every": 640, "dead_after": 64, "checkpoint_every": 4, "random_state": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SparseAutoencoder(64, checkpoint_path=checkpoint, **settings).fit(batches()).save(result)


@pytest.mark.slow
def test_sigkill_at_several_points_loses_nothing(server, tmp_path):
    def start(name, **kill):
        call_apart(server, fit_apart, tmp_path / name, tmp_path / f"{name}.safetensors", **kill)

    start("never stopped")
    for last in (5, 22, 47):
        start("killed", kill_at=last.__eq__)
        assert last - 8 <= SparseAutoencoder.steps_done(tmp_path / "killed") <= last
    start("killed")
    killed, never_stopped = (
        SparseAutoencoder.load(tmp_path / f"{name}.safetensors") for name in ("killed", "never stopped")
    )
    assert_same_weights(killed, never_stopped)
    assert killed.history_ == never_stopped.history_


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
        (
            {"activation": "batchtopk", "l1_coefficient": 0.1},
            "l1_coefficient=0.1 has no effect with activation='batchtopk'",
        ),
        ({"auxk_coefficient": -0.1}, "auxk_coefficient=-0.1 must be a finite number of at least 0"),
        ({"auxk_coefficient": None}, "auxk_coefficient=None"),
        (
            {"activation": "relu", "auxk_coefficient": 0.1},
            "auxk_coefficient=0.1 has no effect with activation='relu'",
        ),
        ({"activation": "batchtopk", "n_latents": 24, "l0": 25}, "l0=25 is above the number of latents, 24"),
        (
            {"activation": "relu", "l0": 3, "l1_coefficient": 0.1},
            "l0=3 and l1_coefficient=0.1 both give the sparsity of activation='relu'",
        ),
        ({"activation": "relu", "n_latents": 24, "l0": 25}, "l0=25 is above the number of latents, 24"),
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


# Defaults


def sparse_features(n_rows, n_inputs=64, n_features=400, rate=0.02, seed=0):
    """Make rows of sparse features in superposition, with sizes uniform from 0 to 1."""
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
def test_a_short_fit_warns_at_the_callers_line(activations):
    with pytest.warns(ConvergenceWarning, match="600 rows only.*of the latents|600 rows only") as caught:
        SparseAutoencoder(n_latents=48, n_epochs=3, random_state=0).fit(activations)
    assert [each.filename for each in caught] == [__file__]
    assert "12 steps only; raise n_epochs=3" in str(caught[0].message)


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_a_fit_on_noise_warns(rng):
    with pytest.warns(ConvergenceWarning, match="hardly better than Gaussian noise"):
        SparseAutoencoder(random_state=0).fit(rng.normal(size=(6000, 16)))


def test_outlying_rows_give_a_warning():
    X = sparse_features(20_000, n_inputs=8, n_features=12, rate=0.3)
    sinks = X.copy()
    sinks[::1000] *= 300
    with pytest.warns(OutlierRowsWarning, match=r"X has 20 row\(s\) in 20,000 with 9\d% of the variance") as caught:
        SparseAutoencoder(8, n_epochs=1, random_state=0).fit(sinks)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutlierRowsWarning)
        clean = SparseAutoencoder(8, n_epochs=1, random_state=0).fit(X)
    # A handful of outlying rows does not change the scale.
    assert find_scale(sinks, "spread") == pytest.approx(clean.scale_, rel=0.01)


@pytest.mark.parametrize("rows_of_all", [np.zeros, np.ones])
@pytest.mark.parametrize("normalization", ["spread", "mean_norm", "mean_square", None])
def test_equal_rows_are_learned(rows_of_all, normalization):
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


def test_a_stream_has_the_score_of_its_rows(activations, sae):
    sae.fit(activations)
    score = sae.score(activations)
    assert sae.score(piece for piece in np.split(activations, [100, 250])) == pytest.approx(score, rel=1e-12)
    assert sae.transform(np.split(activations, [100, 250])).shape == (600, 48)
    for method in (sae.score, sae.transform):
        with pytest.raises(ValueError, match="X gave no batch; .* a generator only once"):
            method(iter([]))


def test_huge_rows_are_scored(activations, sae):
    assert np.isfinite(sae.fit(activations).score(np.float32(1e20) * activations))


def test_the_papers_settings_are_a_preset(activations):
    sae = SparseAutoencoder.paper(random_state=0)
    assert (sae.l1_coefficient, sae.learning_rate, sae.batch_size, sae.n_epochs) == (8e-4, 3e-4, 32_768, 1)
    sae.fit(activations)
    assert (sae.n_latents_, sae.l0_, sae.scale_, sae.n_steps_) == (32 * 12, None, 1.0, 1)
    assert SparseAutoencoder.paper(10, n_epochs=2).get_params()["n_latents"] == 10
