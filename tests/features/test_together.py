import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from small_processes import call_apart
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from geofloor import ActivationExtractor, SparseAutoencoder
from geofloor._training import rows
from geofloor.features import _precision, fit_autoencoders

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn
WEIGHTS = ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_", "threshold_")


def assert_equal_fits(a, b):
    for name in WEIGHTS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert vars(a).keys() == vars(b).keys()
    assert a.history_ == b.history_
    assert a.explained_variance_ == b.explained_variance_


def several(**changes):
    """Make autoencoders of different activations, sizes, batches and seeds."""
    made = [("topk", 2, 24, 64, 0), ("batchtopk", 3, 16, 37, 0), ("relu", 4, 24, 50, 1), ("jumprelu", 3, 24, 100, 2)]
    return [
        SparseAutoencoder(size, activation=name, l0=l0, batch_size=batch, random_state=seed, device="cpu", **changes)
        for name, l0, size, batch, seed in made
    ]


def batches(X, size=70):
    return (X[start : start + size] for start in range(0, len(X), size))


class Rereadable:
    """Batches that can be read more than once, and count how often."""

    def __init__(self, X):
        self.X, self.n_read = X, 0

    def __iter__(self):
        self.n_read += 1
        yield from batches(self.X)


@pytest.mark.parametrize("kind", ["array", "frame", "generator", "short generator", "list", "stream"])
def test_each_ends_with_the_bits_of_a_fit_alone(activations, kind, monkeypatch):
    if kind != "short generator":
        monkeypatch.setattr("geofloor._training.rows._SAMPLE_ROWS", 200)
    make = {
        "array": lambda: activations,
        "frame": lambda: pd.DataFrame(activations, columns=[f"x{i}" for i in range(12)]),
        "generator": lambda: batches(activations),
        "short generator": lambda: batches(activations),
        "list": lambda: list(batches(activations)),
        "stream": lambda: Rereadable(activations),
    }[kind]
    given = several() if kind in ("generator", "stream") else several(n_epochs=2)
    if kind == "stream":
        given[2].set_params(n_epochs=2)
    X = make()
    fitted = fit_autoencoders(given, X)
    if kind == "stream":
        assert X.n_read == 1 + 3  # once for three, then a sample and two passes for the one with two epochs
    for before, after in zip(given, fitted, strict=True):
        assert not hasattr(before, "encoder_")
        assert_equal_fits(after, clone(before).fit(make()))


def test_memory_does_not_grow_with_the_stream(activations, monkeypatch):
    from geofloor._training.shared import SharedStream

    monkeypatch.setattr("geofloor._training.rows._SAMPLE_ROWS", 100)
    held, read = [], SharedStream.batch_at

    def batch_at(self, row):
        found = read(self, row)
        held.append(self.n_held)
        return found

    monkeypatch.setattr(SharedStream, "batch_at", batch_at)
    fit_autoencoders(several(), (activations[start : start + 30] for start in [*range(0, 600, 30)] * 10))
    assert len(held) > 4 * 200
    assert max(held) <= 100 + 30  # sample, or largest batch size, and one batch of the stream


def test_a_dict_of_blocks_is_fitted_in_one_pass_of_the_teacher(monkeypatch):
    monkeypatch.setattr("geofloor._training.rows._SAMPLE_ROWS", 200)
    config = GPTNeoXConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    teacher = GPTNeoXForCausalLM(config)
    tokens = np.random.default_rng(0).integers(32, size=(60, 12))
    make = {"n_latents": 16, "l0": 2, "batch_size": 32, "n_epochs": 1, "random_state": 0, "device": "cpu"}
    given = {0: SparseAutoencoder(**make), 2: [SparseAutoencoder(**make), SparseAutoencoder(**make | {"l0": 1})]}
    extractor = ActivationExtractor(teacher, [0, 1, 2])
    fitted = fit_autoencoders(given, extractor.iter_batches(tokens))
    assert [type(each) for each in fitted.values()] == [SparseAutoencoder, list]
    activations = extractor.transform(tokens)
    for layer, made in ((0, [fitted[0]]), (2, fitted[2])):
        for before, after in zip([given[0]] if layer == 0 else given[2], made, strict=True):
            assert_equal_fits(after, clone(before).fit(batches(activations[layer])))
    of_arrays = fit_autoencoders(given, activations)
    assert_equal_fits(of_arrays[2][1], clone(given[2][1]).fit(activations[2]))
    of_list = fit_autoencoders(given, list(extractor.iter_batches(tokens)))
    assert_equal_fits(of_list[0], clone(given[0]).fit(list(batches(activations[0]))))


