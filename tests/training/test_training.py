import copy
import ctypes
import errno
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from sklearn.base import BaseEstimator
from transformers import LlamaConfig, LlamaModel

from geofloor import AblationPredictor, ActivationExtractor, BottleneckPredictor, DistilledStudent
from geofloor._files import atomic
from geofloor._files.atomic import atomic_path, check_writable, write_json
from geofloor._training import checkpoints, rows
from geofloor._training.checkpoints import load_optimizer_tensors, optimizer_tensors, read_tensors, write_tensors
from geofloor._training.devices import memory_advice, resolve_device
from geofloor._training.muon import Muon, orthogonal
from geofloor._training.rows import ArrayRows, StreamRows
from geofloor._training.sampling import epoch_rows, steps_per_epoch
from geofloor._training.schedules import warmup_cosine
from geofloor._training.seeds import OwnDraws, draw_seed, step_generator
from geofloor._training.settings import check_betas, plain_parameters
from geofloor._training.weights import model_sha256
from geofloor.datasets import load_teacher
from geofloor.language_models import zero_width_kl
from geofloor.students import make_student

MAPPED = """
import ctypes
import torch
from geofloor._training.devices import keep_freed_memory

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
MallocInformation = type("MallocInformation", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in names]})
information = ctypes.CDLL(None).mallinfo2
information.restype = MallocInformation
keep_freed_memory(torch.device("cpu"))
before = information().hblkhd  # bytes in blocks that go back to the system as soon as they are freed
tensor = torch.ones(5 * 2**20)  # 20 MiB
print(information().hblkhd - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="it is glibc that gives freed memory back so soon, and mallinfo2 that tells",
)
def test_freed_memory_stays_with_the_process():
    # A threshold that is set by the environment, as Dask's workers have it, stays as it is.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run([sys.executable, "-c", MAPPED], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) <= 0


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3)}
    tensors["counts"] = torch.arange(5)
    write_tensors(tmp_path / "x", tensors, kind="test", metadata={"step": 3, "name": "é"})
    read, metadata = read_tensors(tmp_path / "x", kind="test")
    assert metadata == {"step": 3, "name": "é"}
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_a_failed_write_keeps_the_earlier_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"step": 1})

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half a file")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_half()
    assert path.read_text() == '{\n  "step": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_the_same_content_gives_the_same_bytes(tmp_path):
    def content():
        write_tensors(tmp_path / "x", {"b": torch.ones(2), "a": torch.zeros(3)}, kind="test", metadata={"z": 1, "a": 2})
        return (tmp_path / "x").read_bytes()

    assert len({content() for _ in range(20)}) == 1


KILLED = """
import os, signal, sys
from geofloor._files.atomic import atomic_path

with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(bytes(1000))
    temporary.with_name(".tmpabcdef").touch()  # as safetensors writes
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
@pytest.mark.parametrize("remove", [lambda path: write_json(path, 1), lambda path: check_writable("path", path)])
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, remove):
    path = tmp_path / "x"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    others = [tmp_path / name for name in (".y.abcdefgh.part", ".x.json", ".x.abc.part")]
    for other in others:
        other.mkdir()
    with atomic_path(path) as living:
        living.write_text("2")
        remove(path)
        assert living.exists()
        assert not left.exists()
    assert path.read_text() == "2"
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_a_full_disk_is_an_os_error_with_its_number_and_the_path(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(2)}, kind="test", metadata={})
    before = path.read_bytes()

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_tensors(path, {"a": torch.zeros(2)}, kind="test", metadata={})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))

    def full_too(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_too)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_json(path, 1)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), atomic_path(tmp_path / "x"):
        (tmp_path / "other").read_bytes()


