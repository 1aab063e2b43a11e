import numpy as np
import pytest
from small_students import SETTINGS, StoppedError, assert_same, student

from geofloor import DistilledStudent
from geofloor.language_models import _divergence
from geofloor.students import _engine, distill_widths

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


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
    assert len(calls) == 3 * n_together  # one forward pass of the teacher per batch
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
        ([8, 0], "widths=0 leaves a student no dimensions.*zero_width_kl"),
        ([8, 32], "width=32 exceeds the teacher's width of 16"),
    ],
)
def test_widths_must_be_given_and_differ(teacher, tokens, widths, message, monkeypatch):
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


def test_one_checkpoint_file_for_several_students_is_refused(teacher, tokens, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_path=.* is one file.*give checkpoint_dir, a folder"):
        distill_widths(teacher, tokens, [8, 16], checkpoint_path=tmp_path / "checkpoint", **SETTINGS)


BUDGETS = {name: value for name, value in SETTINGS.items() if name != "n_steps"}


def test_budgets_trained_together_end_where_each_alone_would(teacher, tokens):
    calls = []
    handle = teacher.register_forward_pre_hook(lambda *_: calls.append("whole"))
    base = teacher.base_model.register_forward_pre_hook(lambda *_: calls.append("base"))
    longest = distill_widths(teacher, tokens, [8, 16], n_steps=16, **BUDGETS)
    n_longest = len(calls)
    calls.clear()
    together = distill_widths(teacher, tokens, [8, 16], budgets=(4, 16, 8), **BUDGETS)
    # The longest budget pays for all steps. The others add the evaluations at their ends, in one batch each.
    assert n_longest < len(calls) <= n_longest + 2
    handle.remove()
    base.remove()
    assert [(each.width, each.n_steps_) for each in together] == [(w, n) for w in (8, 16) for n in (4, 16, 8)]
    for each in together:
        alone = student(teacher, each.width, n_steps=each.n_steps_).fit(tokens)
        assert_same(each, alone)
        assert each.get_params() == alone.get_params()
    for a, b in zip(longest, together[1::3], strict=True):
        assert_same(a, b)


def test_budgets_resume_each_from_its_own_checkpoint(teacher, tokens, tmp_path, monkeypatch):
    settings = {**BUDGETS, "checkpoint_every": 8, "budgets": (12, 24)}
    whole = distill_widths(teacher, tokens, [8, 16], **settings)
    train_step = _engine.Distillation.train_step

    def stop_at_18(self, runs, step):
        if step == 18:
            raise StoppedError
        train_step(self, runs, step)

    monkeypatch.setattr(_engine.Distillation, "train_step", stop_at_18)
    with pytest.raises(StoppedError):
        distill_widths(teacher, tokens, [8, 16], checkpoint_dir=tmp_path, **settings)
    steps = {path.name: DistilledStudent.steps_done(path) for path in tmp_path.iterdir()}
    assert steps == {
        f"width-{w}-seed-0-steps-{n}.safetensors": done for w in (8, 16) for n, done in ((12, 12), (24, 16))
    }
    taken = []
    monkeypatch.setattr(
        _engine.Distillation, "train_step", lambda self, runs, step: taken.append(step) or train_step(self, runs, step)
    )
    resumed = distill_widths(teacher, tokens, [8, 16], checkpoint_dir=tmp_path, **settings)
    assert taken == [*range(16, 24)]
    for a, b in zip(whole, resumed, strict=True):
        assert_same(a, b)
    taken.clear()
    for a, b in zip(whole, distill_widths(teacher, tokens, [8, 16], checkpoint_dir=tmp_path, **settings), strict=True):
        assert_same(a, b)
    assert not taken


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": (), **BUDGETS}, r"budgets=\(\) must hold at least one number of steps"),
        ({"budgets": (5, 5), **BUDGETS}, "and none twice"),
        ({"budgets": (5, 7.5), **BUDGETS}, "budgets=7.5 must be a whole number"),
        ({"budgets": (5, 3), **BUDGETS}, "warmup_steps=3 must be below n_steps=3"),
        ({"budgets": (5, 10), **SETTINGS}, r"n_steps=20 and budgets=\(5, 10\) exclude each other"),
    ],
)
def test_budgets_must_be_given_and_differ(teacher, tokens, settings, message, monkeypatch):
    monkeypatch.delattr(_engine.Distillation, "train_step")
    with pytest.raises(ValueError, match=message):
        distill_widths(teacher, tokens, [8], **settings)
