import numpy as np
import pytest
import torch

from geofloor.language_models._divergence import LazyLogits, Targets
from geofloor.language_models._low_rank import LowRankLogits, mean_probabilities, project_logits


def teacher(*, with_weight):
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (50, 20))
    bias = torch.randn(20, generator=generator, dtype=torch.float64)
    return LazyLogits(rows, weight, bias) if with_weight else LazyLogits(rows @ weight.T + bias)


def centered(logits, probabilities):
    logits = logits - logits.mean(dim=0)
    return logits - (logits @ probabilities)[:, None]


@pytest.mark.parametrize("with_weight", [False, True])
def test_the_approximation_is_the_truncated_weighted_svd(with_weight):
    source = teacher(with_weight=with_weight)
    targets = Targets(source, 2.0)
    logits = source.compute(slice(None), 1.0)
    probabilities = torch.softmax(logits / 2.0, dim=1).mean(dim=0)
    torch.testing.assert_close(mean_probabilities(targets), probabilities)
    start = LowRankLogits(targets)
    assert start.rank == 6
    weighted = centered(logits, probabilities) * probabilities.sqrt()
    left, sizes, right = torch.linalg.svd(weighted, full_matrices=False)
    for width in (1, 3, 6):
        rows, weight, bias = start.student(width)
        torch.testing.assert_close((weight.T * probabilities) @ weight, torch.eye(width, dtype=torch.float64))
        found = centered(rows @ weight.T + bias, probabilities) * probabilities.sqrt()
        torch.testing.assert_close(found, (left[:, :width] * sizes[:width]) @ right[:width])


def test_a_student_of_width_0_gives_the_mean_distribution():
    targets = Targets(teacher(with_weight=True), 2.0)
    rows, weight, bias = LowRankLogits(targets).student(0)
    found = torch.softmax((rows @ weight.T + bias) / 2.0, dim=1)
    torch.testing.assert_close(found, mean_probabilities(targets).expand(50, -1))


def test_logits_of_the_unembedding_are_projected_onto_themselves():
    source = teacher(with_weight=True)
    found = project_logits(Targets(source, 1.0), source.weight, source.bias)
    np.testing.assert_allclose(
        centered((found @ source.weight.T), mean_probabilities(Targets(source, 1.0))),
        centered(source.rows @ source.weight.T, mean_probabilities(Targets(source, 1.0))),
        atol=1e-9,
    )
