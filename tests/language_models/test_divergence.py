import math

import numpy as np
import pytest
import torch
from small_students import plain_kl
from torch.nn import functional

from geofloor.language_models import distillation_kl
from geofloor.language_models._divergence import LazyLogits, Targets, row_losses


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_rows", [None, 7])
def test_the_kl_and_its_gradient_are_torchs(temperature, masked, chunk_rows):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(5, 9, generator=generator) < 0.6 if masked else None
    options = {"temperature": temperature, "mask": mask, "chunk_rows": chunk_rows}
    logits, target = 3 * draw(5, 9, 33), 3 * draw(5, 9, 33)
    hidden, weight, bias = draw(5, 9, 4), draw(33, 4), draw(33)
    teacher_hidden, teacher_weight, teacher_bias = draw(5, 9, 6), draw(33, 6), draw(33)
    for tensors, ours, plain in [
        (
            [logits],
            lambda s: distillation_kl(student=s, teacher=target, **options),
            lambda s: plain_kl(s, target, mask, temperature),
        ),
        (
            [hidden, weight, bias],
            lambda h, w, b: distillation_kl(
                student=h,
                teacher=teacher_hidden,
                student_weight=w,
                student_bias=b,
                teacher_weight=teacher_weight,
                teacher_bias=teacher_bias,
                **options,
            ),
            lambda h, w, b: plain_kl(
                functional.linear(h, w, b),
                functional.linear(teacher_hidden, teacher_weight, teacher_bias),
                mask,
                temperature,
            ),
        ),
    ]:
        found, expected = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
        value, reference = ours(*found), plain(*expected)
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(reference.item(), abs=1e-12)
        (3 * value).backward()
        (3 * reference).backward()
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def brute_kl(student, teacher, temperature):
    """Σ p (log p − log q) over the tokens that the teacher gives any probability, averaged over positions."""
    total = 0.0
    for s, t in zip(student.flatten(0, -2), teacher.flatten(0, -2), strict=True):
        kept = t > -torch.inf
        log_p = torch.log_softmax(t / temperature, 0)[kept]
        total = total + (log_p.exp() * (log_p - torch.log_softmax(s / temperature, 0)[kept])).sum()
    return total / student[..., 0].numel()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk_rows", [None, 7])
def test_tokens_that_the_teacher_masks_add_nothing(temperature, chunk_rows):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = 3 * draw(5, 9, 33)
    target[..., 30:] = -torch.inf
    target[2, 3, :20] = -torch.inf  # and at one position more
    bias = torch.zeros(33, dtype=torch.float64)
    bias[[0, 7]] = -torch.inf
    hidden, weight = draw(5, 9, 6), draw(33, 6)
    logits, student_hidden, student_weight, student_bias = 3 * draw(5, 9, 33), draw(5, 9, 4), draw(33, 4), draw(33)
    of_student = {"temperature": temperature, "chunk_rows": chunk_rows}
    for tensors, ours, plain in [
        (
            [logits],
            lambda s: distillation_kl(student=s, teacher=target, **of_student),
            lambda s: brute_kl(s, target, temperature),
        ),
        (
            [student_hidden, student_weight, student_bias],
            lambda h, w, b: distillation_kl(
                student=h,
                teacher=hidden,
                student_weight=w,
                student_bias=b,
                teacher_weight=weight,
                teacher_bias=bias,
                **of_student,
            ),
            lambda h, w, b: brute_kl(functional.linear(h, w, b), functional.linear(hidden, weight, bias), temperature),
        ),
    ]:
        found, expected = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
        value, reference = ours(*found), plain(*expected)
        assert value.item() == pytest.approx(reference.item(), abs=1e-12)
        value.backward()
        reference.backward()
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_masked_logits_of_both_and_of_the_student_alone():
    masked = torch.tensor([[2.0, 0.0, -torch.inf], [0.0, 1.0, -torch.inf]])
    assert float(distillation_kl(student=torch.zeros(2, 3), teacher=masked)) == pytest.approx(0.6248, abs=5e-5)
    assert float(distillation_kl(student=masked, teacher=masked)) == 0.0
    assert float(distillation_kl(student=masked, teacher=masked.flip(0))) == pytest.approx(
        float(distillation_kl(student=masked[:, :2], teacher=masked.flip(0)[:, :2])), rel=1e-6
    )
    assert float(distillation_kl(student=masked, teacher=torch.zeros(2, 3))) == torch.inf


def test_closed_forms_with_probability_zero():
    def kl(student, teacher, **options):
        models = {"student": student, "teacher": teacher}
        logits = {name: torch.tensor([each], dtype=torch.float64) for name, each in models.items()}
        return float(distillation_kl(**logits, **options))

    none = -math.inf
    a, b, c = math.log(0.5), math.log(0.3), math.log(0.2)
    # p = (1/2, 1/2, 0): of a uniform student KL = log 3 − log 2, and of one with the same mask log 2 + log(q₁q₂)/−2.
    assert kl([0.0, 0.0, 0.0], [a, a, none]) == pytest.approx(math.log(1.5), abs=1e-15)
    assert kl([b, c, none], [a, a, none]) == pytest.approx(-0.5 * math.log(4 * 0.6 * 0.4), abs=1e-15)
    # One certain token: KL = −log q.
    assert kl([a, b, c], [none, none, 0.0]) == pytest.approx(-math.log(0.2), abs=1e-15)
    assert kl([none, none, 0.0], [none, none, 0.0]) == 0.0
    # A probability that underflows to 0 counts as 0, also where the student has 0.
    assert kl([0.0, none], [0.0, -1e4]) == 0.0
    assert kl([0.0, none], [0.0, -700.0]) == math.inf
    assert kl([0.0, 0.0], [0.0, none], temperature=3.0) == pytest.approx(math.log(2.0), abs=1e-15)


