import pytest
import torch

from geofloor._training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4)])
def test_steps_are_made_orthogonal(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    turned = U.mT @ orthogonal(matrices) @ Vh.mT  # diagonal where the singular vectors are kept
    values = turned.diagonal(dim1=1, dim2=2)
    assert float((turned - torch.diag_embed(values)).abs().max()) < 1e-4
    assert 0.5 < float(values.min()) < float(values.max()) < 1.3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_steps_are_torchs_but_for_its_bfloat16():
    def run(make):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.randn(shape, generator=generator) for shape in ((6, 6), (4, 12), (12, 4), (6, 6))]
        optimizer = make(parameters)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return parameters

    settings = {"lr": 0.1, "weight_decay": 0.3}
    theirs = run(lambda each: torch.optim.Muon(each, **settings, adjust_lr_fn="match_rms_adamw"))
    ours = run(lambda each: Muon(each, **settings))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.01)
    stays = run(lambda each: Muon(each, lr=0.1, weight_decay=0.0))
    assert all(float((a - b).abs().max()) > 0.05 for a, b in zip(ours, stays, strict=True))  # decay shows
