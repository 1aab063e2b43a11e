from types import SimpleNamespace

import pytest

from geofloor import SparseAutoencoder
from geofloor.features._autoencoder_settings import resolve_settings


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "n_steps"), [(5000, 128, 3600), (50_000, 128, 3600), (10**9, 8192, 0)]
)
def test_batches_and_epochs_follow_from_the_rows(n_rows, batch_size, n_steps):
    rows_given = SimpleNamespace(n_rows=n_rows, steps_per_epoch=lambda size: max(n_rows // size, 1))
    settings = resolve_settings(SparseAutoencoder(), rows_given, 768)
    assert settings.batch_size == batch_size
    assert settings.n_steps == settings.n_epochs * (n_rows // batch_size)
    assert settings.n_epochs == (1 if n_rows > 10**8 else -(-n_steps // (n_rows // batch_size)))
    assert settings.n_latents == min(32 * 768, max(n_rows // 8, 2 * 768))
    assert 0 < settings.learning_rate <= 0.024 / 768**0.5
