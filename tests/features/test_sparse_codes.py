import numpy as np
import pytest
import torch

from geofloor.features import _sparse_codes
from geofloor.features._encoding import Rule
from geofloor.features._sparse_codes import encode_sparse
from geofloor.features._sparse_step import Parameters, encode


@pytest.mark.parametrize("shift", [0.0, -9.0])
@pytest.mark.parametrize("l0", [1, 6, 32, 33])
def test_codes_are_those_of_torch(rng, monkeypatch, l0, shift):
    """Some rows have fewer codes than l0 under a negative bias."""
    monkeypatch.setattr(_sparse_codes, "_WORTH_KERNELS", 0)
    shapes = [(130, 9), (130,), (130, 9), (9,)]
    parameters = Parameters(*(torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in shapes))
    parameters.encoder_bias.add_(shift)
    inputs = torch.from_numpy(rng.normal(size=(70, 9)).astype(np.float32))
    expected = encode(parameters, inputs, l0).numpy()
    assert ((expected > 0).sum(axis=1) < l0).any() == (shift < 0)
    scale = torch.rand(130)
    scale[:20] = 0.0
    scaled = encode_sparse(Rule("topk", l0, code_scale=scale), parameters, inputs)
    np.testing.assert_array_equal(scaled.toarray(), expected * scale.numpy())
    assert (scaled.data > 0).all()
    codes = encode_sparse(Rule("topk", l0), parameters, inputs)
    np.testing.assert_array_equal(codes.toarray(), expected)
    assert (codes.data > 0).all()
    assert codes.has_sorted_indices
    assert codes.indices.dtype == codes.indptr.dtype == np.int32
