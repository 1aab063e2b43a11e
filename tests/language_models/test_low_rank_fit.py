import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional

from geofloor.language_models import _low_rank_fit
from geofloor.language_models._divergence import LazyLogits, Targets, row_kls
from geofloor.language_models._low_rank import LowRankLogits
from geofloor.language_models._low_rank_fit import LowRankFit, default_steps

N, VOCABULARY, WIDTH, TEMPERATURE = 40, 30, 3, 2.0


def problem(*, keep=True, chunk_rows=16):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N, 8, generator=generator, dtype=torch.float64)
    weight = 2.0 * torch.randn(VOCABULARY, 8, generator=generator, dtype=torch.float64)
    targets = Targets(LazyLogits(rows, weight), TEMPERATURE, keep=keep, chunk_rows=chunk_rows)
    return LowRankFit(targets), LazyLogits(*LowRankLogits(targets).student(WIDTH))


def kls(rows, weight, bias, fit):
    wanted = torch.softmax(fit.targets.source.compute(slice(None), 1.0 / TEMPERATURE), dim=1)
    logits = (rows @ weight.T + bias) / TEMPERATURE
    return functional.kl_div(logits.log_softmax(1), wanted, reduction="none").sum(dim=1)


def test_rows_end_at_the_minimum_of_each(monkeypatch):
    monkeypatch.setattr(_low_rank_fit, "_ROW_GAIN", 1e-12)
    monkeypatch.setattr(_low_rank_fit, "_MAX_ROW_STEPS", 200)
    fit, student = problem()
    before = student.rows.clone()
    rows, losses = fit.refine_rows(student)
    torch.testing.assert_close(losses, kls(rows, student.weight, student.bias, fit))
    torch.testing.assert_close(student.rows, before, rtol=0, atol=0)

    def value(flat):
        given = torch.from_numpy(flat).view(N, WIDTH).requires_grad_()
        loss = kls(given, student.weight, student.bias, fit).sum()
        loss.backward()
        return loss.item(), given.grad.numpy().ravel()

    least = minimize(value, np.zeros(N * WIDTH), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14})
    assert losses.sum().item() == pytest.approx(least.fun, rel=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_gradients_on_the_unembedding_are_those_of_autograd(keep):
    fit, student = problem(keep=keep)
    weight, bias = student.weight.clone().requires_grad_(), student.bias.clone().requires_grad_()
    found = fit._descend(student, 1, 1)
    gradients = [torch.zeros_like(student.weight), torch.zeros_like(student.bias)]
    fit._add_gradients(found, gradients)
    chunk = fit.targets.chunks[1]
    moved = torch.zeros_like(student.rows)
    moved[chunk] = found.last
    (kls(moved, weight, bias, fit)[chunk] * found.is_best).sum().backward()
    assert found.is_best.any()
    torch.testing.assert_close(gradients, [weight.grad, bias.grad])


def test_a_fit_lowers_the_loss_and_bad_steps_of_rows_are_undone(monkeypatch):
    fit, student = problem()
    start = fit.losses(student)
    torch.testing.assert_close(start, row_kls(student, fit.targets))
    changed = LazyLogits(*(each.clone() for each in student))
    fit.fit(changed, 100, np.random.default_rng(0))
    assert fit.refine_rows(changed)[1].mean() < 0.9 * fit.refine_rows(student)[1].mean()
    monkeypatch.setattr(_low_rank_fit, "_REACH", 1e3)  # steps that overshoot
    far = student._replace(rows=100.0 * student.rows)
    rows, losses = fit.refine_rows(far)
    assert (losses <= fit.losses(far)).all()
    torch.testing.assert_close(losses, row_kls(far._replace(rows=rows), fit.targets))


def test_a_perfect_start_stays():
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in (N, VOCABULARY))
    fit = LowRankFit(Targets(LazyLogits(rows, weight), TEMPERATURE))
    student = LazyLogits(*LowRankLogits(fit.targets).student(WIDTH))
    fit.fit(student, 20, np.random.default_rng(0))
    assert fit.refine_rows(student)[1].abs().max() < 1e-9


def test_large_steps_are_fewer():
    assert default_steps(2048, 8) == default_steps(2048, 127) == 200
    assert 200 > default_steps(49152, 64) > default_steps(49152, 256) > default_steps(49152, 4096) == 20