def test_a_path_that_can_not_be_written_is_refused_by_the_arguments_name(tmp_path):
    check_writable("file", None)
    check_writable("file", tmp_path / "new" / "x")
    assert not any((tmp_path / "new").iterdir())
    (tmp_path / "x").write_text("kept")
    check_writable("file", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "kept"
    for path, message in [
        (tmp_path, "is a folder"),
        ("", "is a folder"),
        (tmp_path / "x" / "y", "can't be written"),
        (tmp_path / "x" / "y" / "z", "can't be written"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("a\0b", "can't be written"),
        ("/dev/null", "a device"),
        (3, "must be a path"),
    ]:
        with pytest.raises(ValueError, match=f"file=.*{message}"):
            check_writable("file", path)


@pytest.mark.parametrize("function", ["mkdir", "mkdtemp"])
def test_a_read_only_folder_is_refused_by_the_arguments_name(tmp_path, monkeypatch, function):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "there")

    monkeypatch.setattr(*((atomic.Path, "mkdir") if function == "mkdir" else (tempfile, "mkdtemp")), refuse)
    with pytest.raises(ValueError, match="file=.*Read-only file system.*give another path"):
        check_writable("file", tmp_path / "new" / "x")


# Parameters


def test_parameters_become_plain_or_are_refused_by_name():
    class Estimator(BaseEstimator):
        def __init__(self, a=None, random_state=None):
            self.a, self.random_state = a, random_state

    for value, plain in [
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.array([0.5, 0.25]), [0.5, 0.25]),
        (np.array(2), 2),
        (torch.tensor([1, 2]), [1, 2]),
        ((0.5, np.float64(0.25)), [0.5, 0.25]),
        ("x", "x"),
    ]:
        found = plain_parameters(Estimator(value, np.int64(3)))
        assert found == {"a": plain, "random_state": 3}
        assert json.loads(json.dumps(found)) == found
    for value in (object(), {"a": 1}, np.inf, [[1]], torch.device("cpu"), Decimal(1), Fraction(1, 4), lambda: 0):
        with pytest.raises(ValueError, match="a="):
            plain_parameters(Estimator(value))


def test_betas_are_two_numbers_below_one():
    for betas in ((0.9, 0.99), [0.9, 0.99], np.array([0.9, 0.99]), torch.tensor([0.9, 0.99], dtype=torch.float64)):
        assert check_betas("betas", betas) == (0.9, 0.99)
    for betas in (0.9, (0.9,), (0.9, 1.0), (-0.1, 0.5), (0.9, np.nan), "ab", None, (0.9, 0.9, 0.9)):
        with pytest.raises(ValueError, match="betas"):
            check_betas("betas", betas)


def test_an_optimizer_goes_on_as_if_never_stored():
    def run(interrupted):
        parameter = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        for step in range(6):
            if interrupted and step == 3:
                stored = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
                optimizer = torch.optim.AdamW([parameter], lr=0.1)
                load_optimizer_tensors(optimizer, stored)
            optimizer.zero_grad()
            (parameter - torch.arange(3)).square().sum().backward()
            optimizer.step()
        return parameter.detach()

    assert torch.equal(run(True), run(False))


def test_each_epoch_is_a_new_permutation_in_whole_batches():
    steps = steps_per_epoch(23, 5)
    assert steps == 4
    epochs = [[epoch_rows(23, 5, epoch * steps + i, seed=1) for i in range(steps)] for epoch in range(2)]
    for epoch in epochs:
        rows = np.concatenate(epoch)
        assert len(set(rows)) == 20
        assert set(rows) <= set(range(23))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(epoch_rows(23, 5, 6, seed=1), epochs[1][2])  # from the step alone
    assert epoch_rows(3, 5, 0, seed=1).tolist() == [0, 1, 2]


def test_streams_lose_and_repeat_nothing_but_the_rest(monkeypatch):
    monkeypatch.setattr(rows, "_SAMPLE_ROWS", 5)
    pieces = [np.arange(n * 2, dtype=np.float32).reshape(n, 2) + 100 * i for i, n in enumerate([3, 1, 8, 2])]
    joined = np.concatenate(pieces)
    stream = StreamRows(pieces)
    batches = list(stream.batches(5, n_epochs=2, first_step=0, seed=0))
    assert 2 * stream.steps_per_epoch(5) == len(batches) == 4
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate([joined[:10]] * 2))
    later = list(StreamRows(iter(pieces)).batches(5, n_epochs=1, first_step=1, seed=0))
    np.testing.assert_array_equal(np.concatenate(later), joined[5:10])
    assert len(next(StreamRows(pieces).batches(50, n_epochs=1, first_step=0, seed=0))) == 14
    np.testing.assert_array_equal(stream.hold_out(4), joined[:4])
    np.testing.assert_array_equal(next(stream.batches(5, n_epochs=1, first_step=0, seed=0)), joined[4:9])


