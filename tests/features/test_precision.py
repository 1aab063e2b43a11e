import pytest
import torch

from geofloor import SparseAutoencoder
from geofloor.features import _precision
from geofloor.features._precision import has_bf16


def test_bf16_without_hardware_is_refused_before_any_work(activations, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    sae = SparseAutoencoder(24, precision="bf16", device="cpu")
    for fit in (sae.fit, sae.partial_fit):
        with pytest.raises(
            ValueError, match="precision='bf16' needs .* device='cpu' has none; use precision='float32'"
        ):
            fit(activations)
    assert not hasattr(sae, "n_features_in_")


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"avx512_bf16": True}, True), ({"avx512_bf16": False, "avx512_f": True}, False)]
)
def test_cpus_tell_whether_they_have_bf16(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bf16(torch.device("cpu")) is expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_bf16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16(torch.device("cuda")) is expected
    assert not has_bf16(torch.device("mps"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "jumprelu"])
def test_the_dense_step_takes_bf16_too(activations, monkeypatch, activation):
    """Codes of half of the latents take the dense step."""
    monkeypatch.setattr(_precision, "has_bf16", lambda device: True)
    given = {"activation": activation, "l0": 12, "batch_size": 100, "n_epochs": 20, "random_state": 0, "device": "cpu"}
    one, other = (SparseAutoencoder(24, precision=each, **given).fit(activations) for each in ("float32", "bf16"))
    assert (one.encoder_ != other.encoder_).any()
    assert other.score(activations) == pytest.approx(one.score(activations), abs=0.02)
