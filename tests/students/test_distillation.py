import copy
import errno
import json
import pickle
import re
import signal
import subprocess
import sys
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_checks as checks
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from geofloor import AblationPredictor, ActivationExtractor, BottleneckPredictor, DistilledStudent, ToyModel
from geofloor._training.checkpoints import write_tensors
from geofloor._training.devices import one_thread
from geofloor._training.muon import Muon
from geofloor._training.sampling import epoch_rows
from geofloor._training.schedules import warmup_cosine
from geofloor._training.seeds import OwnDraws, draw_seed, torch_generator
from geofloor.language_models import _divergence, _token_rows, distillation_kl, token_blocks, zero_width_kl
from geofloor.language_models._logits import LanguageModel
from geofloor.students import _engine, distill_widths, make_student, student_config
from geofloor.students import _saved as _saved_students
from geofloor.students._architecture import default_init
from geofloor.students._progress import remaining_fall, warn_of_training
from geofloor.students._settings import choose, plain_settings
from geofloor.toy import SparseFeatures

N_VOCABULARY = 64
# Most fits here take a few steps, since what they test is not how far training comes.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


def new_teacher(**changes):
    settings = {
        "vocab_size": N_VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,  # or its distributions would be flat, with nothing to learn
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(GPTNeoXConfig(**{**settings, **changes})).eval()


@pytest.fixture(autouse=True, scope="module")
def on_one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def teacher():
    return new_teacher()


@pytest.fixture(scope="module")
def teacher_path(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    teacher.save_pretrained(path)
    return path


@pytest.fixture
def tokens(rng):
    return rng.integers(N_VOCABULARY, size=(60, 12))


SETTINGS = {
    "n_steps": 20,
    "warmup_steps": 3,
    "batch_size": 8,
    "optimizer": "adamw",
    "clip_norm": None,
    "init": "random",
    "eval_every": 5,
    "validation_fraction": 0.1,
    "device": "cpu",
}


def student(teacher, width=8, **changes):
    return DistilledStudent(teacher, width, **{**SETTINGS, "random_state": 0, **changes})


def weights(fitted):
    return {name: value.numpy() for name, value in fitted.model_.state_dict().items()}


def assert_same(a, b):
    for name, value in weights(a).items():
        np.testing.assert_array_equal(value, weights(b)[name], err_msg=name)
    assert a.history_ == b.history_
    assert (a.floor_, a.floor_error_) == (b.floor_, b.floor_error_)


# The loss


def plain_kl(student, teacher, mask, temperature):
    rows = functional.kl_div(
        torch.log_softmax(student / temperature, -1),
        torch.log_softmax(teacher / temperature, -1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    return rows.mean() if mask is None else rows[mask].mean()


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
        ([logits], lambda s: distillation_kl(s, target, **options), lambda s: plain_kl(s, target, mask, temperature)),
        (
            [hidden, weight, bias],
            lambda h, w, b: distillation_kl(
                h,
                teacher_hidden,
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
        ([logits], lambda s: distillation_kl(s, target, **of_student), lambda s: brute_kl(s, target, temperature)),
        (
            [student_hidden, student_weight, student_bias],
            lambda h, w, b: distillation_kl(
                h, hidden, student_weight=w, student_bias=b, teacher_weight=weight, teacher_bias=bias, **of_student
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
    assert float(distillation_kl(torch.zeros(2, 3), masked)) == pytest.approx(0.6248, abs=5e-5)
    assert float(distillation_kl(masked, masked)) == 0.0
    assert float(distillation_kl(masked, masked.flip(0))) == pytest.approx(
        float(distillation_kl(masked[:, :2], masked.flip(0)[:, :2])), rel=1e-6
    )
    assert float(distillation_kl(masked, torch.zeros(2, 3))) == torch.inf


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 99}, "layer=99 is not there: the model has 2 blocks"),
        ({"layer": "x"}, "layer='x' must be a whole number"),
        ({"pooling": "max"}, "pooling='max' is unknown; use one of None, 'mean', 'last'"),
        ({"pad_token_id": "x"}, "pad_token_id='x' must be a whole number"),
    ],
)
def test_what_transform_needs_is_checked_before_training(teacher, tokens, settings, message, monkeypatch):
    monkeypatch.setattr(_engine.Distillation, "train", lambda self: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=message):
        DistilledStudent(teacher, 8, device="cpu", **settings).fit(tokens)


def test_padding_with_the_end_token_is_noticed(teacher, tokens):
    end = teacher.config.eos_token_id
    tokens = np.where(tokens == end, end + 1, tokens)
    padded = tokens.copy()
    padded[:, 9:] = end
    with pytest.warns(
        UserWarning,
        match=f"tokens: .* of {len(tokens)} sequences begin or end with a run of token {end}.*set pad_token_id={end}",
    ):
        zero_width_kl(teacher, padded, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero_width_kl(teacher, padded, pad_token_id=end, device="cpu")
        single = tokens.copy()
        single[:, -1] = single[:, 4] = end  # as between documents
        zero_width_kl(teacher, single, device="cpu")


class Padded(torch.nn.Module):
    """Logits of a vocabulary that is padded with tokens that never come."""

    def __init__(self, model, n_padded):
        super().__init__()
        self.model, self.n_padded = model, n_padded

    def forward(self, ids):
        return functional.pad(self.model(ids).logits, (0, self.n_padded), value=-torch.inf)


def test_width_zero_of_a_padded_vocabulary_is_that_of_the_vocabulary(teacher, tokens):
    plain = zero_width_kl(teacher, tokens, device="cpu")
    assert zero_width_kl(Padded(teacher, 5), tokens, device="cpu") == pytest.approx(plain, rel=1e-6)


def test_students_learn_from_a_teacher_with_a_padded_vocabulary(teacher, tokens):
    @make_student.register(Padded)
    def _(teacher, width, *, init="random", random_state=None, tokens=None):
        config = student_config(teacher.model.config, width)
        config.vocab_size += teacher.n_padded
        with OwnDraws(draw_seed(random_state)):
            return type(teacher.model)(config)

    student = DistilledStudent(
        Padded(teacher, 5),
        8,
        n_steps=40,
        warmup_steps=4,
        batch_size=8,
        learning_rate=1e-2,
        random_state=0,
        device="cpu",
    ).fit(tokens)
    assert np.isfinite(student.floor_)
    assert student.floor_ < student.history_[0]["eval_kl"]
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        value = distillation_kl(student.model_(ids).logits, student.teacher(ids), temperature=2.0)
    assert student.score(tokens) == pytest.approx(-float(value), rel=1e-5)


@pytest.mark.parametrize("pad", [None, 63])
def test_width_zero_gives_the_best_single_distribution(teacher, teacher_path, tokens, pad, rng):
    tokens = np.minimum(tokens, 62)
    if pad is not None:
        tokens[:20, 8:] = pad
    with torch.no_grad():
        logits = teacher(torch.from_numpy(tokens)).logits[torch.from_numpy(tokens != 63)].double()
    found = zero_width_kl(teacher_path, tokens, batch_size=7, pad_token_id=pad, device="cpu")
    best = torch.softmax(logits / 2.0, -1).mean(0).log() * 2.0
    assert found == pytest.approx(float(plain_kl(best.expand_as(logits), logits, None, 2.0)), rel=1e-5)
    for _ in range(5):
        other = best + 0.01 * torch.from_numpy(rng.standard_normal(64))
        assert float(plain_kl(other.expand_as(logits), logits, None, 2.0)) > found
    assert zero_width_kl(teacher, tokens, temperature=1.0, pad_token_id=pad, device="cpu") > found
    with pytest.raises(ValueError, match="temperature=0"):
        zero_width_kl(teacher, tokens, temperature=0.0)


@pytest.mark.parametrize("offset", [-300.0, 0.0, 300.0])
def test_the_kl_of_logits_far_from_zero_is_as_exact_as_they_are(offset):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(64, 100, generator=generator) + offset for _ in range(2))
    exact = distillation_kl(student.double(), teacher.double(), temperature=2.0)
    found = distillation_kl(student, teacher, temperature=2.0)
    # An epsilon of the largest scaled logit a row.
    assert abs(float(found) - float(exact)) < 1.2e-7 * (abs(offset) + 15) / 2


def test_softmaxes_of_half_precision_logits_are_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits, target = (20 * torch.randn(50, 30, generator=generator).bfloat16() for _ in range(2))
    value = distillation_kl(logits.clone().requires_grad_(), target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(float(plain_kl(logits.double(), target.double(), None, 1.0)), rel=1e-5)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="vocabulary of 5 tokens, teacher one of 6"):
        distillation_kl(torch.zeros(3, 5), torch.zeros(3, 6))
    with pytest.raises(ValueError, match="positions .4,., teacher .3,."):
        distillation_kl(torch.zeros(4, 5), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="temperature=0"):
        distillation_kl(torch.zeros(3, 5), torch.zeros(3, 5), temperature=0)


# Training


def plain_loop(teacher, tokens, *, mask=lambda ids: None, cross_entropy=0.0, hidden=0.0, optimizer="adamw"):
    """As one would write it: full logits, F.kl_div, AdamW or Muon; eight steps."""
    module = make_student(teacher, 8, random_state=draw_seed(0))
    projection = torch.nn.Linear(8, 16)
    with torch.no_grad():
        generator = torch_generator(draw_seed(0))
        for parameter in projection.parameters():
            parameter.normal_(std=8**-0.5, generator=generator)
        variance = teacher.base_model(torch.from_numpy(tokens[54:]))[0].flatten(0, 1).var(0).mean()
    optimizers = [torch.optim.AdamW([*module.parameters(), *projection.parameters()], weight_decay=0.01)]
    if optimizer == "muon":
        matrices = [p for name, p in module.named_parameters() if ".layers." in name and p.ndim == 2]
        others = {*module.parameters(), *projection.parameters()} - {*matrices}
        optimizers = [torch.optim.AdamW(others, weight_decay=0.01), Muon(matrices, lr=0.0, weight_decay=0.01)]
    for step in range(8):
        for each in optimizers:
            each.param_groups[0]["lr"] = 1e-2 * warmup_cosine(step, n_steps=8, warmup_steps=3)
        ids = torch.from_numpy(tokens[epoch_rows(54, 8, step, 0)])
        with torch.no_grad():
            target = teacher(ids, output_hidden_states=True)
        output = module(ids, output_hidden_states=True)
        loss = 4 * plain_kl(output.logits, target.logits, mask(ids), 2.0)
        following = functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        error = functional.mse_loss(projection(output.hidden_states[-1]), target.hidden_states[-1]) / variance
        loss = loss + cross_entropy * following + hidden * error
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()
    return module


def assert_close_to_plain(fitted, module):
    """Same logits; weights that change none, such as biases of keys, move by what rounding gives them."""
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(fitted.model_(ids).logits, module(ids).logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "losses"),
    [
        ({}, {}),
        ({"gradient_accumulation": 3}, {}),
        ({"cross_entropy_weight": 1.5, "gradient_accumulation": 2}, {"cross_entropy": 1.5}),
        ({"hidden_weight": 5.0}, {"hidden": 5.0}),
        ({"optimizer": "muon", "hidden_weight": 5.0}, {"optimizer": "muon", "hidden": 5.0}),
    ],
)
def test_training_is_the_textbook_loop(teacher, tokens, changes, losses):
    fitted = student(teacher, n_steps=8, **changes).fit(tokens)
    assert_close_to_plain(fitted, plain_loop(teacher, tokens, **losses))


def test_other_losses_and_optimizers_change_the_result(teacher, tokens):
    changes = ({}, {"hidden": 5.0}, {"optimizer": "muon"})
    logits = [plain_loop(teacher, tokens, **each)(torch.arange(12)[None]).logits for each in changes]
    for other in logits[1:]:
        assert float((logits[0] - other).abs().max().detach()) > 0.01  # so that the test above tells something


def test_padding_counts_nowhere(teacher, tokens):
    tokens = np.where(tokens == 63, 0, tokens)
    lengths = np.random.default_rng(1).integers(2, 13, size=60)
    padded = np.where(np.arange(12) < lengths[:, None], tokens, 63)
    fitted = student(teacher, n_steps=8, pad_token_id=63, gradient_accumulation=2).fit(padded)
    plain = plain_loop(teacher, padded, mask=lambda ids: ids != 63).requires_grad_(False)
    assert_close_to_plain(fitted, plain)
    per_token = [
        plain_kl(plain(ids).logits, teacher(ids).logits, None, 2.0).item()
        for ids in (torch.from_numpy(row[:length][None]) for row, length in zip(padded, lengths, strict=True))
    ]
    assert fitted.score(padded) == pytest.approx(-np.average(per_token, weights=lengths), rel=1e-3)
    assert fitted.transform(padded).shape == (60, 8)


def test_the_floor_is_the_mean_of_the_last_tenth_of_evaluations(teacher, tokens):
    fitted = student(teacher, eval_every=1, n_steps=20).fit(tokens)
    curve = [row["eval_kl"] for row in fitted.history_]
    assert [row["step"] for row in fitted.history_] == list(range(21))
    assert fitted.floor_ == pytest.approx(np.mean(curve[-2:]), rel=1e-12)
    assert curve[-1] < curve[0]
    assert -fitted.score(tokens[-6:]) == pytest.approx(curve[-1], rel=1e-6)
    each = [-fitted.score(row[None]) for row in tokens[-6:]]
    assert fitted.floor_error_ == pytest.approx(np.std(each, ddof=1) / np.sqrt(6), rel=0.05)
    rates = [row["learning_rate"] for row in fitted.history_]
    assert rates[1:4] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert fitted.n_parameters_ == fitted.model_.num_parameters()
    assert fitted.n_steps_ == 20


def test_a_student_can_start_from_the_teachers_principal_directions(teacher, tokens, tmp_path):
    fitted = student(teacher, width=16, init="principal", checkpoint_path=tmp_path / "checkpoint").fit(tokens)
    assert fitted.history_[0]["eval_kl"] == pytest.approx(0, abs=1e-5)  # at the teacher's own width it is the teacher
    assert_same(clone(fitted).fit(tokens), fitted)


# Settings that are chosen


@pytest.mark.parametrize(
    ("n_sequences", "length", "batch_size", "n_steps"),
    [
        (1, 256, 1, 600),
        (60, 12, 7, 600),  # an eighth of the sequences
        (300, 256, 8, 600),
        (5545, 256, 8, 693),  # one pass
        (1000, 4096, 1, 1000),
        (16_384, 512, 5, 3276),  # larger batches, to see all of the text
        (2_000_000, 512, 32, 4000),  # a billion tokens: a part of it
    ],
)
def test_steps_and_batches_follow_from_the_size_of_the_text(teacher, n_sequences, length, batch_size, n_steps):
    settings = plain_settings(DistilledStudent(teacher, 8))
    choose(settings, n_sequences=n_sequences, length=length, principal=True)
    assert (settings.batch_size, settings.n_steps) == (batch_size, n_steps)
    assert settings.warmup_steps == n_steps // 10
    assert settings.eval_every == n_steps // 20


def test_the_default_is_what_the_guide_advises(teacher, tokens):
    default = DistilledStudent(teacher, 8, n_steps=40, device="cpu").fit(tokens)
    spelled_out = DistilledStudent(
        teacher, 8, n_steps=40, batch_size=7, learning_rate=1e-2, warmup_steps=4, optimizer="muon", clip_norm=1.0,
        init="principal", eval_every=2, device="cpu",
    ).fit(tokens)  # fmt: skip
    assert_same(default, spelled_out)
    assert (default.init_, default.batch_size_, default.warmup_steps_, default.eval_every_) == ("principal", 7, 4, 2)
    assert default.get_params()["init"] == "auto"


def test_students_start_at_random_where_the_family_has_no_other_start(tokens):
    no_biases = new_teacher(attention_bias=False)
    assert DistilledStudent(no_biases, 8, n_steps=2, device="cpu").fit(tokens).init_ == "random"
    qwen = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    assert default_init(qwen) == "random"
    assert default_init(torch.nn.Linear(2, 2)) == "random"
    assert [default_init(each) for each in (new_teacher(), GPT2LMHeadModel(GPT2Config(n_layer=1)))] == 2 * ["principal"]


def test_the_papers_settings_are_a_preset(teacher):
    paper = DistilledStudent.paper(teacher, 8, n_steps=20)
    assert paper.get_params() == DistilledStudent(
        teacher, 8, n_steps=20, batch_size=32, learning_rate=3e-4, weight_decay=0.01, warmup_steps=1000,
        optimizer="adamw", clip_norm=None, init="random", eval_every=500, temperature=2.0,
    ).get_params()  # fmt: skip
    assert DistilledStudent.paper(teacher, 8).n_steps == 30_000


def test_numbers_of_any_type_train_as_plain_ones(teacher, tokens):
    odd = {
        "n_steps": np.uint64(20), "batch_size": np.int8(7), "warmup_steps": np.uint8(3), "eval_every": np.uint64(5),
        "temperature": np.float32(2), "learning_rate": np.float64(1e-2), "clip_norm": np.float32(0.5),
        "gradient_accumulation": np.int8(2), "eval_sequences": np.uint16(5), "weight_decay": torch.tensor(0.5),
    }  # fmt: skip
    plain = {name: value.item() if hasattr(value, "item") else float(value) for name, value in odd.items()}
    expected = student(teacher, 8, n_heads=2, **plain).fit(tokens)
    found = student(teacher, np.int8(8), n_heads=np.int8(2), **odd).fit(tokens)
    assert_same(found, expected)
    assert type(found.n_steps_) is type(found.batch_size_) is type(found.converged_).__mro__[1] is int
    np.testing.assert_array_equal(found.predict(tokens), expected.predict(tokens))
    assert found.score(tokens) == expected.score(tokens)


# How far training came


def curve(*points):
    return [{"step": step, "eval_kl": kl} for step, kl in points]


def test_what_twice_the_steps_may_take_off_is_the_fall_before_the_decay():
    falling = curve((0, 9.0), (25, 2.0), (50, 1.5), (75, 0.2), (100, 0.1))
    assert remaining_fall(falling, 100) == pytest.approx(0.25)
    assert remaining_fall(curve((0, 9.0), (20, 2.0), (60, 1.0), (100, 0.1)), 100) == pytest.approx(0.5)
    assert remaining_fall(curve((0, 9.0), (25, 1.0), (50, 1.5), (100, 0.1)), 100) == 0.0
    assert remaining_fall(curve((0, 0.0), (25, 0.0), (50, 0.0), (100, 0.0)), 100) == 0.0
    for sparse in (curve((0, 9.0), (100, 1.0)), curve((0, 9.0), (50, 1.0), (100, 1.0))):
        assert np.isnan(remaining_fall(sparse, 100))


def test_twice_the_steps_took_off_no_more_in_the_runs_on_record():
    ratios = []
    for path in (Path(__file__).parents[1] / "benchmarks" / "results").glob("*_floors*.json"):
        runs = {(run["width"], run["seed"], run["n_steps"]): run for run in json.loads(path.read_text())["runs"]}
        for (width, seed, n_steps), run in runs.items():
            longer = runs.get((width, seed, 2 * n_steps))
            if longer is not None:
                fall = remaining_fall(curve(*run["history"]), n_steps)
                ratios.append((1 - longer["floor"] / run["floor"]) / fall)
    assert len(ratios) > 40
    assert max(ratios) < 1.0


@pytest.fixture(scope="module")
def trained():
    """A student of a teacher with one block and little to learn, trained to the end."""
    simple = new_teacher(num_hidden_layers=1, vocab_size=16, intermediate_size=16)
    text = np.random.default_rng(0).integers(16, size=(400, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DistilledStudent(simple, 8, n_steps=1500, random_state=0, device="cpu").fit(text)


def test_a_student_that_more_steps_would_not_lower_has_converged(trained):
    assert trained.converged_ is True
    assert 0 <= trained.remaining_fall_ <= 0.05
    assert trained.zero_width_loss_ > 2 * trained.floor_ > 0


def test_a_student_that_is_its_teacher_has_converged(teacher, tokens):
    fitted = DistilledStudent(teacher, 16, n_steps=100, learning_rate=1e-6, device="cpu").fit(tokens)
    assert fitted.floor_ < 1e-3 * fitted.zero_width_loss_
    assert fitted.converged_ is True


def test_ten_steps_converge_nowhere_and_say_so(teacher, tokens):
    with pytest.warns(ConvergenceWarning, match="width 16: n_steps=10 are too few to learn from") as record:
        fitted = DistilledStudent(teacher, 16, n_steps=10, learning_rate=1e-6, device="cpu").fit(tokens)
    assert fitted.converged_ is False
    assert [each.filename for each in record] == [__file__]


def test_the_zero_width_loss_is_that_of_the_held_out_text(teacher, tokens):
    tokens = np.minimum(tokens, 62)
    tokens[-3:, 8:] = 63
    fitted = student(teacher, pad_token_id=63).fit(tokens)
    assert fitted.zero_width_loss_ == pytest.approx(
        zero_width_kl(teacher, tokens[-6:], pad_token_id=63, device="cpu"), rel=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16, "learning_rate": 3e-2}, r"at step 0 and rose to floor_=[\d.]+; lower learning_rate=0.03"),
        ({"init": "random", "learning_rate": 3e-4, "optimizer": "adamw"}, "no better than one distribution for all"),
    ],
)
def test_students_that_learned_badly_are_named_once_with_a_remedy(teacher, tokens, changes, message):
    settings = {"width": 8, "n_steps": 100, "random_state": 0, "device": "cpu", **changes}
    with pytest.warns(ConvergenceWarning, match=message) as record:
        fitted = DistilledStudent(teacher, **settings).fit(tokens)
    assert fitted.converged_ is False
    assert [each.filename for each in record] == [__file__]


def test_several_students_give_one_warning(teacher, tokens):
    with pytest.warns(ConvergenceWarning) as record:
        distill_widths(teacher, tokens, [8, 16], n_steps=10, device="cpu")
    assert [each.filename for each in record] == [__file__]
    assert str(record[0].message).startswith("Students of widths 8, 16: n_steps=10 are too few")


def lesson(**changes):
    values = {
        "width": 8, "n_steps_": 400, "learning_rate": 0.01, "floor_": 0.2, "zero_width_loss_": 1.0,
        "remaining_fall_": 0.3, "history_": curve((0, 0.9), (200, 0.4), (400, 0.2)),
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"remaining_fall_": 0.6}, "still falling, by 60% .* loss after n_steps=400, not the floor. Set n_steps=800"),
        ({"remaining_fall_": float("nan")}, None),
        (
            {"floor_": 1.1, "history_": curve((0, 1.2), (400, 1.1))},
            "which loses 1 nats per token. Change learning_rate",
        ),
        (
            {"history_": curve((0, 0.9), (200, 0.1), (400, 0.2))},
            "0.1 at step 200 and rose to floor_=0.2; give more text",
        ),
        ({"history_": curve((0, 0.9), (200, 0.195), (400, 0.2))}, None),
        ({"n_steps_": 99}, "n_steps=99 are too few"),
    ],
)
def test_each_fault_of_a_learning_curve_has_its_remedy(changes, message):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        warn_of_training([lesson(**changes)])
    if message is None:
        assert record == []
    else:
        assert re.search(message, str(record[0].message))


