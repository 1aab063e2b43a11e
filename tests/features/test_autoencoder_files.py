import errno
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.base import clone

from geofloor import SparseAutoencoder
from geofloor._training.checkpoints import write_tensors
from geofloor.features import _autoencoder, _autoencoder_files
from geofloor.features._autoencoder_settings import ACTIVATIONS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn
WEIGHTS = ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_", "threshold_")


def assert_same_weights(a, b):
    for name in WEIGHTS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


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
def test_numbers_of_numpy_and_torch_are_kept_in_files(activations, sae, tmp_path, odd):
    sae.set_params(n_epochs=1, **odd, checkpoint_path=tmp_path / "checkpoint").fit(activations)
    sae.save(tmp_path / "saved")
    assert_same_weights(SparseAutoencoder.load(tmp_path / "saved"), sae)
    assert_same_weights(clone(sae).fit(activations), sae)  # from its checkpoint
    assert SparseAutoencoder.load(tmp_path / "saved").betas == (0.9, 0.999)


def test_the_history_of_a_resumed_fit_has_its_names_in_the_same_order(activations, sae, tmp_path):
    sae.set_params(checkpoint_path=tmp_path / "checkpoint").fit(activations)
    resumed = clone(sae).fit(activations)
    assert [list(row) for row in resumed.history_] == [list(row) for row in sae.history_]
    sae.save(tmp_path / "saved")
    assert list(SparseAutoencoder.load(tmp_path / "saved").history_[0]) == list(sae.history_[0])


def test_parameters_and_paths_that_no_file_can_hold_are_refused_before_training(
    activations, sae, tmp_path, monkeypatch
):
    monkeypatch.setattr(_autoencoder, "start_training", None)
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
    monkeypatch.setattr(_autoencoder_files, "write_tensors", full)
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_save_and_load(activations, sae, tmp_path, activation):
    if activation != "relu":
        sae.set_params(activation=activation, l0=4, l1_coefficient="auto")
    sae.fit(activations).save(tmp_path / "sae.safetensors")
    loaded = SparseAutoencoder.load(tmp_path / "sae.safetensors")
    assert_same_weights(loaded, sae)
    assert loaded.get_params() == {**sae.get_params(), "device": "auto"}
    assert loaded.history_ == sae.history_
    assert (loaded.transform(activations) != sae.transform(activations)).nnz == 0


def test_partial_fit_after_load_starts_from_the_loaded_weights(activations, sae, tmp_path):
    sae.set_params(normalization="mean_norm").fit(activations).save(tmp_path / "sae.safetensors")
    loaded = SparseAutoencoder.load(tmp_path / "sae.safetensors").set_params(learning_rate=1e-6)
    loaded.partial_fit(activations)
    assert loaded.n_steps_ == sae.n_steps_ + 6
    assert len(loaded.history_) == len(sae.history_) + 6
    np.testing.assert_allclose(loaded.encoder_, sae.encoder_, atol=1e-4)
    assert loaded.score(activations) == pytest.approx(sae.score(activations), abs=1e-3)


def test_thresholds_are_checked_when_they_are_read(activations, tmp_path):
    sae = SparseAutoencoder(24, activation="batchtopk", l0=3, n_epochs=1, random_state=0).fit(activations)
    sae.threshold_ = -sae.threshold_
    sae.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="a number of the tensor threshold is negative"):
        SparseAutoencoder.load(tmp_path / "saved")
    sae.threshold_ = None
    sae.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"lacks \['threshold'\]"):
        SparseAutoencoder.load(tmp_path / "saved")


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
