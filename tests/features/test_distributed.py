"""Test that two processes learn the dictionary of one. This file is also the script that both of them run."""

import contextlib
import itertools
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from small_processes import describe_failure, launch, rank, read_results, write_result

from geofloor import SparseAutoencoder
from geofloor._training import rows
from geofloor.features import _autoencoder, _autoencoder_files

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn
FEW_ROWS = 301
# Odd batches give unequal shares. The history shows the counts of firings.
SETTINGS = {"n_latents": 48, "batch_size": 51, "n_epochs": 4, "random_state": 0, "device": "cpu", "clip_norm": 0.5}


def new_activations(n_rows=FEW_ROWS):
    rng = np.random.default_rng(0)
    features = rng.random((n_rows, 30)) * (rng.random((n_rows, 30)) < 0.1)
    return (features @ rng.normal(size=(30, 12)) + 3.0).astype(np.float32)


def fit(X=None, **changes):
    return SparseAutoencoder(**{**SETTINGS, **changes}).fit(new_activations() if X is None else X)


class StoppedError(Exception):
    pass


JUMPRELU = {"activation": "jumprelu", "l0": 4}


def stop(path):
    """Stop a fit before its seventh step, after a checkpoint of the sixth."""

    def batches(self, batch_size, n_epochs, first_step, seed, cut=rows.ArrayRows.batches):
        yield from itertools.islice(cut(self, batch_size, n_epochs, first_step, seed), 6)
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(StoppedError):
        patch.setattr(rows.ArrayRows, "batches", batches)
        fit(**JUMPRELU, checkpoint_path=path, checkpoint_every=3)
    assert SparseAutoencoder.steps_done(path) == 6


def stopped_and_resumed(folder):
    stop(Path(folder) / "stopped")
    return fit(**JUMPRELU, checkpoint_path=Path(folder) / "stopped", checkpoint_every=3)


def fit_stream(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_SAMPLE_ROWS", 100)
        return fit(iter(np.array_split(new_activations(), 7)), n_epochs=1)


# Each fit covers something that dividing the work could get wrong.
FITS = {
    "relu": lambda _: fit(activation="relu", l1_coefficient=0.3),
    "steered relu": lambda _: fit(activation="relu", l0=4),
    "topk": lambda _: fit(l0=4),
    "dense topk": lambda _: fit(l0=20),
    "batchtopk": lambda _: fit(activation="batchtopk", l0=4),
    "jumprelu": lambda _: fit(**JUMPRELU),
    "resets": lambda _: fit(activation="jumprelu", l0=2, learning_rate=3e-2, resample_every=300),
    "fewer rows than processes": lambda _: fit(activation="batchtopk", l0=4, batch_size=1, n_epochs=1),
    "auxiliary loss": lambda _: fit(l0=2, learning_rate=3e-2, dead_after=100),
    "groups": lambda _: fit(activation="batchtopk", l0=4, groups=(6, 20, 48), n_latents=None),
    "stream": fit_stream,
}
AMONG_TWO = {
    "stopped": stopped_and_resumed,
    "stopped alone": lambda folder: fit(**JUMPRELU, checkpoint_path=Path(folder) / "alone", checkpoint_every=3),
    "no seed": lambda _: fit(l0=4, random_state=None),
}


def learned(sae):
    names = ["encoder_", "encoder_bias_", "decoder_", "decoder_bias_", "threshold_"]
    weights = {name: getattr(sae, name) for name in names}
    return weights | {
        "history": [list(row.values()) for row in sae.history_],
        "score": (sae.explained_variance_, sae.l1_coefficient_),
    }


# Failures, which both processes must report


def fit_different_data(folder):
    fit(new_activations()[:: 1 - 2 * rank()])


def fit_different_settings(folder):
    fit(l0=4 + rank())


def fit_from_one_checkpoint(folder):
    for _ in range(2):
        fit(checkpoint_path=Path(folder) / f"of-{rank()}")


def fit_with_a_high_learning_rate(folder):
    fit(activation="relu", l1_coefficient=0.3, learning_rate=1e30)


def fit_a_row_that_is_not_finite(folder):
    X = np.memmap(Path(folder) / f"rows-{rank()}", np.float32, "w+", shape=(FEW_ROWS, 12))
    X[:] = new_activations()
    X[100] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_SAMPLE_ROWS", 4)
        fit(X)


def fit_with_a_full_disk(folder):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_autoencoder_files, "write_tensors", full)
        fit(checkpoint_path=Path(folder) / "full", checkpoint_every=1)


# Function and the start of its error in the main process, then in the other one if that differs.
FAILURES = {
    fit_different_data: ["ValueError: The 2 processes have different X"],
    fit_different_settings: ["ValueError: The 2 processes have different parameters"],
    fit_from_one_checkpoint: ["ValueError: The 2 processes have different checkpoints"],
    fit_with_a_high_learning_rate: ["ValueError: The loss became nan at step "],
    fit_a_row_that_is_not_finite: ["ValueError: X contains NaN or infinity, first in row 100"],
    fit_with_a_full_disk: ["OSError: [Errno 28] No space", "RuntimeError: The main process failed: OSError"],
}


def run_all(folder):
    """Run all fits and failures in one of several processes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = {name: learned(act(folder)) for name, act in (FITS | AMONG_TWO).items()}
    doubts = [each for each in caught if issubclass(each.category, _autoencoder.ConvergenceWarning)]
    results |= {act.__name__: describe_failure(act, folder) for act in FAILURES}
    write_result(folder, results | {"warnings": len(doubts)})


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("processes")
    stop(folder / "alone")
    assert launch(__file__, folder) == 0
    return read_results(folder)


@pytest.mark.parametrize("name", FITS)
def test_two_processes_learn_what_one_does(both, name, tmp_path):
    expected = learned(FITS[name](tmp_path))
    for key, value in both[0][name].items():
        if value is None or expected[key] is None:
            assert value is expected[key]
        else:
            found, wanted = (np.array(each, dtype=float) for each in (value, expected[key]))
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5, err_msg=key)


def test_the_fits_reset_latents_and_move_thresholds(both):
    assert sum(row[-1] for row in both[0]["resets"]["history"]) > 0
    assert np.ptp(both[0]["jumprelu"]["threshold_"]) > 0


@pytest.mark.parametrize("name", FITS | AMONG_TWO)
def test_both_processes_end_with_the_same_bits(both, name):
    np.testing.assert_equal(both[0][name], both[1][name])


def test_a_stopped_fit_of_two_resumes_to_the_same_bits(both):
    np.testing.assert_equal(both[0]["stopped"], both[0]["jumprelu"])


def test_two_processes_resume_the_fit_of_one(both):
    for key in ("encoder_", "threshold_", "history"):
        np.testing.assert_allclose(both[0]["stopped alone"][key], both[0]["jumprelu"][key], rtol=2e-5, atol=2e-5)


def test_only_the_main_process_warns(both):
    assert [result["warnings"] > 0 for result in both] == [True, False]


@pytest.mark.parametrize(("act", "messages"), FAILURES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_failure_in_one_process_raises_in_both(both, act, messages):
    assert both[0][act.__name__].startswith(messages[0])
    assert both[1][act.__name__].startswith(messages[-1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(sys.argv[1])