def test_evaluation_tokens_can_be_given(teacher, tokens):
    fitted = student(teacher).fit(tokens[:54], eval_tokens=tokens[54:])
    assert_same(fitted, student(teacher).fit(tokens))


def test_memory_maps_of_small_integers_are_trained_on_as_arrays_are(teacher, tokens, tmp_path):
    np.save(tmp_path / "tokens.npy", tokens.astype(np.uint8))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    assert_same(student(teacher).fit(mapped), student(teacher).fit(tokens))


def test_bf16_is_near_float32(teacher, tokens):
    exact, rough = student(teacher).fit(tokens), student(teacher, precision="bf16").fit(tokens)
    assert rough.floor_ == pytest.approx(exact.floor_, rel=0.02)
    assert rough.floor_ != exact.floor_
    assert all(value.dtype == np.float32 for value in weights(rough).values())


def test_teachers_by_name_as_objects_and_as_bare_modules_give_the_same(teacher, teacher_path, tokens):
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = teacher

        def forward(self, ids):
            return self.inner(ids).logits

    @make_student.register
    def _(teacher: Bare, width, *, init="random", random_state=None, tokens=None):
        return make_student(teacher.inner, width, random_state=random_state)

    by_object = student(teacher).fit(tokens)
    assert_same(student(teacher_path).fit(tokens), by_object)
    assert_same(student(str(teacher_path)).fit(tokens), by_object)
    # Its logits come whole, so sums are rounded otherwise.
    assert student(Bare()).fit(tokens).floor_ == pytest.approx(by_object.floor_, rel=1e-4)


