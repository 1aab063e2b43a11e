import contextlib
import json
import os
import pickle
import shutil
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from small_models import BLOCKS, MODEL, UNEQUAL, WIDTH, gpt_neox, random_sequences

from geofloor import ActivationExtractor, ActivationStore
from geofloor._files import npy, sealed
from geofloor.language_models import _store


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store of seven shards, and its activations."""
    extractor = ActivationExtractor(MODEL, 1)
    store = extractor.transform_to_store(BLOCKS, tmp_path_factory.mktemp("store"), shard_tokens=16)
    return store, extractor.transform(BLOCKS)


def test_store_holds_what_transform_gives(stored):
    store, activations = stored
    assert (store.shape, store.dtype, len(store), store.ndim) == ((100, WIDTH), np.float32, 100, 2)
    assert [shard["rows"] for shard in store.manifest["shards"]] == [16] * 6 + [4]
    assert store.manifest["settings"]["layer"] == 1
    np.testing.assert_array_equal(np.asarray(store), activations)
    np.testing.assert_array_equal(np.asarray(ActivationStore(store.path), dtype=np.float64), activations)
    store.verify()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(-100, 99)
    | st.slices(100)
    | st.lists(st.integers(-100, 99), max_size=30)
    | st.lists(st.booleans(), min_size=100, max_size=100).map(np.array)
    | st.tuples(st.slices(100), st.slices(WIDTH))
    | st.tuples(st.integers(-100, 99), st.slices(WIDTH))
    | st.just((slice(3, 50), ...))
    | st.just(...)
)
def test_store_is_indexed_like_an_array(stored, rows):
    store, activations = stored
    expected = activations[np.array(rows, dtype=int) if isinstance(rows, list) else rows]
    np.testing.assert_array_equal(store[rows], expected, strict=True)


@pytest.mark.parametrize(
    "rows", [100, -101, np.uint64(2**64 - 1), [0, 100], [0.5], np.zeros(3, dtype=bool), (0, 3), [[1]], "a"]
)
def test_store_refuses_rows(stored, rows):
    with pytest.raises(IndexError):
        stored[0][rows]


def test_store_is_read_in_batches(stored):
    store, activations = stored
    batches = list(store.iter_batches(33))
    assert [len(batch) for batch in batches] == [33, 33, 33, 1]
    np.testing.assert_array_equal(np.concatenate(batches), activations)


def test_store_stands_where_scikit_learn_takes_arrays(stored):
    store, activations = stored
    train, test = train_test_split(store, random_state=0)
    expected = train_test_split(activations, random_state=0)
    np.testing.assert_array_equal(train, expected[0])
    np.testing.assert_array_equal(test, expected[1])
    np.testing.assert_allclose(StandardScaler().fit(store).mean_, activations.mean(0), atol=1e-6)


def test_store_pickles_as_its_path(stored):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stored[0]))[:], stored[1])


def test_pooled_store(tmp_path):
    extractor = ActivationExtractor(MODEL, 1, pooling="mean")
    store = extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=4)
    np.testing.assert_array_equal(store[:], extractor.transform(BLOCKS))


def test_a_disk_with_too_little_space_is_refused_before_the_first_batch(tmp_path, monkeypatch):
    rows = BLOCKS.shape[0] * (BLOCKS.shape[1] - 1)
    free = 2 * rows * WIDTH * 4 - 1  # a byte less than two stores
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    extractor = ActivationExtractor(MODEL, [0, 1])
    with pytest.raises(OSError, match=r"GiB are left to write, .* give fewer tokens, dtype='float16'"):
        extractor.transform_to_store(BLOCKS, tmp_path / "new")
    assert not list((tmp_path / "new").glob("*/*"))
    assert len(extractor.transform_to_store(BLOCKS, tmp_path / "new", dtype="float16")) == 2
    extractor.transform_to_store(BLOCKS, tmp_path / "new", dtype="float16")  # nothing is left to write


def test_half_precision_store(tmp_path):
    extractor = ActivationExtractor(MODEL, 1)
    store = extractor.transform_to_store(UNEQUAL, tmp_path, dtype="float16")
    np.testing.assert_array_equal(store[:], extractor.transform(UNEQUAL).astype(np.float16), strict=True)


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    model = gpt_neox()
    with torch.no_grad():
        model.gpt_neox.layers[0].mlp.dense_4h_to_h.bias += 1e5
    with pytest.raises(ValueError, match="dtype='float16' cannot hold activations as large as 1e"):
        ActivationExtractor(model, 0).transform_to_store(UNEQUAL, tmp_path, dtype="float16")


def copy_of(store, tmp_path):
    for file in store.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_missing_and_truncated_shards_are_named(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    shard = path / "shard-00003.npy"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"shard-00003.npy' has \d+ bytes in place of"):
        ActivationStore(path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00003.npy' is missing"):
        ActivationStore(path)


def flip(file, where=-1):
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("where", [-1, 128, 20, 6])
def test_an_altered_shard_is_refused_when_it_is_read(stored, where, tmp_path):
    path = copy_of(stored[0], tmp_path)
    flip(path / "shard-00002.npy", where)
    store = ActivationStore(path)
    np.testing.assert_array_equal(store[:32], stored[1][:32])
    message = r"shard-00002.npy' (was altered|is damaged).*; remove the folder and extract"
    for read in (lambda: store[:], lambda: store[[40]], lambda: list(store.iter_batches(30)), store.verify):
        with pytest.raises(ValueError, match=message):
            read()
    with pytest.raises(ValueError, match=message):
        ActivationExtractor(MODEL, 1).transform_to_store(BLOCKS, path, shard_tokens=16)


def test_swapped_shards_are_refused(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    (path / "shard-00001.npy").rename(path / "other")
    (path / "shard-00002.npy").rename(path / "shard-00001.npy")
    (path / "other").rename(path / "shard-00002.npy")
    with pytest.raises(ValueError, match=r"shard-00001.npy' was altered"):
        ActivationStore(path)[:]


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(stored, tmp_path):
    (tmp_path / "store").mkdir()
    path = copy_of(stored[0], tmp_path / "store")
    (path / "shard-00001.npy").rename(tmp_path / "elsewhere.npy")
    (path / "shard-00001.npy").symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(ValueError, match=r"shard-00001.npy' is a link to a file in another folder"):
        ActivationStore(path)[:]
    (path / "manifest.json").rename(tmp_path / "elsewhere.json")
    (path / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"manifest.json' is a link to a file in another folder"):
        ActivationStore(path)


def test_shards_are_verified_when_they_are_first_read_and_once(stored, tmp_path, monkeypatch):
    path = copy_of(stored[0], tmp_path)
    for file in path.iterdir():
        os.utime(file, ns=(0, 10**9))
    monkeypatch.setattr("geofloor.language_models._store._OPEN_SHARDS", 1)
    reads = []
    update_digest = npy.update_digest
    monkeypatch.setattr(npy, "update_digest", lambda *arguments: reads.append(update_digest(*arguments)))
    store = ActivationStore(path)
    assert not reads
    for _ in range(3):
        store[20:40]
    assert len(reads) == 2
    ActivationStore(path)[:]
    assert len(reads) == 7
    store.verify()
    assert len(reads) == 14


def test_an_altered_manifest_is_refused(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    manifest = path / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"layer": 1', '"layer": 2'))
    with pytest.raises(ValueError, match=r"manifest.json' was altered"):
        ActivationStore(path)
    with pytest.raises(ValueError, match=r"manifest.json' was altered"):
        ActivationExtractor(MODEL, 2).transform_to_store(BLOCKS, path, shard_tokens=16)


def change_shard(manifest, **change):
    first, *others = manifest["shards"]
    return {**manifest, "shards": [{**first, **change}, *others]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "version": 99}, "has version 99, and this geofloor reads version 2"),
        (lambda m: {**m, "extra": 1}, "it has the unknown ..extra.."),
        (lambda m: {**m, "shape": [10**30, WIDTH]}, "is not the manifest of an activation store: shape"),
        (lambda m: {**m, "shape": [True, WIDTH]}, "is not the manifest of an activation store: shape"),
        (lambda m: {**m, "shape": [99, WIDTH]}, "do not add up to 99 rows"),
        (lambda m: {**m, "dtype": "O"}, "is not the manifest of an activation store: dtype"),
        (lambda m: {**m, "dtype": []}, "is not the manifest of an activation store: dtype"),
        (lambda m: {**m, "input_sha256": None}, "is not the manifest of an activation store: input_sha256"),
        (
            lambda m: {**m, "settings": {**m["settings"], "layer": "1"}},
            "layer='1' is not a whole number",
        ),
        (
            lambda m: {**m, "settings": {**m["settings"], "trust_remote_code": True}},
            "is not the manifest of an activation store: settings",
        ),
        (lambda m: change_shard(m, file="../outside.npy"), "is not the manifest of an activation store: shards"),
        (lambda m: change_shard(m, file="/etc/passwd"), "is not the manifest of an activation store: shards"),
        (lambda m: change_shard(m, file="shard-00001.npy"), "is not the manifest of an activation store: shards"),
        (lambda m: change_shard(m, rows=-16), "rows=-16 is not a whole number"),
        (lambda m: change_shard(m, rows=16.0), "rows=16.0 is not a whole number"),
        (lambda m: change_shard(m, sha256=None), "sha256=None is no text"),
        (lambda m: change_shard(m, extra=0), "is not the manifest of an activation store: shards"),
    ],
)
def test_a_manifest_with_a_right_checksum_is_checked_entry_by_entry(stored, change, message, tmp_path):
    path = copy_of(stored[0], tmp_path)
    manifest = {key: value for key, value in stored[0].manifest.items() if key != "checksum"}
    sealed.write_sealed(path / "manifest.json", change(manifest))
    with pytest.raises(ValueError, match=f"manifest.json' .*{message}.*; remove the folder"):
        ActivationStore(path)


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", "{}", '{"format": "something else"}', "[" * 10**5, '{"a": Infinity}', "1" * 5000]
)
def test_files_other_than_manifests_are_refused(manifest, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished activation store"):
        ActivationStore(tmp_path)
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match="not the manifest of an activation store"):
        ActivationStore(tmp_path)


class Interrupt:
    """Count forward passes, and stop the model at one of them, as Ctrl-C would."""

    def __init__(self, model, at):
        self.at, self.passes = at, 0
        self.handle = model.base_model.register_forward_pre_hook(self)

    def __call__(self, *_):
        self.passes += 1
        if self.passes == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("sequences", [BLOCKS, random_sequences(np.random.default_rng(2).integers(0, 12, size=60))])
@pytest.mark.parametrize("at", [2, 5, 9])
def test_resumed_extraction_has_the_bits_of_one_never_interrupted(sequences, at, tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 2)  # short windows for a small test
    model = gpt_neox()
    extractor = ActivationExtractor(model, 1, batch_size=2 if sequences is not BLOCKS else 1)
    extract = partial(extractor.fit().transform_to_store, sequences, shard_tokens=16)
    whole = extract(tmp_path / "whole")
    interrupt = Interrupt(model, at)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "again")
    if at > 2:
        with pytest.raises(FileNotFoundError, match="interrupted; call transform_to_store again"):
            ActivationStore(tmp_path / "again")
    monkeypatch.undo()
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 2)
    interrupt.passes = 100
    again = extract(tmp_path / "again")
    files = [sorted(file.name for file in store.path.iterdir()) for store in (whole, again)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (whole.path / name).read_bytes() == (again.path / name).read_bytes()


def test_resuming_computes_only_what_is_missing(tmp_path):
    model = gpt_neox()
    extractor = ActivationExtractor(model, 1, batch_size=1).fit()
    interrupt = Interrupt(model, at=9)
    with pytest.raises(KeyboardInterrupt):  # after eight sequences of ten rows and five shards of 16
        extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    interrupt.passes = 100
    extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    assert interrupt.passes - 100 == 10


def test_interrupted_just_before_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 1)
    sequences = [*UNEQUAL, *[[1]] * 20]  # the last windows give no rows
    extract = partial(ActivationExtractor(MODEL, 1).transform_to_store, sequences, tmp_path, shard_tokens=np.int64(16))
    manifest = extract().manifest
    (tmp_path / "manifest.json").rename(tmp_path / "manifest.partial.json")
    assert extract().manifest == manifest
    assert not (tmp_path / "manifest.partial.json").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_store_of_a_model_with_slightly_other_weights_is_refused(stored, finished, tmp_path):
    path = copy_of(stored[0], tmp_path)
    if not finished:
        (path / "manifest.json").rename(path / "manifest.partial.json")
    other = gpt_neox()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.003)
    with pytest.raises(ValueError, match="was made by a model with other weights"):
        ActivationExtractor(other, 1).transform_to_store(BLOCKS, path, shard_tokens=16)
    one = gpt_neox()
    with torch.no_grad():
        one.gpt_neox.embed_in.weight[-1, -1] += 1e-3  # the embedding of one token, which may not occur
    with pytest.raises(ValueError, match="was made by a model with other weights"):
        ActivationExtractor(one, 1).transform_to_store(BLOCKS, path, shard_tokens=16)


def test_a_store_of_a_model_that_computes_otherwise_with_the_same_weights_is_refused(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    other = gpt_neox()
    for block in other.gpt_neox.layers:
        block.mlp.act = torch.nn.ReLU()
    with pytest.raises(ValueError, match="computes something else with the same weights"):
        ActivationExtractor(other, 1).transform_to_store(BLOCKS, path, shard_tokens=16)


def test_altered_shards_of_an_interrupted_store_are_not_resumed(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    (path / "manifest.json").rename(path / "manifest.partial.json")
    flip(path / "shard-00000.npy")
    with pytest.raises(ValueError, match=r"shard-00000.npy' was altered"):
        ActivationExtractor(MODEL, 1).transform_to_store(BLOCKS, path, shard_tokens=16)
    assert not (path / "manifest.json").exists()


def test_one_process_writes_a_store_and_others_wait(stored, tmp_path):
    extractor = ActivationExtractor(gpt_neox(), 1, batch_size=1).fit()
    begun = threading.Event()

    def slow(*_):
        begun.set()
        time.sleep(0.02)

    def first():
        extractor.model.base_model.register_forward_pre_hook(slow)
        extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    other = ActivationExtractor(MODEL, 1, batch_size=1)
    with pytest.warns(UserWarning, match="Another process writes to"):
        store = other.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    thread.join()
    np.testing.assert_array_equal(store[:], ActivationExtractor(MODEL, 1, batch_size=1).transform(BLOCKS))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "manifest.json",
        *(f"shard-{i:05d}.npy" for i in range(7)),
    ]


def test_a_folder_that_cannot_be_written_is_refused_before_any_forward_pass(tmp_path):
    (tmp_path / "file").touch()
    model = gpt_neox()
    model.base_model.register_forward_pre_hook(lambda *_: pytest.fail("too late"))
    for path in (tmp_path / "file", tmp_path / "file" / "store", tmp_path / ("x" * 300)):
        for layer in (1, [0, 1]):
            with pytest.raises(ValueError, match="path='.*' can't be written"):
                ActivationExtractor(model, layer).transform_to_store(BLOCKS, path)


def test_a_finished_store_is_kept(stored, tmp_path):
    path = copy_of(stored[0], tmp_path)
    times = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    ActivationExtractor(MODEL, 1).transform_to_store(BLOCKS, path, shard_tokens=16)
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == times


def test_a_finished_store_does_not_grow(tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 1)  # the added sequences get their own window
    extractor = ActivationExtractor(MODEL, 1, batch_size=5)
    extractor.transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    content = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="another, shorter input"):
        extractor.transform_to_store(np.tile(BLOCKS, (2, 1)), tmp_path, shard_tokens=16)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 2}, "layer=1, not 2"),
        ({"batch_size": 3}, "batch_size=8, not 3"),
        ({"X": BLOCKS[:, ::-1]}, "made from another input"),
        ({"X": np.concatenate([BLOCKS, [[1] * 11]])}, "made from another"),
        ({"X": BLOCKS[:9]}, "made from another"),
        ({"model": gpt_neox(seed=1)}, "made by a model with other weights"),
        ({"dtype": "float16"}, "dtype='float32', not 'float16'"),
    ],
)
def test_a_store_of_other_settings_or_input_is_refused(stored, change, message, tmp_path):
    path = copy_of(stored[0], tmp_path)
    X, dtype = change.pop("X", BLOCKS), change.pop("dtype", "float32")
    extractor = ActivationExtractor(**{"model": MODEL, "layer": 1, **change})
    with pytest.raises(ValueError, match=message):
        extractor.transform_to_store(X, path, shard_tokens=16, dtype=dtype)


# Several layers


def files_of(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("X", [BLOCKS, UNEQUAL])
@pytest.mark.parametrize(("pooling", "dtype"), [(None, "float32"), (None, "float16"), ("mean", "float32")])
def test_stores_made_together_have_the_bytes_of_stores_made_alone(X, pooling, dtype, tmp_path):
    options = {"shard_tokens": 16, "dtype": dtype}
    settings = {"pooling": pooling, "skip_first": 0, "batch_size": 3}
    stores = ActivationExtractor(MODEL, [2, 0, -2], **settings).transform_to_store(X, tmp_path / "all", **options)
    assert {layer: store.path for layer, store in stores.items()} == {
        layer: tmp_path / "all" / f"layer-{layer:02d}" for layer in (2, 0, 1)
    }
    for layer in stores:
        ActivationExtractor(MODEL, layer, **settings).transform_to_store(
            X, tmp_path / "alone" / f"layer-{layer:02d}", **options
        )
    assert files_of(tmp_path / "all") == files_of(tmp_path / "alone")


def test_stores_of_several_layers_resume_from_any_write_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 1)
    extractor = ActivationExtractor(MODEL, [1, 0], batch_size=3).fit()
    extract = partial(extractor.transform_to_store, BLOCKS, shard_tokens=32)
    extract(tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    writes, last = 0, 0

    def stopping(write):
        def stopped(*arguments):
            nonlocal writes
            writes += 1
            if writes == last:
                raise KeyboardInterrupt
            return write(*arguments)

        return stopped

    for name in ("atomic_path", "write_sealed"):
        monkeypatch.setattr(_store, name, stopping(getattr(_store, name)))
    for last in range(1, 2 * (4 + 4 + 1) + 1):  # per layer, four shards with a manifest each, and the final manifest
        writes = 0
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / str(last))
        extract(tmp_path / str(last))
        assert files_of(tmp_path / str(last)) == whole


@pytest.mark.parametrize("at", [2, 5, 9])
def test_extraction_of_several_layers_stopped_in_a_forward_pass_resumes(at, tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 2)
    model = gpt_neox()
    extractor = ActivationExtractor(model, [0, 1], batch_size=1).fit()
    extract = partial(extractor.transform_to_store, UNEQUAL * 2, shard_tokens=16)
    extract(tmp_path / "whole")
    interrupt = Interrupt(model, at)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "again")
    interrupt.handle.remove()
    extract(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")


def test_stores_that_are_there_are_kept_and_the_others_completed(tmp_path, monkeypatch):
    monkeypatch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 1)
    model = gpt_neox()

    def extract(layer, path):
        return ActivationExtractor(model, layer, batch_size=1).transform_to_store(BLOCKS, path, shard_tokens=16)

    extract([0, 1, 2], tmp_path / "whole")
    extract(2, tmp_path / "again" / "layer-02")
    interrupt = Interrupt(model, at=6)
    with pytest.raises(KeyboardInterrupt):
        extract(1, tmp_path / "again" / "layer-01")
    interrupt.handle.remove()
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / "again" / "layer-02").iterdir()}
    ran = []
    for layer, block in enumerate(model.gpt_neox.layers):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    ran.clear()
    extract([0, 1, 2], tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert [ran.count(layer) for layer in range(3)] == [1 + 10, 1 + 7, 1 + 1]  # 1 each: the check of the model


def test_a_single_layer_resumes_a_store_begun_with_others(tmp_path):
    model = gpt_neox()
    interrupt = Interrupt(model, at=7)
    with pytest.raises(KeyboardInterrupt):
        ActivationExtractor(model, [0, 1], batch_size=1).fit().transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    interrupt.handle.remove()
    extractor = ActivationExtractor(model, 1, batch_size=1)
    resumed = extractor.transform_to_store(BLOCKS, tmp_path / "layer-01", shard_tokens=16)
    assert files_of(resumed.path) == files_of(
        extractor.transform_to_store(BLOCKS, tmp_path / "new", shard_tokens=16).path
    )
    with pytest.raises(FileNotFoundError, match=r"layer-00'. Its extraction was interrupted"):
        ActivationStore(tmp_path / "layer-00")


def test_one_store_of_other_settings_is_refused_before_any_other_is_written(stored, tmp_path):
    (tmp_path / "layer-01").mkdir()
    before = files_of(copy_of(stored[0], tmp_path / "layer-01"))
    with pytest.raises(ValueError, match=r"layer-01' was made with batch_size=8, not 3"):
        ActivationExtractor(MODEL, [0, 1], batch_size=3).transform_to_store(BLOCKS, tmp_path, shard_tokens=16)
    assert files_of(tmp_path / "layer-01") == before
    assert not files_of(tmp_path / "layer-00")


@pytest.mark.filterwarnings("ignore:Another process writes to")
def test_writers_of_the_same_layers_in_other_orders_do_not_wait_for_each_other(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def slowly(path):
        with sealed.only_writer(path):
            time.sleep(0.2)
            yield

    monkeypatch.setattr("geofloor.language_models._extraction.only_writer", slowly)
    threads = [
        threading.Thread(
            target=ActivationExtractor(MODEL, layers).transform_to_store, args=(BLOCKS, tmp_path / "both"), daemon=True
        )
        for layers in ([0, 2], [2, 0])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    ActivationExtractor(MODEL, [0, 2]).transform_to_store(BLOCKS, tmp_path / "one")
    assert files_of(tmp_path / "both") == files_of(tmp_path / "one")


def test_a_store_of_another_output_is_refused(tmp_path):
    ActivationExtractor(MODEL, 1, output="mlp").transform_to_store(BLOCKS, tmp_path)
    assert ActivationStore(tmp_path).manifest["settings"]["output"] == "mlp"
    with pytest.raises(ValueError, match="was made with output='mlp', not 'residual'; remove"):
        ActivationExtractor(MODEL, 1).transform_to_store(BLOCKS, tmp_path)


def test_a_store_made_before_there_were_outputs_is_of_the_residual_stream(tmp_path):
    extractor = ActivationExtractor(MODEL, 1)
    extractor.transform_to_store(BLOCKS, tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    del content["settings"]["output"]
    sealed.write_sealed(path, {key: value for key, value in content.items() if key != sealed._CHECKSUM})
    assert ActivationStore(tmp_path).manifest["settings"]["output"] == "residual"
    np.testing.assert_array_equal(extractor.transform_to_store(BLOCKS, tmp_path)[:], extractor.transform(BLOCKS))
    with pytest.raises(ValueError, match="was made with output='residual', not 'attention'"):
        ActivationExtractor(MODEL, 1, output="attention").transform_to_store(BLOCKS, tmp_path)
