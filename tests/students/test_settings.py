import numpy as np
import pytest
import torch
from small_students import assert_same, student

from geofloor import DistilledStudent
from geofloor.students import _engine
from geofloor.students._settings import DistillationSettings

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


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
    requested = DistillationSettings.from_parameters(DistilledStudent(teacher, 8).get_params())
    settings = requested.resolve(n_sequences=n_sequences, length=length, principal=True)
    assert (settings.batch_size, settings.n_steps) == (batch_size, n_steps)
    assert settings.warmup_steps == n_steps // 10
    assert settings.eval_every == n_steps // 20


@pytest.mark.parametrize(
    ("teacher_width", "chosen", "expected"),
    [(None, "auto", 1e-2), (64, "auto", 1e-2), (128, "auto", 1e-2), (512, "auto", 2.5e-3), (512, 0.1, 0.1)],
)
def test_the_learning_rate_falls_with_the_width_of_wide_teachers(teacher, teacher_width, chosen, expected):
    requested = DistillationSettings.from_parameters(DistilledStudent(teacher, 8, learning_rate=chosen).get_params())
    settings = requested.resolve(n_sequences=100, length=8, principal=True, teacher_width=teacher_width)
    assert settings.learning_rate == expected


def test_the_default_is_what_the_guide_advises(teacher, tokens):
    default = DistilledStudent(teacher, 8, n_steps=40, device="cpu").fit(tokens)
    spelled_out = DistilledStudent(
        teacher, 8, n_steps=40, batch_size=7, learning_rate=1e-2, warmup_steps=4, optimizer="muon", clip_norm=1.0,
        init="principal", eval_every=2, device="cpu",
    ).fit(tokens)  # fmt: skip
    assert_same(default, spelled_out)
    assert (default.init_, default.batch_size_, default.warmup_steps_, default.eval_every_) == ("principal", 7, 4, 2)
    assert default.get_params()["init"] == "auto"


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width=0 leaves a student no dimensions.*zero_width_kl"),
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
        ({"model_kwargs": {"dtype": "float32"}}, "model_kwargs"),
        ({"teacher": torch.nn.Linear(2, 2)}, "can't take token ids"),
    ],
)
def test_bad_parameters_are_refused_before_training(teacher, tokens, changes, message, monkeypatch):
    monkeypatch.delattr(_engine.Distillation, "train_step")
    with pytest.raises(ValueError, match=message):
        student(teacher).set_params(**changes).fit(tokens)
