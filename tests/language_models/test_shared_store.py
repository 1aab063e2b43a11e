"""Test that several processes write the store of one. Threads stand for processes where nothing is killed for real.

This file is also the script that two real processes run.
"""

import os
import pickle
import signal
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import BLOCKS, MODEL, UNEQUAL, gpt_neox, random_sequences
from small_processes import describe_failure, launch, rank, read_results, write_result

from geofloor import ActivationExtractor, ActivationStore
from geofloor._training.devices import one_thread
from geofloor._training.processes import ALONE, Processes
from geofloor.language_models import _extractor, _shared_store

LONG = np.array(random_sequences([11] * 70, seed=1))  # 700 rows
MIXED = random_sequences(np.random.default_rng(2).integers(0, 12, size=120))


class Killed(BaseException):
    pass


class OneOfThreads(Processes):
    """One of several threads that stand for processes."""

    def __init__(self, rank, slots, barrier):
        self.rank, self.n, self.device = rank, len(slots), None
        self.slots, self.barrier = slots, barrier

    def everyone(self, value):
        self.slots[self.rank] = pickle.dumps(value)
        self.barrier.wait()
        found = [pickle.loads(each) for each in self.slots]
        self.barrier.wait()
        return found


@pytest.fixture
def together(monkeypatch):
    """Return a function that calls another in several threads with their number, and returns results or errors."""
    local = threading.local()
    monkeypatch.setattr(_extractor, "join_processes", lambda _: getattr(local, "processes", ALONE))
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 2)  # short windows for small tests
    monkeypatch.setattr(_shared_store, "SHARDS_AT_A_TIME", 2)
    monkeypatch.setattr("geofloor.language_models._extraction.SHARDS_AT_A_TIME", 2)

    def call(n, act):
        slots, barrier, found = [b""] * n, threading.Barrier(n, timeout=60), [None] * n

        def run(rank):
            local.processes = OneOfThreads(rank, slots, barrier) if n > 1 else ALONE
            try:
                found[rank] = act(rank)
            except BaseException as error:
                found[rank] = error
            if isinstance(found[rank], Killed):
                barrier.abort()  # as the connection to a killed process ends

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    return call


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def extract(sequences, path, layer=1, model=MODEL, **options):
    extractor = ActivationExtractor(model, layer, batch_size=3)
    return extractor.transform_to_store(sequences, path, **{"shard_tokens": 32, **options})


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(
    ("sequences", "options"),
    [
        (LONG, {}),
        (MIXED, {"layer": [2, 0]}),
        ([*MIXED, *[[1]] * 20], {"dtype": "float16", "shard_tokens": 7}),  # the last windows give no rows
        (LONG[:2], {"shard_tokens": 5}),
        (UNEQUAL, {"shard_tokens": 1000}),  # one process has nothing to do
    ],
)
def test_several_processes_write_the_bytes_of_one(together, tmp_path, n, sequences, options):
    extract(sequences, tmp_path / "alone", **options)
    stores = together(n, lambda _: extract(sequences, tmp_path / "together", **options))
    assert content(tmp_path / "together") == content(tmp_path / "alone")
    for store in stores:
        of_last = store[2] if isinstance(store, dict) else store
        assert of_last.shape == ActivationStore(of_last.path).shape


def counted(model):
    passes = []
    model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    return model, passes


