import copy
import errno
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_processes import call_apart
from small_students import N_VOCABULARY, SETTINGS, StoppedError, assert_same, new_teacher, student

from geofloor import DistilledStudent
from geofloor._training.checkpoints import write_tensors
from geofloor._training.sampling import epoch_rows
from geofloor.students import _checkpoints, _engine, distill_widths

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


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
    settings = {**SETTINGS, "checkpoint_every": 3, "checkpoint_dir": tmp_path / "runs"}
    write = _checkpoints.write_tensors
    written = []

    def full_disk(path, *arguments, **options):
        written.append(path.name)
        if len(written) == 4:  # step 6, the second student
            raise OSError(28, "No space left on device")
        write(path, *arguments, **options)

    monkeypatch.setattr(_checkpoints, "write_tensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        distill_widths(teacher, tokens, [8, 16], **settings)
    monkeypatch.undo()
    assert written == 2 * ["width-8-seed-0.safetensors", "width-16-seed-0.safetensors"]
    for a, b in zip(distill_widths(teacher, tokens, [8, 16], **settings), never_stopped, strict=True):
        assert_same(a, b)


APART_TOKENS = np.random.default_rng(0).integers(64, size=(60, 12))
APART = {
    "n_steps": 60,
    "warmup_steps": 3,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "eval_every": 2,
    "device": "cpu",
}


def distill_apart(report, teacher, folder):
    torch.set_num_threads(1)
    evaluate = _engine.Distillation.evaluate

    def announced(self, runs):
        evaluate(self, runs)
        report(runs[0].step)

    _engine.Distillation.evaluate = announced
    students = distill_widths(teacher, APART_TOKENS, [8, 16], checkpoint_every=3, checkpoint_dir=folder, **APART)
    for each in students:
        each.save(folder / f"{each.width}.safetensors")


@pytest.mark.slow
def test_sigkill_loses_nothing(server, teacher_path, tmp_path):
    folder = tmp_path / "killed"
    for last in (8, 44):
        call_apart(server, distill_apart, teacher_path, folder, kill_at=last.__eq__)
    steps = call_apart(server, distill_apart, teacher_path, folder)
    assert steps[0] >= 42  # it went on, and did not start anew
    for never_stopped in distill_widths(teacher_path, APART_TOKENS, [8, 16], **APART):
        path = folder / f"{never_stopped.width}.safetensors"
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


def test_the_history_of_a_resumed_fit_has_its_names_in_the_same_order(teacher, tokens, tmp_path):
    fitted = student(teacher, checkpoint_path=tmp_path / "checkpoint").fit(tokens)
    resumed = student(teacher, checkpoint_path=tmp_path / "checkpoint").fit(tokens)
    assert [list(row) for row in resumed.history_] == [list(row) for row in fitted.history_]


def test_unwritable_parameters_and_paths_are_refused_before_the_first_step(teacher, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(_engine.Distillation, "train", None)
    (tmp_path / "file").touch()
    for wrong, message in [
        ({"tol": Decimal("0.01")}, "tol="),
        ({"temperature": Fraction(2)}, "temperature="),
        ({"pooling": object()}, "pooling="),
        ({"checkpoint_path": tmp_path}, "checkpoint_path=.* is a folder"),
        ({"checkpoint_path": tmp_path / "file" / "x"}, "checkpoint_path=.* can't be written"),
    ]:
        with pytest.raises(ValueError, match=message):
            student(teacher, **wrong).fit(tokens)
    with pytest.raises(ValueError, match="checkpoint_path=.*file/width-8-seed-0.safetensors' can't be written"):
        distill_widths(teacher, tokens, [8], checkpoint_dir=tmp_path / "file", **SETTINGS)


def test_a_disk_that_is_full_at_the_end_leaves_the_student(teacher, tokens, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = student(teacher).fit(tokens)
    monkeypatch.setattr(_checkpoints, "write_tensors", full)
    fitted = student(teacher, checkpoint_path=tmp_path / "checkpoint")
    with pytest.raises(OSError, match="No space left"):
        fitted.fit(tokens)
    assert_same(fitted, expected)


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
