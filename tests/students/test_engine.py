import numpy as np
import pytest
import torch
from small_students import N_VOCABULARY, Padded, assert_same, new_teacher, plain_kl, student, weights
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from geofloor import DistilledStudent
from geofloor._training.muon import Muon
from geofloor._training.sampling import epoch_rows
from geofloor._training.schedules import warmup_cosine
from geofloor._training.seeds import OwnDraws, draw_seed, torch_generator
from geofloor.language_models import distillation_kl
from geofloor.students import _engine, make_student, student_config

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


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
        value = distillation_kl(student=student.model_(ids).logits, teacher=student.teacher(ids), temperature=2.0)
    assert student.score(tokens) == pytest.approx(-float(value), rel=1e-5)


def plain_loop(teacher, tokens, *, mask=lambda ids: None, cross_entropy=0.0, hidden=0.0, optimizer="adamw"):
    """Train for eight steps by the textbook: full logits, F.kl_div, and AdamW or Muon."""
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
    """Compare logits. Weights without effect on them, such as key biases, drift by rounding."""
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