@given(cuts=st.lists(st.integers(0, 40), max_size=6), held_out=st.integers(0, 5), batch_size=st.integers(1, 50))
def test_batches_of_a_stream_do_not_depend_on_its_cuts(cuts, held_out, batch_size):
    data = np.arange(80, dtype=np.float32).reshape(40, 2)
    stream = StreamRows(piece for piece in np.split(data, sorted(cuts)) if len(piece))
    np.testing.assert_array_equal(stream.hold_out(held_out), data[:held_out])
    found = np.concatenate(list(stream.batches(batch_size, n_epochs=1, first_step=0, seed=0)))
    n_kept = max((40 - held_out) // batch_size, 1) * batch_size
    np.testing.assert_array_equal(found, data[held_out:][:n_kept])


def test_a_fingerprint_is_of_every_row():
    data = np.arange(80, dtype=np.float32).reshape(40, 2)
    changed = data.copy()
    changed[17, 1] += 1e-3
    assert ArrayRows(data).fingerprint == ArrayRows(data.astype(np.float64)).fingerprint
    assert ArrayRows(data).fingerprint != ArrayRows(changed).fingerprint


def test_warmup_then_cosine():
    factors = [warmup_cosine(step, n_steps=110, warmup_steps=10, final=0.1) for step in range(111)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(factors[10:], 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(101) / 100)))


def test_seeds():
    assert draw_seed(3) == draw_seed(3) != draw_seed(4)
    assert step_generator(0, 1).integers(1000) == step_generator(0, 1).integers(1000)
    assert step_generator(0, 1).integers(10**9) != step_generator(0, 2).integers(10**9)


def test_devices_that_are_not_there_are_named():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device='gpu' is not a device"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="device='cuda:99' is not on this machine"):
        resolve_device("cuda:99")


# Muon


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4)])
def test_steps_are_made_orthogonal(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    turned = U.mT @ orthogonal(matrices) @ Vh.mT  # diagonal where the singular vectors are kept
    values = turned.diagonal(dim1=1, dim2=2)
    assert float((turned - torch.diag_embed(values)).abs().max()) < 1e-4
    assert 0.5 < float(values.min()) < float(values.max()) < 1.3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_steps_are_torchs_but_for_its_bfloat16():
    def run(make):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.randn(shape, generator=generator) for shape in ((6, 6), (4, 12), (12, 4), (6, 6))]
        optimizer = make(parameters)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return parameters

    settings = {"lr": 0.1, "weight_decay": 0.3}
    theirs = run(lambda each: torch.optim.Muon(each, **settings, adjust_lr_fn="match_rms_adamw"))
    ours = run(lambda each: Muon(each, **settings))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.01)
    stays = run(lambda each: Muon(each, lr=0.1, weight_decay=0.0))
    assert all(float((a - b).abs().max()) > 0.05 for a, b in zip(ours, stays, strict=True))  # decay shows


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.nn.Linear(7, 5).weight,
        lambda: torch.nn.init.trunc_normal_(torch.empty(30)),
        lambda: torch.rand(40),
        lambda: torch.randint(9, (40,)),
        lambda: torch.randint(2, 9, (40,)),
        lambda: torch.randperm(40),
        lambda: torch.empty(40).bernoulli_(0.3),
    ],
)
def test_own_draws_are_those_of_the_global_seed_which_they_leave_alone(draw):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = draw()
        torch.manual_seed(4)
        state = torch.get_rng_state()
        with OwnDraws(3):
            found = draw()
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, expected)


def test_own_draws_leave_a_generator_that_was_given_and_meta_tensors():
    with OwnDraws(3):
        found = torch.rand(5, generator=torch.Generator().manual_seed(0))
        assert torch.empty(3, device="meta").normal_().device.type == "meta"
    assert torch.equal(found, torch.rand(5, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda: torch.empty(2**58, dtype=torch.uint8), "Out of memory .*you tried to allocate.*; lower n=3"),
        (lambda: np.empty(2**58, dtype=np.uint8), "Out of memory .Unable to allocate .*; lower n=3"),
    ],
)
def test_memory_that_is_not_there_comes_with_what_to_lower(take, message):
    with pytest.raises(MemoryError, match=message), memory_advice("lower n=2"), memory_advice("lower n=3"):
        take()


