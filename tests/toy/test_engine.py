import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geofloor.toy import SparseFeatures
from geofloor.toy._engine import DistributionStream, Stack, evaluate, gradient, reconstruct


def random_stack(seed, *, n=7, d=3, n_models=5, teacher=False, empty=0.3):
    rng = np.random.default_rng(seed)

    def tensor(*shape):
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    return Stack(
        parameters=tensor(n_models, 1 + d, n),
        importances=tensor(n_models, n).abs(),
        source=torch.zeros(n_models, dtype=torch.long),
        empty_probability=torch.full((n_models,), empty),
        teacher=tensor(n_models, 1 + 4, n) if teacher else None,
    ), torch.from_numpy(rng.random((n_models, n, 50), dtype=np.float32))


def expected_loss(stack, X, p_empty):
    """Mean loss over a batch that is not empty and the empty sample, written as in the paper."""
    total = 0.0
    for m in range(len(stack.parameters)):

        def output(x, parameters):
            weight, bias = parameters[1:], parameters[0]
            return torch.relu(weight.T @ (weight @ x) + bias[:, None])

        for x, probability in ((X[m], 1 - p_empty), (torch.zeros(X.shape[1], 1), p_empty)):
            target = x if stack.teacher is None else output(x, stack.teacher[m])
            error = output(x, stack.parameters[m]) - target
            total = total + probability * (stack.importances[m, :, None] * error**2).sum(dim=0).mean()
    return total


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), teacher=st.booleans(), empty=st.floats(0, 0.99))
def test_gradient_is_autograds(seed, teacher, empty):
    stack, X = random_stack(seed, teacher=teacher, empty=empty)
    parameters = stack.parameters.clone().requires_grad_()
    expected_loss(stack._replace(parameters=parameters), X, empty).backward()
    target = reconstruct(stack.teacher, X) if teacher else None
    scale = parameters.grad.abs().max()
    assert (gradient(stack, X, target) - parameters.grad).abs().max() <= 1e-5 * scale


def test_padding_gets_no_gradient_and_changes_none():
    stack, X = random_stack(0)
    padded = stack._replace(
        parameters=torch.nn.functional.pad(stack.parameters, (0, 2, 0, 3)),
        importances=torch.nn.functional.pad(stack.importances, (0, 2)),
    )
    slope = gradient(padded, torch.nn.functional.pad(X, (0, 0, 0, 2)))
    torch.testing.assert_close(slope[:, :4, :7], gradient(stack, X))
    assert not slope[:, 4:].any()
    assert not slope[:, :, 7:].any()


def test_samples_that_are_not_empty_and_the_closed_form_give_the_full_expectation():
    # At alpha = 1/2 and a constant amplitude all patterns are equally likely, so that each of those that are not
    # empty, once, is their exact distribution: what is compared are expectations, without sampling.
    n = 6
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float32).T
    features = SparseFeatures(n, 0.5, "constant")
    stack, _ = random_stack(3, n=n, empty=features.empty_probability)
    n_models = len(stack.parameters)
    parameters = stack.parameters.clone().requires_grad_()
    everything = patterns.expand(n_models, -1, -1)
    expected_loss(stack._replace(parameters=parameters), everything, 0.0).backward()
    found = gradient(stack, everything[:, :, 1:].contiguous())
    torch.testing.assert_close(found, parameters.grad, rtol=1e-4, atol=1e-5)


def test_evaluation_is_the_expected_loss_within_its_standard_error():
    features = SparseFeatures(6, [0.5, 0.9, 0.8, 0.7, 0.95, 0.6], groups=[0, 1, 0, 2, 3, 2])
    stream = DistributionStream(features, (0,))
    stack, _ = random_stack(5, n=6, empty=stream.empty_probability)
    stack = stack._replace(parameters=stack.parameters * 0.5)
    evaluation, _ = evaluate(stack, [stream], 100_000)
    X = torch.from_numpy(features.sample(400_000, random_state=1).T.copy()).expand(len(stack.parameters), -1, -1)
    losses = ((reconstruct(stack.parameters, X) - X) ** 2 * stack.importances[:, :, None]).sum(dim=1).double().numpy()
    z = (evaluation.loss - losses.mean(axis=1)) / np.hypot(
        evaluation.standard_error, losses.std(axis=1) / np.sqrt(losses.shape[1])
    )
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(
        (evaluation.feature_errors * stack.importances.numpy()).sum(axis=1), evaluation.loss, rtol=1e-6
    )