def test_processes_share_the_forward_passes(together, tmp_path):
    models = [counted(gpt_neox()) for _ in range(3)]
    extract(LONG, tmp_path / "alone", model=models[2][0])
    together(2, lambda rank: extract(LONG, tmp_path / "together", model=models[rank][0]))
    first, second, alone = (len(passes) - 1 for _, passes in models)  # the first one checks the model
    n_blocks = -(-700 // (2 * 32))
    assert alone == 24
    assert alone <= first + second <= alone + n_blocks  # a batch at the end of shards is computed by both
    assert abs(first - second) <= 4


# Kills


@pytest.mark.parametrize("n_after", [1, 2, 3])
@pytest.mark.parametrize(("killed", "at", "what"), [(0, 1, "shard"), (1, 3, "shard"), (0, 2, "note"), (1, 1, "note")])
def test_a_store_is_resumed_by_any_number_of_processes(together, tmp_path, monkeypatch, n_after, killed, at, what):
    layer = [0, 1]
    extract(MIXED, tmp_path / "alone", layer=layer)
    name = "_write_shard" if what == "shard" else "_write"
    write, counts = getattr(_shared_store.SharedStoreWriter, name), [0, 0]

    def write_or_die(self, *arguments):
        rank = self._processes.rank
        counts[rank] += 1
        if what == "note":
            write(self, *arguments)  # and then the process is killed
        if (rank, counts[rank]) == (killed, at):
            raise Killed
        return None if what == "note" else write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_shared_store.SharedStoreWriter, name, write_or_die)
        found = together(2, lambda _: extract(MIXED, tmp_path / "again", layer=layer))
    assert isinstance(found[killed], Killed)
    assert isinstance(found[1 - killed], threading.BrokenBarrierError)
    with pytest.raises(FileNotFoundError, match="interrupted; call transform_to_store again"):
        ActivationStore(tmp_path / "again" / "layer-00")
    for index in range(20):  # of processes killed while they wrote
        for kind in ("npy", "json"):
            (tmp_path / "again" / "layer-00" / f".shard-{index:05d}.{kind}.abcdefgh.part").mkdir()
    models = [counted(gpt_neox()) for _ in range(n_after)]
    together(n_after, lambda rank: extract(MIXED, tmp_path / "again", layer=layer, model=models[rank][0]))
    assert content(tmp_path / "again") == content(tmp_path / "alone")
    assert not [path for path in (tmp_path / "again").rglob("*") if path.suffix == ".part"]


def stopped(together, folder, n, monkeypatch, at=5):
    """Begin a store of `LONG` with several processes, and kill the first one at a shard."""
    write = _shared_store.ShardWriter._write_shard

    def write_or_die(self, index):
        if index == at:
            raise Killed
        return write(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(_shared_store.ShardWriter, "_write_shard", write_or_die)
        assert any(isinstance(each, Killed) for each in together(n, lambda _: extract(LONG, folder)))


@pytest.mark.parametrize("n", [1, 2])
def test_resuming_computes_only_what_is_missing(together, tmp_path, monkeypatch, n):
    stopped(together, tmp_path / "again", n, monkeypatch, at=16)
    extract(LONG, tmp_path / "alone")
    models = [counted(gpt_neox()) for _ in range(2)]
    together(2, lambda rank: extract(LONG, tmp_path / "again", model=models[rank][0]))
    assert content(tmp_path / "again") == content(tmp_path / "alone")
    assert sum(len(passes) - 1 for _, passes in models) < 16  # of 24


@pytest.mark.parametrize("n", [1, 2])
def test_a_store_killed_before_its_first_shard_is_begun_anew(together, tmp_path, monkeypatch, n):
    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_shared_store.ShardWriter, "_write_shard", die)
        together(2, lambda _: extract(LONG, tmp_path / "again"))
    assert list(content(tmp_path / "again")) == ["manifest.partial.json"]
    together(n, lambda _: extract(LONG, tmp_path / "again"))
    extract(LONG, tmp_path / "alone")
    assert content(tmp_path / "again") == content(tmp_path / "alone")


def test_notes_without_a_manifest_are_not_used(together, tmp_path, monkeypatch):
    stopped(together, tmp_path / "again", 2, monkeypatch)
    (tmp_path / "again" / "manifest.partial.json").unlink()
    for n in (1, 2):
        together(n, lambda _: extract(LONG[::-1], tmp_path / "again"))
        extract(LONG[::-1], tmp_path / "alone")
        assert content(tmp_path / "again") == content(tmp_path / "alone")