def test_tied_embeddings_and_dropout(tokens):
    config = GPT2Config(vocab_size=N_VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.5)
    teacher = GPT2LMHeadModel(config).train()
    fitted = student(teacher, learning_rate=3e-3).fit(tokens)
    assert teacher.training  # as it was
    assert teacher.transformer.drop.training
    assert_same(student(teacher, learning_rate=3e-3).fit(tokens), fitted)
    assert fitted.model_.lm_head.weight is fitted.model_.transformer.wte.weight


def test_the_teacher_is_left_alone(teacher, tokens):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    flags = [parameter.requires_grad for parameter in teacher.parameters()]
    student(teacher).fit(tokens).score(tokens)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [parameter.requires_grad for parameter in teacher.parameters()] == flags
    assert all(parameter.grad is None for parameter in teacher.parameters())


# Inference


def test_predictions_are_the_models(teacher, tokens):
    fitted = student(teacher).fit(tokens)
    with torch.no_grad():
        logits = fitted.model_(torch.from_numpy(tokens)).logits
    np.testing.assert_array_equal(fitted.predict(tokens), logits.argmax(-1).numpy())
    np.testing.assert_allclose(fitted.predict_log_proba(tokens), torch.log_softmax(logits, -1).numpy(), atol=1e-5)
    expected = ActivationExtractor(fitted.model_, 0, pooling="mean").transform(tokens)
    np.testing.assert_allclose(fitted.set_params(layer=0).transform(tokens), expected, atol=1e-6)
    assert fitted.set_params(pooling=None).transform(tokens).shape == (60 * 11, 8)
    assert fitted.get_feature_names_out()[-1] == "distilledstudent7"


