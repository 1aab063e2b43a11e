"""Data and an autoencoder that several files of tests share."""

import numpy as np
import pytest
import torch

from geofloor import SparseAutoencoder
from geofloor._training import rows


@pytest.fixture
def activations(rng):
    """Make rows of 30 sparse features in superposition in 12 dimensions, off the origin."""
    features = rng.random((600, 30)) * (rng.random((600, 30)) < 0.1)
    return (features @ rng.normal(size=(30, 12)) + 3.0).astype(np.float32)


@pytest.fixture
def sae():
    return SparseAutoencoder.paper(
        48, batch_size=100, n_epochs=5, learning_rate=3e-3, l1_coefficient=0.05, random_state=0
    )


@pytest.fixture
def long_streams(monkeypatch):
    """Limit to 200 rows the streams that are read at once."""
    monkeypatch.setattr(rows, "_SAMPLE_ROWS", 200)


@pytest.fixture
def plain_loss():
    """Return the paper's loss as it is written, for automatic differentiation."""

    def loss(parameters, inputs, l1_coefficient):
        codes = torch.relu((inputs - parameters.decoder_bias) @ parameters.encoder_weight.T + parameters.encoder_bias)
        reconstruction = codes @ parameters.decoder_weight + parameters.decoder_bias
        return (inputs - reconstruction).square().sum(1).mean() + l1_coefficient * codes.abs().sum(1).mean()

    return loss