def test_advice_leaves_other_errors_alone():
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), memory_advice("lower n=2"):
        torch.zeros(2) @ torch.zeros(3)


@pytest.mark.parametrize("device", [10**40, np.array([1, 2]), None, 0, [], 1j])
def test_a_device_of_another_kind_is_named(device):
    with pytest.raises(ValueError, match="device=.* must be 'auto', 'cpu'"):
        resolve_device(device)


@pytest.mark.parametrize("seed", [-1, 2**40, 3.5, "x", [1], np.array(3), torch.tensor(2), 1j])
def test_a_seed_that_is_none_is_named(seed):
    with pytest.raises(ValueError, match="random_state=.* must be an integer from 0 to 4294967295"):
        draw_seed(seed)


class Hungry(torch.nn.Module):
    """Logits, and on text no memory left."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8))

    def forward(self, ids):
        if ids.shape[1] > 2:  # by which it is tried out
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return self.weight.expand(*ids.shape, 8)


def test_estimators_without_memory_say_which_parameters_to_lower():
    tokens, model = np.arange(40).reshape(8, 5) % 8, load_teacher().model
    model.gpt_neox.layers[0].register_forward_hook(lambda *_: Hungry()(torch.zeros(1, 3)))
    with pytest.raises(MemoryError, match="CUDA out of memory.*lower batch_size=8 or max_length=512"):
        ActivationExtractor(model, 1).fit()
    with pytest.raises(MemoryError, match="lower batch_size=4"):
        zero_width_kl(Hungry(), tokens, batch_size=4)
    with pytest.raises(MemoryError, match="lower batch_size=8 or n_positions=99"):
        BottleneckPredictor(Hungry(), n_positions=99).fit(tokens)
    teacher = load_teacher().model
    teacher.gpt_neox.layers[2].register_forward_hook(
        lambda module, inputs, output: Hungry()(inputs[0][..., 0]) if inputs[0].shape[1] > 2 else None
    )
    with pytest.raises(MemoryError, match="lower batch_size=8"):
        AblationPredictor(teacher, 1, n_points=3).fit(tokens)

    @make_student.register(Hungry)
    def _(teacher, width, *, init="random", random_state=None, tokens=None):
        return torch.nn.Sequential(torch.nn.Embedding(8, width), torch.nn.Linear(width, 8))

    with pytest.raises(MemoryError, match="lower batch_size=2 or raise gradient_accumulation=1"):
        DistilledStudent(Hungry(), 2, batch_size=2, n_steps=4, warmup_steps=1).fit(tokens)
    student = DistilledStudent(Hungry(), 8, batch_size=2)
    student._set_model(Hungry())
    for method in (student.predict, student.predict_log_proba, student.score):
        with pytest.raises(MemoryError, match="lower batch_size=2"):
            method(tokens)


def test_models_are_told_by_every_weight_buffer_and_setting():
    module = torch.nn.Sequential(torch.nn.Linear(3000, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    digests = {model_sha256(module), model_sha256(copy.deepcopy(module))}
    assert len(digests) == 1
    for tensor in (*module.parameters(), module[1].running_mean, module[1].running_var):
        with torch.no_grad():
            tensor.view(-1)[-1] += 1e-3
        digests.add(model_sha256(module))
    assert len(digests) == 9
    digests.add(model_sha256(module.double()))
    assert len(digests) == 10


def test_a_configuration_is_part_of_a_model_and_its_name_and_device_dependent_buffers_are_not():
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, pad_token_id=None
    )
    model = LlamaModel(config)
    digest = model_sha256(model)
    model.config.name_or_path = "elsewhere"
    model.config.use_cache = not model.config.use_cache
    model.rotary_emb.inv_freq += 1e-7
    assert model_sha256(model) == digest
    model.config.rms_norm_eps *= 2
    assert model_sha256(model) != digest