def test_before_fit_nothing_is_predicted(teacher, tokens):
    for method in ("predict", "predict_log_proba", "transform", "score"):
        with pytest.raises(NotFittedError):
            getattr(student(teacher), method)(tokens)


# Several students in one pass


def test_students_trained_together_end_where_each_alone_would(teacher, tokens):
    calls = []
    handle = teacher.register_forward_pre_hook(lambda *_: calls.append("whole"))
    base = teacher.base_model.register_forward_pre_hook(lambda *_: calls.append("base"))
    pairs = [8, (8, 5), 16]
    together = distill_widths(teacher, tokens, pairs, gradient_accumulation=2, **SETTINGS)
    n_together = len(calls)
    calls.clear()
    alone = [
        student(teacher, width, random_state=seed, gradient_accumulation=2).fit(tokens)
        for width, seed in [(8, 0), (8, 5), (16, 0)]
    ]
    handle.remove()
    base.remove()
    for a, b in zip(together, alone, strict=True):
        assert_same(a, b)
        assert a.get_params() == b.get_params()
    assert len(calls) == 3 * n_together  # one forward pass of the teacher a batch
    assert together[0].floor_ != together[1].floor_


def test_probabilities_that_are_not_kept_are_computed_again_to_the_same_bits(teacher, tokens, monkeypatch):
    kept = distill_widths(teacher, tokens, [8, 16], **SETTINGS)
    monkeypatch.setattr(_divergence, "_KEPT_BYTES", 0)
    for a, b in zip(kept, distill_widths(teacher, tokens, [8, 16], **SETTINGS), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([], "at least one width and no student twice"),
        ([8, 8], "no student twice"),
        ([8, (8, 0)], "no student twice"),
        ([np.int8(8), np.int64(8)], "no student twice"),
        ([8, (8, 0, 1)], "a pair of width and seed"),
        ([8, 4.5], "widths=4.5 must be a whole number"),
        (8, "widths=8 must be a list"),
        ("88", "widths='88' must be a list"),
        ([8, 32], "width=32 exceeds the teacher's width of 16"),
    ],
)
def test_widths_must_be_there_and_differ(teacher, tokens, widths, message, monkeypatch):
    monkeypatch.delattr(_engine.Distillation, "train_step")
    with pytest.raises(ValueError, match=message):
        distill_widths(teacher, tokens, widths, **SETTINGS)


def test_students_come_in_the_order_of_widths(teacher, tokens):
    asked = [16, (8, 3), np.int16(8)]
    found = distill_widths(teacher, tokens, asked, **{**SETTINGS, "n_steps": 1, "warmup_steps": 0})
    assert [(each.width, each.random_state) for each in found] == [(16, 0), (8, 3), (8, 0)]