class Seekable(Rereadable):
    """Batches that can start at any row, and may stop working."""

    def __init__(self, X, stops_at=None):
        super().__init__(X)
        self.stops_at, self.asked = stops_at, []

    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, row):
        self.asked.append(row)
        for start in range(row, len(self.X), 70):
            if self.stops_at is not None and start >= self.stops_at:
                raise InterruptedError
            yield self.X[start : start + 70]


def test_an_interrupted_pass_resumes_at_the_first_row_that_one_of_them_needs(activations, tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor._training.rows._SAMPLE_ROWS", 200)

    def fit(stream):
        given = several(checkpoint_every=1)
        for index, sae in enumerate(given):
            sae.set_params(checkpoint_path=tmp_path / f"{index}")
        return fit_autoencoders(given, stream)

    with pytest.raises(InterruptedError):
        fit(Seekable(activations, stops_at=420))
    done = [SparseAutoencoder.steps_done(tmp_path / f"{index}") for index in range(4)]
    assert min(done) > 0
    stream = Seekable(activations)
    resumed = fit(stream)
    first_rows = [10 + steps * size for steps, size in zip(done, (64, 37, 50, 100), strict=True)]  # 10 are held out
    assert stream.asked == [0, min(first_rows)]
    for before, after in zip(several(), resumed, strict=True):
        expected = clone(before).fit(batches(activations))
        for name in WEIGHTS:
            np.testing.assert_array_equal(getattr(after, name), getattr(expected, name), err_msg=name)
        assert after.history_ == expected.history_


def fit_apart(report, path):
    rows._SAMPLE_ROWS = 200

    def batches():
        for i in range(60):
            report(i)
            yield np.random.default_rng(i).normal(size=(64, 16))

    makes = {"l0": 3, "batch_size": 64}, {"l0": 4, "batch_size": 100, "activation": "batchtopk"}
    autoencoders = [
        SparseAutoencoder(64, **make, checkpoint_path=f"{path}-{i}", checkpoint_every=4, random_state=3)
        for i, make in enumerate(makes)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, sae in enumerate(fit_autoencoders(autoencoders, batches())):
            sae.save(f"{path}-{i}.safetensors")


@pytest.mark.slow
def test_sigkill_loses_nothing(server, tmp_path):
    call_apart(server, fit_apart, tmp_path / "never stopped")
    call_apart(server, fit_apart, tmp_path / "killed", kill_at=(40).__eq__)
    assert 0 < SparseAutoencoder.steps_done(tmp_path / "killed-0") < 60
    call_apart(server, fit_apart, tmp_path / "killed")
    for index in range(2):
        killed, whole = (
            SparseAutoencoder.load(tmp_path / f"{name}-{index}.safetensors") for name in ("killed", "never stopped")
        )
        assert_equal_fits(killed, whole)


def test_what_can_not_be_fitted_is_refused_before_training(activations, tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor._training.rows._SAMPLE_ROWS", 200)
    monkeypatch.setattr("geofloor.features._trainer.take_step", None)
    one, other = several()[:2]
    for given, message in [
        ([], "empty"),
        ({}, "empty"),
        ({1: []}, "empty"),
        ([one, one], "twice, and each is fitted once"),
        (
            [clone(sae).set_params(checkpoint_path=tmp_path / "a") for sae in (one, other)],
            "is that of two autoencoders",
        ),
        ([one, clone(other).set_params(l0=17)], "l0=17 is above the number of latents"),
        ([one, clone(other).set_params(learning_rate=-1)], "learning_rate=-1"),
        ({1: one}, "give dicts with these keys, or autoencoders as a list"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_autoencoders(given, activations)
    for given, X, message in [
        ([one, clone(other).set_params(n_epochs=2)], batches(activations), "n_epochs=2 .* one-time iterator"),
        ([one], ({1: batch} for batch in batches(activations)), "give autoencoders as a dict by key"),
        ({2: one}, ({1: batch} for batch in batches(activations)), "X has no 2"),
        ({2: one}, {1: activations}, "X has no 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_autoencoders(given, X)
    for wrong in (one, [one, "topk"], "topk", {1: "topk"}, 3):
        with pytest.raises(TypeError, match="give a list of autoencoders, or a dict"):
            fit_autoencoders(wrong, activations)


def test_a_precision_that_the_device_lacks_is_refused(activations, monkeypatch):
    monkeypatch.setattr(_precision, "has_bf16", lambda device: False)
    with pytest.raises(ValueError, match="precision='bf16' needs a device with bfloat16 in hardware"):
        fit_autoencoders([SparseAutoencoder(8), SparseAutoencoder(8, precision="bf16")], activations)