def test_a_store_killed_before_its_progress_was_removed_is_finished(together, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_shared_store, "remove_progress", lambda _: 1 / 0)
        together(2, lambda _: extract(LONG, tmp_path / "again"))
    assert (tmp_path / "again" / "manifest.json").exists()
    together(2, lambda _: extract(LONG, tmp_path / "again"))
    extract(LONG, tmp_path / "alone")
    assert content(tmp_path / "again") == content(tmp_path / "alone")


def test_the_main_process_alone_checks_a_finished_store(together, tmp_path):
    extract(LONG, tmp_path)
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    models = [counted(gpt_neox()) for _ in range(2)]
    stores = together(2, lambda rank: extract(LONG, tmp_path, model=models[rank][0]))
    assert [store.shape[0] for store in stores] == [700, 700]
    assert [len(passes) - 1 for _, passes in models] == [2, 0]  # the last window
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == times


# Errors, which all processes must report


def errors(found):
    return [f"{type(each).__name__}: {each}" for each in found]


def test_activations_that_are_not_finite_stop_all_processes(together, tmp_path):
    model = gpt_neox()
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[0] = np.nan
    sequences = LONG.copy()
    sequences[10, 5] = 0  # of rows 100 to 109, which the second process computes
    main, other = errors(together(2, lambda _: extract(sequences, tmp_path, model=model)))
    assert main.startswith(
        "RuntimeError: Process 1 of 2, counted from 0, failed: ValueError: activations after layer=1"
    )
    assert other.startswith(
        "ValueError: activations after layer=1 of the batch of sequences X[9, 10, 11] are not finite"
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda rank: {"sequences": LONG[:: 1 - 2 * rank]}, "X"),
        (lambda rank: {"sequences": LONG[: 70 - rank]}, "X"),
        (lambda rank: {"sequences": LONG[: 70 - 65 * rank]}, "X"),
        (lambda rank: {"layer": rank}, "arguments"),
        (lambda rank: {"shard_tokens": 32 + rank}, "arguments"),
    ],
)
def test_different_arguments_are_refused_in_all_processes(together, tmp_path, change, name):
    found = together(2, lambda rank: extract(**{"sequences": LONG, "path": tmp_path, **change(rank)}))
    for message in errors(found):
        assert message.startswith(f"ValueError: The 2 processes have different {name};")
    assert not (tmp_path / "manifest.json").exists()


def other_activation(model):
    for block in model.gpt_neox.layers:
        block.mlp.act = torch.nn.ReLU()


def other_weights(model):
    with torch.no_grad():
        model.gpt_neox.embed_in.weight.mul_(1.01)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": LONG[::-1]}, "was made from another input"),
        ({"sequences": LONG[:5]}, "was made from another"),
        ({"shard_tokens": 16}, "was made with shard_tokens=32, not 16"),
        ({"change": other_activation}, "was made by a model that computes something else"),
        ({"change": other_weights}, "was made by a model with other weights"),
    ],
)
def test_an_interrupted_store_of_something_else_is_refused(together, tmp_path, monkeypatch, n, change, message):
    stopped(together, tmp_path, 2, monkeypatch)
    arguments = {"sequences": LONG, "path": tmp_path, "model": gpt_neox(), **change}
    arguments.pop("change", lambda _: None)(arguments["model"])
    for error in together(n, lambda _: extract(**arguments)):
        assert message in str(error)


@pytest.mark.parametrize(("n_sequences", "kind"), [(3, "longer"), (70, "shorter")])
def test_an_input_of_another_length_is_refused(together, tmp_path, monkeypatch, n_sequences, kind):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 1)  # so that the common windows are the same
    with monkeypatch.context() as patch:
        patch.setattr(_shared_store.SharedStoreWriter, "finish", lambda _: 1 / 0)
        together(2, lambda _: extract(LONG[:6], tmp_path))  # all 60 rows are stored, and the manifest is missing
    for error in together(2, lambda _: extract(LONG[:n_sequences], tmp_path)):
        assert f"was made from another, {kind} input" in str(error)