def test_settings_are_taken_from_a_student_unless_given(teacher, tokens):
    like = student(teacher, weight_decay=0.3, random_state=7, checkpoint_path="unused")
    [found] = distill_widths(teacher, tokens, [16], like=like, n_steps=5)
    assert found.get_params() == {
        **like.get_params(), "width": 16, "n_steps": 5, "random_state": 0, "checkpoint_path": None,
    }  # fmt: skip
    with pytest.raises(TypeError, match="like='paper' is a str; give a DistilledStudent"):
        distill_widths(teacher, tokens, [16], like="paper")


# Checkpoints


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(("steps", "optimizer"), [(1, "adamw"), (4, "muon"), (13, "adamw"), (19, "muon")])
def test_a_stopped_fit_goes_on_to_the_same_bits(teacher, tokens, tmp_path, monkeypatch, steps, optimizer):
    settings = {"checkpoint_every": 3, "hidden_weight": 0.1, "eval_every": 2, "optimizer": optimizer}
    never_stopped = student(teacher, **settings).fit(tokens)
    stopped = student(teacher, checkpoint_path=tmp_path / "checkpoint", **settings)
    train_step = _engine.Distillation.train_step

    def stop_after(self, runs, step):
        if step == steps:
            raise StoppedError
        train_step(self, runs, step)

    monkeypatch.setattr(_engine.Distillation, "train_step", stop_after)
    with pytest.raises(StoppedError):
        clone(stopped).fit(tokens)
    monkeypatch.undo()
    assert_same(clone(stopped).fit(tokens), never_stopped)
    assert_same(clone(stopped).fit(tokens), never_stopped)  # already complete