def test_a_padded_vocabulary_is_that_without_its_padding():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((9, 5), (20, 5), (20,)))
    student = torch.randn(9, 16, generator=generator, dtype=torch.float64)
    found, expected = (student.clone().requires_grad_() for _ in range(2))
    given = {"teacher_weight": weight, "teacher_bias": bias, "temperature": 2.0}
    value = distillation_kl(student=found, teacher=hidden, n_vocabulary=14, **given)
    reference = brute_kl(expected[:, :14], functional.linear(hidden, weight, bias)[:, :14], 2.0)
    assert value.item() == pytest.approx(reference.item(), abs=1e-12)
    value.backward()
    reference.backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-12)
    assert not found.grad[:, 14:].any()
    masked = torch.where(torch.arange(20) < 14, functional.linear(hidden, weight, bias), -torch.inf)
    padded = functional.pad(student, (0, 4))
    padded[:, 14:] = -torch.inf
    assert value.item() == pytest.approx(
        distillation_kl(student=padded, teacher=masked, temperature=2.0).item(), abs=1e-12
    )
    with pytest.raises(ValueError, match="student has a vocabulary of 16 .* teacher one of 20; .* set n_vocabulary"):
        distillation_kl(student=student, teacher=hidden, **given)
    with pytest.raises(ValueError, match="n_vocabulary=17 must be a whole number of at least 1 and at most 16"):
        distillation_kl(student=student, teacher=hidden, n_vocabulary=17, **given)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_positions_without_a_distribution_are_refused(wrong, whose):
    logits = {"student": torch.zeros(3, 4), "teacher": torch.zeros(3, 4)}
    logits[whose][1] = wrong
    with pytest.raises(ValueError, match=f"The {whose}'s logits are NaN, .inf, or −inf for all tokens"):
        distillation_kl(**logits)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"student": np.zeros((3, 4))}, TypeError, "(?s)student=array.* is a ndarray; give a torch tensor"),
        ({"teacher": None}, TypeError, "teacher=None is a NoneType"),
        ({"teacher": torch.zeros(3, 4, dtype=torch.int64)}, ValueError, "teacher has dtype torch.int64"),
        ({"temperature": torch.nan}, ValueError, "temperature=nan"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows=0"),
        ({"mask": torch.zeros(3, dtype=torch.bool)}, ValueError, "No position counts, of 3"),
        ({"mask": [True] * 3}, TypeError, "mask=.*True.* is a list"),
        ({"student_weight": torch.zeros(4, 5)}, ValueError, "student has 4 dimensions, student_weight has 5"),
        ({"student_weight": torch.zeros(4)}, ValueError, "student_weight has shape .4,."),
        ({"teacher_bias": torch.zeros(4)}, ValueError, "teacher_bias is given without teacher_weight"),
    ],
)
def test_arguments_of_the_kl_are_named(options, error, message):
    with pytest.raises(error, match=message):
        distillation_kl(**{"student": torch.zeros(3, 4), "teacher": torch.zeros(3, 4), **options})


@pytest.mark.parametrize("offset", [-300.0, 0.0, 300.0])
def test_the_kl_of_logits_far_from_zero_is_as_exact_as_they_are(offset):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(64, 100, generator=generator) + offset for _ in range(2))
    exact = distillation_kl(student=student.double(), teacher=teacher.double(), temperature=2.0)
    found = distillation_kl(student=student, teacher=teacher, temperature=2.0)
    # An epsilon of the largest scaled logit a row.
    assert abs(float(found) - float(exact)) < 1.2e-7 * (abs(offset) + 15) / 2


def test_softmaxes_of_half_precision_logits_are_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits, target = (20 * torch.randn(50, 30, generator=generator).bfloat16() for _ in range(2))
    value = distillation_kl(student=logits.clone().requires_grad_(), teacher=target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(float(plain_kl(logits.double(), target.double(), None, 1.0)), rel=1e-5)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="vocabulary of 5 tokens, teacher one of 6"):
        distillation_kl(student=torch.zeros(3, 5), teacher=torch.zeros(3, 6))
    with pytest.raises(ValueError, match="positions .4,., teacher .3,."):
        distillation_kl(student=torch.zeros(4, 5), teacher=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="temperature=0"):
        distillation_kl(student=torch.zeros(3, 5), teacher=torch.zeros(3, 5), temperature=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_by_row_are_torchs(weighted):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, bias, teacher = draw(50, 6), draw(33, 6), draw(33), 2 * draw(50, 33)
    logits = functional.linear(hidden, weight, bias)
    labels = torch.randint(33, (50,), generator=generator)
    student = LazyLogits(hidden, weight, bias) if weighted else LazyLogits(logits)
    kls, cross_entropies = row_losses(student, Targets(LazyLogits(teacher), 1.0, chunk_rows=7), labels)
    expected = functional.kl_div(
        logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(kls, expected, rtol=1e-10, atol=1e-12)
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(cross_entropies, expected, rtol=1e-10, atol=1e-12)