def test_an_altered_shard_is_refused_by_all(together, tmp_path, monkeypatch):
    stopped(together, tmp_path, 2, monkeypatch)
    for index in (0, 1):
        file = tmp_path / f"shard-{index:05d}.npy"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for error in together(2, lambda _: extract(LONG, tmp_path)):
            assert f"shard-{index:05d}.npy' was altered" in str(error)
        file.write_bytes(whole)


@pytest.mark.parametrize(("change", "message"), [(b"", "is not the record"), (b'"rows": 3', "was altered")])
def test_an_altered_record_is_refused_by_all(together, tmp_path, monkeypatch, change, message):
    stopped(together, tmp_path, 2, monkeypatch)
    note = tmp_path / "shard-00001.json"
    note.write_bytes(note.read_bytes().replace(b'"rows": 32', change) if change else b"")
    for error in together(2, lambda _: extract(LONG, tmp_path)):
        assert message in str(error)
        assert "shard-00001.json" in str(error)


def test_a_folder_that_only_one_process_sees_is_named(together, tmp_path):
    found = together(2, lambda rank: extract(LONG, tmp_path / str(rank)))
    for error in found:
        assert "of another process is missing; give all processes a path that all of them see" in str(error)


# Two real processes

PADDED = np.where(np.arange(11) < 6, LONG, MODEL.config.eos_token_id)


def extract_in_process(folder, dies):
    """Extract, and kill the second process after its first shard if asked to."""
    if dies == "dies" and rank() == 1:
        write = _shared_store.SharedStoreWriter._write

        def write_and_die(self, index):
            write(self, index)
            os.kill(os.getpid(), signal.SIGKILL)

        _shared_store.SharedStoreWriter._write = write_and_die
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stores = extract(PADDED, Path(folder) / "store", layer=[0, -1], shard_tokens=50)
    doubts = [each for each in caught if "look like padding" in str(each.message)]
    model = gpt_neox()
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[2] = np.nan
    failure = describe_failure(partial(extract, PADDED, Path(folder) / "broken", model=model))
    shapes = {layer: store.shape for layer, store in stores.items()}
    write_result(folder, {"shapes": shapes, "warnings": len(doubts), "failure": failure})


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_two_real_processes_write_the_store_of_one(tmp_path, killed):
    pytest.importorskip("accelerate")
    if killed:
        assert launch(__file__, tmp_path, "dies") != 0
        assert not (tmp_path / "store" / "layer-00" / "manifest.json").exists()
        assert (tmp_path / "store" / "layer-00" / "shard-00004.json").exists()
    assert launch(__file__, tmp_path, "lives") == 0
    main, other = read_results(tmp_path)
    assert main["shapes"] == other["shapes"] == {0: (700, 16), 2: (700, 16)}
    assert (main["warnings"], other["warnings"]) == (1, 0)
    assert "are not finite" in main["failure"]
    assert "are not finite" in other["failure"]
    with pytest.warns(UserWarning, match="look like padding"), one_thread():  # as each of the two
        extract(PADDED, tmp_path / "alone", layer=[0, -1], shard_tokens=50)
    assert content(tmp_path / "store") == content(tmp_path / "alone")


def test_blocks_of_one_length_are_cut_into_their_batches():
    from geofloor.language_models._extraction import _split
    from geofloor.language_models._inputs import Window

    parts = list(_split(Window(40, list(BLOCKS), 100), 4))
    assert [(part.first, len(part.sequences), part.n_rows) for part in parts] == [(40, 4, 40), (44, 4, 40), (48, 2, 20)]
    mixed = Window(0, [np.array(ids) for ids in UNEQUAL], 43)
    assert list(_split(mixed, 4)) == [mixed]


if __name__ == "__main__":
    torch.set_num_threads(1)
    extract_in_process(*sys.argv[1:])