def test_students_that_were_checkpointed_at_different_steps_go_on_together(teacher, tokens, tmp_path, monkeypatch):
    never_stopped = distill_widths(teacher, tokens, [8, 16], **SETTINGS)
    settings = {**SETTINGS, "checkpoint_every": 3, "checkpoint_path": tmp_path / "runs"}
    write = _engine.write_tensors
    written = []

    def full_disk(path, *arguments, **options):
        written.append(path.name)
        if len(written) == 4:  # step 6, the second student
            raise OSError(28, "No space left on device")
        write(path, *arguments, **options)

    monkeypatch.setattr(_engine, "write_tensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        distill_widths(teacher, tokens, [8, 16], **settings)
    monkeypatch.undo()
    assert written == 2 * ["width-8-seed-0.safetensors", "width-16-seed-0.safetensors"]
    for a, b in zip(distill_widths(teacher, tokens, [8, 16], **settings), never_stopped, strict=True):
        assert_same(a, b)


_KILLED = """
import sys
import numpy as np
import torch
from geofloor.students import _distillation, _engine

torch.set_num_threads(1)

evaluate = _engine.Distillation.evaluate

def announced(self, runs):
    evaluate(self, runs)
    print(runs[0].step, flush=True)

_engine.Distillation.evaluate = announced
tokens = np.random.default_rng(0).integers(64, size=(60, 12))
students = _distillation.distill_widths(
    sys.argv[1], tokens, [8, 16], n_steps=60, warmup_steps=3, batch_size=8, learning_rate=1e-2, eval_every=2,
    checkpoint_every=3, checkpoint_path=sys.argv[2], device="cpu",
)
for student in students:
    student.save(f"{sys.argv[2]}/{student.width}.safetensors")
"""


def test_sigkill_loses_nothing(teacher_path, tmp_path):
    def start(name):
        arguments = [sys.executable, "-c", _KILLED, str(teacher_path), str(tmp_path / name)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    for last_line in ("8", "44"):
        with start("killed") as process:
            for line in process.stdout:
                if line.strip() == last_line:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
    with start("killed") as process:
        steps = process.communicate()[0].split()
    assert int(steps[0]) >= 42  # it went on, and did not start anew
    settings = {
        "n_steps": 60,
        "warmup_steps": 3,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "eval_every": 2,
        "device": "cpu",
    }
    tokens = np.random.default_rng(0).integers(64, size=(60, 12))
    for never_stopped in distill_widths(teacher_path, tokens, [8, 16], **settings):
        path = tmp_path / "killed" / f"{never_stopped.width}.safetensors"
        assert_same(DistilledStudent.load(path, device="cpu"), never_stopped)


@pytest.mark.parametrize("init", ["random", "principal"])
def test_heads_can_be_chosen_and_are_there_after_a_checkpoint(init, teacher, tokens, tmp_path):
    chosen = {"n_heads": 4, "init": init, "checkpoint_path": tmp_path / "checkpoint", "checkpoint_every": 5}
    fitted = student(teacher, **chosen).fit(tokens)
    assert fitted.model_.config.num_attention_heads == 4
    assert_same(student(teacher, **chosen).fit(tokens), fitted)
    with pytest.raises(ValueError, match="other values of n_heads"):
        student(teacher, **{**chosen, "n_heads": 2}).fit(tokens)
    with pytest.raises(ValueError, match="n_heads=3 can't divide width=8"):
        student(teacher, n_heads=3).fit(tokens)
    with pytest.raises(ValueError, match="n_heads=0"):
        student(teacher, n_heads=0).fit(tokens)


def test_a_checkpoint_of_something_else_is_refused(teacher, tokens, tmp_path):
    path = tmp_path / "checkpoint"
    student(teacher, checkpoint_path=path).fit(tokens)
    with pytest.raises(ValueError, match="other values of temperature"):
        student(teacher, checkpoint_path=path, temperature=3.0).fit(tokens)
    with pytest.raises(ValueError, match="other values of random_state"):
        student(teacher, checkpoint_path=path, random_state=1).fit(tokens)
    with pytest.raises(ValueError, match="other tokens"):
        student(teacher, checkpoint_path=path).fit(tokens[::-1])
    with pytest.raises(ValueError, match="other teacher"):
        student(new_teacher(initializer_range=0.2), checkpoint_path=path).fit(tokens)
    assert DistilledStudent.steps_done(path) == SETTINGS["n_steps"]
    write_tensors(path, {"a": torch.zeros(1)}, kind="something else", metadata={})
    with pytest.raises(ValueError, match="holds a something else"):
        student(teacher, checkpoint_path=path).fit(tokens)
    with pytest.raises(ValueError, match="holds a something else"):
        DistilledStudent.steps_done(path)


def test_a_checkpoint_of_a_teacher_or_of_tokens_that_differ_in_one_number_is_refused(teacher, tokens, tmp_path):
    path = tmp_path / "checkpoint"
    fitted = student(teacher, checkpoint_path=path).fit(tokens)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[-1, -1] += 1e-3  # not among the first numbers
    rotated = new_teacher(rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25})
    rotated.load_state_dict(teacher.state_dict())
    dropped = new_teacher(hidden_act="relu")
    dropped.load_state_dict(teacher.state_dict())
    for wrong in (other, rotated, dropped):
        with pytest.raises(ValueError, match="made with other teacher, by a checksum of all of it"):
            student(wrong, checkpoint_path=path).fit(tokens)
    changed = tokens.copy()
    changed[33, 5] = (changed[33, 5] + 1) % N_VOCABULARY
    with pytest.raises(ValueError, match="made with other tokens, by a checksum of all of it"):
        student(teacher, checkpoint_path=path).fit(changed)
    with pytest.raises(ValueError, match="made with other tokens"):
        student(teacher, checkpoint_path=path).fit(tokens, eval_tokens=tokens[-3:])
    assert_same(student(copy.deepcopy(teacher), checkpoint_path=path).fit(tokens.astype(np.uint8)), fitted)


def test_checksums_are_of_every_row_and_not_of_what_they_lie_in(tokens, on_disk, monkeypatch):
    found = set()
    for data in (tokens, tokens.astype(np.int32), tokens.tolist(), torch.tensor(tokens), *on_disk):
        for rows in (7, 4096):
            monkeypatch.setattr(_token_rows, "_SCAN_ROWS", rows)
            found.add(_token_rows.TokenRows(data, "tokens", N_VOCABULARY, None, None).fingerprint())
    assert len(found) == 1
    changed = [tokens[:-1], tokens.reshape(-1, 6), np.roll(tokens, 1, axis=0)]
    prints = {_token_rows.TokenRows(data, "tokens", N_VOCABULARY, None, None).fingerprint() for data in changed}
    assert len(prints | found) == 4


def test_a_teacher_and_what_is_loaded_from_its_folder_have_one_checksum(teacher, teacher_path):
    loaded = GPTNeoXForCausalLM.from_pretrained(teacher_path, dtype="float32")
    assert LanguageModel(loaded, "teacher").digest() == LanguageModel(teacher, "teacher").digest()
    half = GPTNeoXForCausalLM.from_pretrained(teacher_path, dtype="bfloat16")
    assert LanguageModel(half, "teacher").digest() != LanguageModel(teacher, "teacher").digest()


def test_the_history_of_a_resumed_fit_has_its_names_in_the_same_order(teacher, tokens, tmp_path):
    fitted = student(teacher, checkpoint_path=tmp_path / "checkpoint").fit(tokens)
    resumed = student(teacher, checkpoint_path=tmp_path / "checkpoint").fit(tokens)
    assert [list(row) for row in resumed.history_] == [list(row) for row in fitted.history_]


@pytest.mark.parametrize(
    "odd",
    [
        {"learning_rate": np.float32(1e-2)},
        {"temperature": np.float16(2)},
        {"convergence_tol": np.float64(0.01), "n_steps": np.int64(20)},
        {"device": torch.device("cpu"), "random_state": np.int64(0)},
    ],
)
def test_numbers_of_other_libraries_are_kept_in_files(teacher, tokens, tmp_path, odd):
    fitted = student(teacher, checkpoint_path=tmp_path / "checkpoint", **odd).fit(tokens)
    fitted.save(tmp_path / "saved")
    assert_same(DistilledStudent.load(tmp_path / "saved", device="cpu"), fitted)
    assert_same(clone(fitted).fit(tokens), fitted)  # from its checkpoint


def test_what_can_not_be_written_is_refused_before_the_first_step(teacher, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(_engine.Distillation, "train", None)
    (tmp_path / "file").touch()
    for wrong, message in [
        ({"convergence_tol": Decimal("0.01")}, "convergence_tol="),
        ({"temperature": Fraction(2)}, "temperature="),
        ({"pooling": object()}, "pooling="),
        ({"checkpoint_path": tmp_path}, "checkpoint_path=.* is a folder"),
        ({"checkpoint_path": tmp_path / "file" / "x"}, "checkpoint_path=.* can't be written"),
    ]:
        with pytest.raises(ValueError, match=message):
            student(teacher, **wrong).fit(tokens)
    with pytest.raises(ValueError, match="checkpoint_path=.*file/width-8-seed-0.safetensors' can't be written"):
        distill_widths(teacher, tokens, [8], checkpoint_path=tmp_path / "file", **SETTINGS)


def test_a_disk_that_is_full_at_the_end_leaves_the_student(teacher, tokens, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = student(teacher).fit(tokens)
    monkeypatch.setattr(_engine, "write_tensors", full)
    fitted = student(teacher, checkpoint_path=tmp_path / "checkpoint")
    with pytest.raises(OSError, match="No space left"):
        fitted.fit(tokens)
    assert_same(fitted, expected)


# Files and copies


def test_a_loaded_student_is_scored_by_the_teacher_that_is_given(teacher, teacher_path, tokens, tmp_path):
    fitted = student(teacher_path, teacher_kwargs={"dtype": "float32"}).fit(tokens)
    fitted.save(tmp_path / "saved")
    loaded = DistilledStudent.load(tmp_path / "saved", teacher=teacher, device="cpu")
    assert loaded.teacher_kwargs is None
    assert loaded.score(tokens) == fitted.score(tokens)


def test_a_setting_that_no_file_keeps_is_left_out_only_where_the_model_does_without(tokens, tmp_path, monkeypatch):
    fitted = student(new_teacher(use_mrope=False)).fit(tokens)
    assert fitted.model_.config.use_mrope is False
    fitted.save(tmp_path / "saved")
    np.testing.assert_array_equal(DistilledStudent.load(tmp_path / "saved").predict(tokens), fitted.predict(tokens))
    names = _saved_students._names("gpt_neox") - {"hidden_act"}
    monkeypatch.setattr(_saved_students, "_names", lambda _: names)
    fitted = student(new_teacher(hidden_act="relu")).fit(tokens)
    with pytest.raises(ValueError, match=r"can't be made again.*\['hidden_act'\], which no file keeps"):
        fitted.save(tmp_path / "other")


def test_a_student_of_one_held_out_sequence_has_no_error_after_loading_either(teacher, tokens, tmp_path):
    fitted = student(teacher, n_steps=5, eval_sequences=1).fit(tokens)
    fitted.save(tmp_path / "saved")
    assert np.isnan([fitted.floor_error_, DistilledStudent.load(tmp_path / "saved").floor_error_]).all()


def test_save_and_load(teacher, teacher_path, tokens, tmp_path):
    path = tmp_path / "student.safetensors"
    fitted = student(teacher_path).fit(tokens)
    fitted.save(path)
    loaded = DistilledStudent.load(path, device="cpu")
    assert_same(loaded, fitted)
    assert loaded.get_params() == {**fitted.get_params(), "teacher": None}
    np.testing.assert_array_equal(loaded.predict(tokens), fitted.predict(tokens))
    with pytest.raises(ValueError, match=f"names the teacher '{teacher_path}', which is not loaded from.*teacher="):
        loaded.score(tokens)
    assert loaded.set_params(teacher=teacher_path).score(tokens) == fitted.score(tokens)
    assert (loaded.n_parameters_, loaded.converged_) == (fitted.n_parameters_, fitted.converged_)

    student(teacher).fit(tokens).save(path)
    loaded = DistilledStudent.load(path, device="cpu")
    np.testing.assert_array_equal(loaded.predict(tokens), fitted.predict(tokens))
    with pytest.raises(ValueError, match="teacher=None must be"):
        loaded.score(tokens)
    assert DistilledStudent.load(path, teacher=teacher, device="cpu").score(tokens) == fitted.score(tokens)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated"):
        DistilledStudent.load(path)


def test_a_clone_shares_the_teacher(teacher, tokens):
    original = student(teacher)
    assert clone(original).teacher is teacher
    assert original.teacher is teacher


class Faraway(torch.Tensor):
    """A tensor that says it is on a GPU, where there may be none; its numbers are on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="cuda:0")
        made.inner = inner
        return made

    def __reduce_ex__(self, protocol):
        raise AssertionError("A tensor on a GPU was pickled.")

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        inner = [each.inner if isinstance(each, cls) else each for each in arguments]
        if function is torch.ops.aten._to_copy.default:
            return inner[0].clone()
        return cls(function(*inner, **(options or {})))


def far_away(module):
    """A copy of a module whose tensors say that they are on a GPU."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, torch.nn.Parameter(Faraway(value.detach()), requires_grad=False))
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, Faraway(value))
    return module


def test_a_student_pickled_on_a_gpu_is_read_on_a_cpu(tokens):
    teacher = new_teacher()
    fitted = student(teacher).fit(tokens)
    expected = fitted.predict(tokens), fitted.score(tokens)
    fitted.model_, fitted.device_ = far_away(fitted.model_), "cuda:0"
    fitted.teacher = far_away(teacher)
    shared = copy.copy(fitted)
    assert (shared.model_, shared.device_) == (fitted.model_, "cuda:0")
    assert clone(fitted).teacher is fitted.teacher
    restored = pickle.loads(pickle.dumps(fitted))
    tensors = [*restored.model_.state_dict().values(), *restored.teacher.state_dict().values()]
    assert {str(tensor.device) for tensor in tensors} == {restored.device_} == {"cpu"}
    np.testing.assert_array_equal(restored.predict(tokens), expected[0])
    assert restored.score(tokens) == expected[1]
    assert fitted.device_ == str(next(fitted.model_.parameters()).device) == "cuda:0"  # as it was


@pytest.mark.parametrize(
    "make",
    [
        lambda teacher: ActivationExtractor(teacher, 0),
        lambda teacher: AblationPredictor(teacher, 0),
        BottleneckPredictor,
    ],
)
def test_estimators_that_hold_a_teacher_on_a_gpu_are_read_on_a_cpu(make):
    teacher = new_teacher()
    estimator = make(teacher)
    if isinstance(estimator, ActivationExtractor):
        estimator.fit()
        estimator.model_ = far_away(estimator.model_)
    parameter = "model" if hasattr(estimator, "model") else "teacher"
    estimator.set_params(**{parameter: far_away(teacher)})
    restored = pickle.loads(pickle.dumps(estimator))
    held = getattr(restored, parameter)
    assert {str(tensor.device) for tensor in held.state_dict().values()} == {"cpu"}


def test_copies_in_memory_hold_the_same_model(teacher, tokens):
    fitted = student(teacher).fit(tokens)
    assert copy.copy(fitted).model_ is fitted.model_
    deep = copy.deepcopy(fitted)
    assert deep.model_ is not fitted.model_
    assert_same(deep, fitted)


def test_a_student_prints_the_class_of_its_teacher(teacher):
    assert repr(DistilledStudent(teacher, 8)) == "DistilledStudent(teacher=GPTNeoXForCausalLM(...), width=8)"


def test_a_teacher_by_name_is_left_out_of_pickles(teacher, teacher_path, tokens):
    fitted = student(teacher_path).fit(tokens)
    names = {name for name, _ in fitted._load_teacher()[1].named_parameters()}
    assert names
    assert "_loaded" not in fitted.__getstate__()
    restored = pickle.loads(pickle.dumps(fitted))
    assert restored.score(tokens) == fitted.score(tokens)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_a_grid_search_over_the_width(teacher_path, tokens, n_jobs):
    search = GridSearchCV(student(str(teacher_path), n_steps=40), {"width": [8, 16]}, cv=2, n_jobs=n_jobs)
    search.fit(tokens)
    assert search.best_params_ == {"width": 16}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(tokens) == search.best_estimator_.score(tokens)


# Toy models


def test_a_toy_teacher_is_distilled_as_toy_models_are():
    features = SparseFeatures(6, alpha=0.9)
    settings = {"n_steps": 200, "max_rounds": 20, "n_eval_samples": 4096}
    teacher = ToyModel(4, random_state=0, **settings).fit(features)
    fitted = DistilledStudent(teacher, 2, random_state=1, device="cpu").fit(features)
    expected = ToyModel(2, random_state=1, device="cpu", **settings).fit(features, teacher=teacher)
    assert (fitted.floor_, fitted.floor_error_) == (expected.floor_, expected.standard_error_)
    assert fitted.n_parameters_ == 2 * 6 + 6
    X = features.sample(50, random_state=0)
    np.testing.assert_array_equal(fitted.transform(X), expected.transform(X))
    difference = teacher.predict(X) - fitted.predict(X)
    assert fitted.score(X) == pytest.approx(-np.mean(difference**2 @ (1 / np.arange(1, 7))))
    [together] = distill_widths(teacher, features, [(2, 1)], device="cpu")
    assert together.floor_ == fitted.floor_
    with pytest.raises(ValueError, match="no probabilities"):
        fitted.predict_log_proba(X)
    with pytest.raises(ValueError, match="type ToyModel can't be made again"):
        fitted.save("student")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_weight": 0.5}, "hidden_weight=0.5 would not be used"),
        ({"n_steps": 10, "layer": 0}, "layer=0, n_steps=10 would not be used"),
        ({"clip_norm": None}, "clip_norm=None would not be used"),
        ({"checkpoint_path": "file"}, "checkpoint_path='file' would not be used"),
        ({"teacher_kwargs": {}}, "teacher_kwargs={} would not be used"),
        ({"n_heads": 2}, "n_heads=2 is not there for a ToyModel"),
        ({"init": "principal"}, "init='principal' is not there for a ToyModel"),
        ({"width": 5}, "width=5 exceeds the teacher's width of 4"),
    ],
)
def test_what_students_of_toy_models_would_not_use_is_refused(changes, message):
    features = SparseFeatures(6, alpha=0.9)
    teacher = ToyModel(4, random_state=0, n_steps=200, max_rounds=20, n_eval_samples=4096).fit(features)
    with pytest.raises(ValueError, match=message):
        DistilledStudent(teacher, **{"width": 2, "device": "cpu", **changes}).fit(features)
    with pytest.raises(ValueError, match="eval_tokens would not be used"):
        distill_widths(teacher, features, [2], eval_tokens=np.zeros((2, 2), int), device="cpu")


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t + 1, "token id 64, outside the teacher's vocabulary of 0 to 63"),
        (lambda t: t - 1, "token id -1, outside"),
        (lambda t: t[:, :1], "sequences of 1 token"),
        (lambda t: t[:0], "empty"),
        (lambda t: t[0], "shape .12,.; token ids are integers of shape"),
        (lambda t: t.astype(float), "dtype float64; token ids are integers"),
        (lambda t: [[1, 2, 3], [1, 2]], "different lengths"),
        (lambda t: t[:1], "leaves none to train on"),
        (lambda t: np.tile(t, 3), "36 tokens, and the teacher has 32 positions"),
    ],
)
def test_bad_tokens_are_refused_before_training(teacher, tokens, change, message, monkeypatch):
    monkeypatch.delattr(_engine.Distillation, "train")
    with pytest.raises(ValueError, match=message):
        student(teacher).fit(change(tokens))


