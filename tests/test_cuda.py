"""What runs on a GPU gives what the CPU gives, up to rounding; skipped where there is none."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from geofloor import ActivationExtractor, SparseAutoencoder, ToyModel
from geofloor.datasets import load_teacher
from geofloor.features import _sparse_step
from geofloor.toy import SparseFeatures, toy_sweep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_toy_floors():
    # The same samples and starting points: what differs is rounding, which training carries to another stopping point.
    arguments = {"alphas": [0.9], "teacher_widths": None, "n_seeds": 4, "n_eval_samples": 65_536}
    on = {device: toy_sweep([12, 20], [2, 5], device=device, **arguments) for device in ("cpu", "cuda")}
    floors = {device: sweep.groupby(["n_features", "width"]).floor.min() for device, sweep in on.items()}
    np.testing.assert_allclose(floors["cuda"], floors["cpu"], rtol=0.01)


def test_toy_model():
    X = SparseFeatures(12, 0.9).sample(4096, random_state=0)
    models = {d: ToyModel(3, n_init=4, random_state=0, device=d).fit(X) for d in ("cpu", "cuda")}
    np.testing.assert_allclose(models["cuda"].score(X), models["cpu"].score(X), rtol=0.02)


def test_sparse_autoencoder(tmp_path):
    rng = np.random.default_rng(0)
    X = np.maximum(rng.standard_normal((4096, 24)) - 1.0, 0.0) @ rng.standard_normal((24, 12))
    fits = {
        d: SparseAutoencoder(48, n_epochs=4, batch_size=256, random_state=0, device=d).fit(X) for d in ("cpu", "cuda")
    }
    assert fits["cuda"].score(X) == pytest.approx(fits["cpu"].score(X), abs=5e-3)
    fits["cuda"].save(tmp_path / "sae")
    elsewhere = SparseAutoencoder.load(tmp_path / "sae", device="cpu")
    np.testing.assert_allclose(elsewhere.transform(X).toarray(), fits["cuda"].transform(X).toarray(), atol=1e-3)


def test_topk_with_few_codes_gathers_directions(monkeypatch):
    X = np.random.default_rng(0).standard_normal((4096, 12))
    fits = [SparseAutoencoder(512, l0=4, n_epochs=4, batch_size=256, random_state=0, device="cuda").fit(X)]
    monkeypatch.setattr(_sparse_step, "_LATENTS_PER_GATHERED_CODE", 10**9)  # dense products
    fits.append(clone(fits[0]).fit(X))
    losses = [[row["loss"] for row in sae.history_] for sae in fits]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_activations():
    path = str(load_teacher().path)
    tokens = np.random.default_rng(0).integers(0, 2000, size=(4, 64))
    states = {d: ActivationExtractor(path, 2, device=d).fit(tokens).transform(tokens) for d in ("cpu", "cuda")}
    np.testing.assert_allclose(states["cuda"], states["cpu"], atol=2e-2, rtol=2e-3)
