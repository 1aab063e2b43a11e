"""Test that two processes learn what one learns. This file is also the script that both of them run."""

import atexit
import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from small_processes import describe_failure, launch, read_results, write_result
from transformers import ByT5Tokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from geofloor import DistilledStudent
from geofloor._training import processes
from geofloor.language_models import token_blocks
from geofloor.students import _checkpoints, _engine, distill_widths, make_student

PAD = 31
TEXTS = [f"Text number {i}." for i in range(500)]
# A few steps are enough to test that processes agree.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")
SETTINGS = {"n_steps": 12, "warmup_steps": 2, "learning_rate": 1e-2, "eval_every": 4, "device": "cpu"}
SWEEP = {**SETTINGS, "batch_size": 7, "checkpoint_every": 3}


class StoppedError(Exception):
    pass


def new_teacher(**changes):
    config = GPTNeoXConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.3,
        attention_bias=changes.get("attention_bias", False),  # key biases have no effect and drift by rounding
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval()


def new_tokens(padded=False):
    rng = np.random.default_rng(0)
    tokens = rng.integers(PAD, size=(45, 10))
    lengths = rng.integers(2, 11, size=45)
    return np.where(np.arange(10) < lengths[:, None], tokens, PAD) if padded else tokens


class Rare(torch.nn.Module):
    """Language model of single tokens, with a parameter that only sequences starting with token 0 use."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(32, 32, generator=generator))
        self.of_first = torch.nn.Parameter(torch.ones(32))
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, ids):
        logits = self.table[ids]
        first = ids == 0
        return logits + first[..., None] * self.of_first if first[:, 0].any() else logits


@make_student.register
def _(teacher: Rare, width, *, init="random", random_state=None, tokens=None):
    module = Rare()
    module.table.data *= 0.1
    return module


def rare_tokens():
    tokens = new_tokens()
    tokens[tokens == 0] = 1
    tokens[[3, 17], 0] = 0
    return tokens


# Name and students to train. Each fit covers something that dividing the work could get wrong.
FITS = {
    "everything": lambda _: [
        DistilledStudent(
            new_teacher(),
            8,
            random_state=0,
            batch_size=7,
            gradient_accumulation=3,
            pad_token_id=PAD,
            cross_entropy_weight=0.5,
            hidden_weight=0.3,
            clip_norm=0.5,
            **SETTINGS,
        ).fit(new_tokens(padded=True))
    ],
    "one row": lambda _: [
        DistilledStudent(new_teacher(), 8, random_state=0, batch_size=1, eval_sequences=1, **SETTINGS).fit(new_tokens())
    ],
    "principal": lambda _: [
        DistilledStudent(
            new_teacher(attention_bias=True), 8, batch_size=7, init="principal", **{**SETTINGS, "learning_rate": 1e-7}
        ).fit(new_tokens())
    ],
    "rare": lambda _: [
        DistilledStudent(Rare(), 8, random_state=0, batch_size=5, weight_decay=0.5, **SETTINGS).fit(rare_tokens())
    ],
    "sweep": lambda _: distill_widths(new_teacher(), new_tokens(), [8, (16, 1)], **SWEEP),
    "stopped sweep": lambda folder: stopped_and_resumed(folder / "sweep"),
    "no seed": lambda _: [DistilledStudent(new_teacher(), 8, batch_size=7, **SETTINGS).fit(new_tokens())],
}


def stopped_and_resumed(folder):
    train_step = _engine.Distillation.train_step

    def stop(self, runs, step):
        if step == 7:
            raise StoppedError
        train_step(self, runs, step)

    _engine.Distillation.train_step = stop
    with contextlib.suppress(StoppedError):
        distill_widths(new_teacher(), new_tokens(), [8, (16, 1)], checkpoint_dir=folder, **SWEEP)
    _engine.Distillation.train_step = train_step
    assert sorted(path.name for path in folder.iterdir()) == [
        "width-16-seed-1.safetensors",
        "width-8-seed-0.safetensors",
    ]
    return distill_widths(new_teacher(), new_tokens(), [8, (16, 1)], checkpoint_dir=folder, **SWEEP)


def learnt(students):
    return [
        {
            "weights": {name: value.numpy() for name, value in student.model_.state_dict().items()},
            "floor": (student.floor_, student.floor_error_),
            "history": student.history_,
        }
        for student in students
    ]


# Failures, which every process must report


def fit_a_teacher_that_is_not_finite(rank, folder):
    teacher = new_teacher()
    teacher.gpt_neox.layers[1].mlp.dense_4h_to_h.bias.data[0] = np.nan
    DistilledStudent(teacher, 8, batch_size=7, **SETTINGS).fit(new_tokens())


def fit_one_row_that_is_not_finite(rank, folder):
    tokens = np.tile(new_tokens()[:4], (2, 1))
    tokens[3, 5] = PAD  # in the second half of the only batch there is
    teacher = new_teacher()
    teacher.gpt_neox.embed_in.weight.data[PAD] = np.nan
    DistilledStudent(teacher, 8, batch_size=4, validation_fraction=0.5, **SETTINGS).fit(tokens)


def fit_with_a_high_learning_rate(rank, folder):
    DistilledStudent(new_teacher(), 8, batch_size=7, **{**SETTINGS, "learning_rate": 1e30}).fit(new_tokens())


def fit_different_tokens(rank, folder):
    DistilledStudent(new_teacher(), 8, batch_size=7, **SETTINGS).fit(new_tokens() if rank else new_tokens()[::-1])


def fit_from_one_checkpoint(rank, folder):
    path = folder / f"of-{rank}"
    student = DistilledStudent(new_teacher(), 8, batch_size=7, random_state=0, checkpoint_path=path, **SETTINGS)
    student.fit(new_tokens())
    student.fit(new_tokens())


def fit_with_a_full_disk(rank, folder):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    write, _checkpoints.write_tensors = _checkpoints.write_tensors, full
    try:
        DistilledStudent(new_teacher(), 8, batch_size=7, checkpoint_path=folder / "full", **SETTINGS).fit(new_tokens())
    finally:
        _checkpoints.write_tensors = write


_TEACHER = "ValueError: The teacher's logits are not finite, by step "
# Function and the start of its error in the main process, then in the other one if that differs.
FAILURES = {
    fit_a_teacher_that_is_not_finite: [_TEACHER + "0"],
    fit_one_row_that_is_not_finite: [_TEACHER + "4"],
    fit_with_a_high_learning_rate: ["ValueError: The KL of the student of width 8 became nan"],
    fit_different_tokens: ["ValueError: The 2 processes have different tokens"],
    fit_from_one_checkpoint: ["ValueError: The 2 processes have different checkpoints"],
    fit_with_a_full_disk: ["OSError: [Errno 28] No space", "RuntimeError: The main process failed: OSError"],
}


def run_all(folder):
    """Run all fits and failures in one of several processes."""
    rank = int(os.environ["RANK"])
    # Functions registered first are called last.
    atexit.register(lambda: (folder / f"{rank}.joined").write_text(str(torch.distributed.is_initialized())))
    blocks = token_blocks(TEXTS, ByT5Tokenizer(), length=8, path=folder / "tokens.npy")  # all of them write it
    results = {"tokens": np.array(blocks)} | {name: learnt(fit(folder)) for name, fit in FITS.items()}
    for fail in FAILURES:
        results[fail.__name__] = describe_failure(fail, rank, folder)
    write_result(folder, results)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Launch two processes and return the results of each."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("processes")
    assert launch(__file__, folder) == 0
    results = read_results(folder)
    return [result | {"joined": (folder / f"{rank}.joined").read_text()} for rank, result in enumerate(results)]


@pytest.mark.parametrize("name", ["everything", "one row", "principal", "rare", "sweep"])
def test_two_processes_learn_what_one_does(both, name, tmp_path):
    for found, expected in zip(both[0][name], learnt(FITS[name](tmp_path)), strict=True):
        for key, value in expected["weights"].items():
            np.testing.assert_allclose(found["weights"][key], value, rtol=0, atol=1e-5, err_msg=key)
        assert found["floor"] == pytest.approx(expected["floor"], rel=1e-5, nan_ok=True)
        curves = [[list(row.values()) for row in run["history"]] for run in (found, expected)]
        np.testing.assert_allclose(*(np.array(curve, dtype=float) for curve in curves), rtol=1e-5)


def test_all_processes_get_the_tokens_that_one_of_them_writes(both):
    expected = token_blocks(TEXTS, ByT5Tokenizer(), length=8)
    for result in both:
        np.testing.assert_array_equal(result["tokens"], expected)


@pytest.mark.parametrize("name", FITS)
def test_all_processes_end_with_the_same_bits(both, name):
    np.testing.assert_equal(both[0][name], both[1][name])


def test_a_stopped_fit_of_two_goes_on_to_the_same_bits(both):
    np.testing.assert_equal(both[0]["stopped sweep"], both[0]["sweep"])


@pytest.mark.parametrize(("fail", "messages"), FAILURES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_failure_in_one_process_raises_in_all(both, fail, messages):
    assert both[0][fail.__name__].startswith(messages[0])
    assert both[1][fail.__name__].startswith(messages[-1])


def test_processes_part_before_they_end(both):
    assert [result["joined"] for result in both] == ["False", "False"]


def test_shares_are_all_rows_in_order():
    for n in (1, 2, 3, 7):
        for n_rows in (0, 1, 2, 5, 7, 100):
            shares = []
            for rank in range(n):
                one = processes.Processes()
                one.rank, one.n = rank, n
                shares.append(np.arange(n_rows)[one.share(n_rows)])
            np.testing.assert_array_equal(np.concatenate(shares), np.arange(n_rows))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_buffers_hold_every_tensor_once_and_little_at_a_time(monkeypatch):
    monkeypatch.setattr(processes, "_BUFFER_NUMBERS", 10)
    tensors = [torch.zeros(n, dtype=d) for n, d in [(4, torch.float32), (3, torch.float64), (6, torch.float32)]]
    tensors += [torch.zeros(1), torch.zeros(25), torch.zeros(2)]
    sizes = [[len(tensor) for tensor in buffer] for buffer in processes._buffers(tensors)]
    assert sizes == [[4, 6], [1], [25], [2], [3]]


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"WORLD_SIZE=2 .* install geofloor\[accelerate\]"):
        DistilledStudent(new_teacher(), 8, **SETTINGS).fit(new_tokens())


def join_in_a_worker():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setitem(sys.modules, "accelerate", None)
        try:
            processes.join_processes("cpu")
        except ValueError as error:
            return str(error)


def test_workers_of_a_search_do_not_wait_for_other_processes():
    messages = Parallel(n_jobs=2, backend="loky")(delayed(join_in_a_worker)() for _ in range(2))
    assert all("WORLD_SIZE=2" in message and "n_jobs=None" in message for message in messages)


def test_one_process_does_not_import_accelerate(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert processes.join_processes("auto") is processes.ALONE


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]))