def test_padding_before_tokens_is_refused(teacher, tokens):
    tokens[3, 4] = 0
    with pytest.raises(ValueError, match="pad sequences at their end"):
        student(teacher, pad_token_id=0).fit(tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width=0"),
        ({"width": 17}, "width=17 exceeds the teacher's width of 16"),
        ({"width": 8.5}, "width=8.5 must be a whole number"),
        ({"temperature": 0}, "temperature=0 must be a finite number above 0"),
        ({"temperature": np.nan}, "temperature=nan"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"n_steps": 3}, "warmup_steps=3 must be below n_steps=3"),
        ({"learning_rate": np.inf}, "learning_rate=inf"),
        ({"gradient_accumulation": 9}, "gradient_accumulation=9"),
        ({"precision": "fp16"}, "precision='fp16'"),
        ({"optimizer": "sgd"}, "optimizer='sgd'"),
        ({"n_steps": "all"}, "n_steps='all' must be a whole number"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": "auto", "gradient_accumulation": 0}, "gradient_accumulation=0"),
        ({"layer": 2}, "layer=2 is not there"),
        ({"layer": "last"}, "layer='last' must be a whole number"),
        ({"pooling": "max"}, "pooling='max' is unknown"),
        ({"pad_token_id": "x"}, "pad_token_id='x' must be a whole number"),
        ({"random_state": "x"}, "'x' cannot be used to seed"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"validation_fraction": 1.5}, "validation_fraction=1.5"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"teacher_kwargs": {"dtype": "float32"}}, "model_kwargs"),
        ({"teacher": torch.nn.Linear(2, 2)}, "can't take token ids"),
    ],
)
def test_bad_parameters_are_refused_before_training(teacher, tokens, changes, message, monkeypatch):
    monkeypatch.delattr(_engine.Distillation, "train_step")
    with pytest.raises(ValueError, match=message):
        student(teacher).set_params(**changes).fit(tokens)


def test_a_teacher_of_the_wrong_kind_is_named(tokens):
    with pytest.raises(TypeError, match="teacher=3 is a int; give a transformers model"):
        student(3).fit(tokens)


@pytest.mark.parametrize("where", ["gpt_neox.layers.1.mlp.dense_4h_to_h.bias", "lm_head.weight"])
def test_a_teacher_that_is_not_finite_is_named(tokens, where, monkeypatch):
    teacher = new_teacher()
    teacher.get_parameter(where).data[0] = np.nan
    monkeypatch.delattr(_engine.Distillation, "train_step")
    with pytest.raises(ValueError, match="teacher's .* not finite"):
        student(teacher).fit(tokens)


def test_a_loss_that_is_not_finite_is_never_checkpointed(teacher, tokens, tmp_path):
    path = tmp_path / "checkpoint"
    diverging = student(teacher, learning_rate=1e30, checkpoint_path=path, checkpoint_every=2)
    with pytest.raises(ValueError, match="width 8 became nan .*lower learning_rate=1e.30"):
        diverging.fit(tokens)
    assert not path.exists()


# scikit-learn's contract


@pytest.mark.parametrize(
    "check",
    [
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_estimator_sparse_tag,
        checks.check_estimator_tags_renamed,
        checks.check_estimators_unfitted,
        checks.check_get_params_invariance,
        checks.check_mixin_order,
        checks.check_no_attributes_set_in_init,
        checks.check_parameters_default_constructible,
        checks.check_set_params,
        checks.check_valid_tag_types,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learn_checks(teacher_path, check):
    """Those that hold of any estimator; the rest fit random real numbers, which are no token ids."""
    check("DistilledStudent", student(str(teacher_path)))


def test_fitting_twice_gives_the_same_and_no_parameter_is_changed(teacher, tokens):
    fitted = student(teacher).fit(tokens)
    before = fitted.get_params()
    assert_same(clone(fitted).fit(tokens), fitted)
    assert fitted.get_params() == before
    assert json.dumps(fitted.history_)


# Tokens on disk


@pytest.fixture
def on_disk(tokens, tmp_path):
    """The tokens as a memory map that token_blocks made, and as a dataset."""
    vocabulary = {"<end>": 0, **{str(i): i for i in range(1, N_VOCABULARY)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    np.maximum(tokens, 1, out=tokens)[:, -1] = 0  # each row is a document
    texts = [" ".join(map(str, row[:-1])) for row in tokens]
    mapped = token_blocks(texts, tokenizer, length=tokens.shape[1], path=tmp_path / "tokens.npy")
    np.testing.assert_array_equal(mapped, tokens)
    return mapped, datasets.Dataset.from_dict({"text": texts, "input_ids": list(tokens.astype(np.uint16))})


def test_tokens_on_disk_are_trained_on_as_arrays_are(teacher, tokens, on_disk, monkeypatch):
    mapped, dataset = on_disk
    monkeypatch.setattr(_token_rows, "_SCAN_ROWS", 7)
    sizes = []
    read = _token_rows._DatasetTokens.__getitem__
    monkeypatch.setattr(
        _token_rows._DatasetTokens, "__getitem__", lambda self, rows: sizes.append(len(rows)) or read(self, rows)
    )
    fitted = student(teacher).fit(tokens)
    assert_same(student(teacher).fit(mapped), fitted)
    on_dataset = student(teacher).fit(dataset.with_format("torch"))
    assert_same(on_dataset, fitted)
    assert len(sizes) > 20
    assert max(sizes) <= 8
    assert_same(
        distill_widths(teacher, dataset, [8], eval_tokens=mapped, **SETTINGS)[0],
        student(teacher).fit(tokens, eval_tokens=tokens),
    )
    for method in ("predict", "transform", "score"):
        np.testing.assert_array_equal(getattr(fitted, method)(dataset), getattr(fitted, method)(tokens))


def test_a_stopped_fit_goes_on_at_the_exact_rows_of_tokens_on_disk(teacher, tokens, on_disk, tmp_path, monkeypatch):
    never_stopped = student(teacher).fit(tokens)
    steps = []

    def rows_of(n_rows, batch_size, step, seed):
        steps.append(step)
        if len(steps) == 10:
            raise StoppedError
        return epoch_rows(n_rows, batch_size, step, seed)

    monkeypatch.setattr(_engine, "epoch_rows", rows_of)
    for data in on_disk:
        steps.clear()
        stopped = student(teacher, checkpoint_path=tmp_path / type(data).__name__, checkpoint_every=4)
        with pytest.raises(StoppedError):
            clone(stopped).fit(data)
        assert_same(clone(stopped).fit(data), never_stopped)
        assert steps == [*range(10), *range(8, 20)]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (datasets.Dataset.from_dict({"text": ["a"]}), r"columns \['text'\], and no 'input_ids'.*token_blocks"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2], [1, 2, 3]]}), "tokens has sequences of different lengths"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2], [1, None]]}), "missing token ids"),
        (datasets.Dataset.from_dict({"input_ids": [[1.0, 2.0]]}), "dtype float32; token ids are integers"),
        (datasets.Dataset.from_dict({"input_ids": [1, 2]}), "shape .2,.; token ids are integers of shape"),
        (datasets.Dataset.from_dict({"input_ids": []}), "tokens is empty"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 64]]}), "token id 64, outside"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2]]}).to_iterable_dataset(), "IterableDataset.*token_blocks"),
        ((ids for ids in [[1, 2]]), "tokens is a generator.*token_blocks"),
        (datasets.DatasetDict(), r"tokens is a DatasetDict; choose .* tokens\['train'\]"),
    ],
)
def test_datasets_that_give_no_rows_of_tokens_are_refused(teacher, tokens, message, monkeypatch):
    monkeypatch.delattr(_engine.Distillation, "train")
    with pytest.raises(ValueError, match=message):
        student(teacher).fit(tokens)


def test_sequences_of_another_length_are_refused_where_they_are_read(teacher, tokens, monkeypatch):
    monkeypatch.setattr(_token_rows, "_SCAN_ROWS", 7)
    rows = [row[:6] if i < 56 else row for i, row in enumerate(tokens)]
    with pytest.raises(ValueError, match="tokens has sequences of different lengths"):
        student(teacher).fit(datasets.Dataset.from_dict({"input_ids": rows}))
