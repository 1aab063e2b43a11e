import json
import os
import shutil
import signal
import threading
import time
import warnings

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_processes import call_apart
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from geofloor._files import npy, sealed
from geofloor.datasets import Document
from geofloor.language_models import _tokens, token_blocks

N_WORDS = 39


def word_tokenizer(n_words=N_WORDS, with_start=False):
    """Word "3" is token 3; token 0 is the end of text."""
    vocabulary = {"<end>": 0, **{str(i): i for i in range(1, n_words + 1)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if with_start:
        words.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def as_text(sequences):
    return [" ".join(map(str, ids)) for ids in sequences]


@st.composite
def documents(draw):
    words = st.integers(1, N_WORDS)
    return draw(st.lists(st.lists(words, max_size=9), min_size=1, max_size=12))


LENGTHS = np.random.default_rng(0).integers(0, 12, size=200)
TEXTS = as_text(np.random.default_rng(length).integers(1, N_WORDS + 1, size=length) for length in LENGTHS)
TOKENIZER = word_tokenizer()


@pytest.fixture
def small_pieces(monkeypatch):
    """Tokenize few documents at a time, and save after few tokens, for small tests."""
    monkeypatch.setattr(_tokens, "_TEXTS_AT_ONCE", 3)
    monkeypatch.setattr(_tokens, "_SAVE_TOKENS", 40)


def files_in(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# Blocks


@given(documents=documents(), length=st.integers(2, 7), max_blocks=st.none() | st.integers(1, 5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_are_the_joined_stream_cut(documents, length, max_blocks, tmp_path):
    shutil.rmtree(tmp_path)
    stream = [token for ids in documents for token in [*ids, 0]]
    whole = len(stream) // length
    for path in (None, tmp_path / "blocks.npy"):
        arguments = {"length": length, "max_blocks": max_blocks, "path": path}
        if not whole:
            with pytest.raises(ValueError, match=f"fewer than length={length} tokens"):
                token_blocks(as_text(documents), TOKENIZER, **arguments)
            assert path is None or not files_in(tmp_path)
            continue
        blocks = token_blocks(as_text(documents), TOKENIZER, **arguments)
        assert blocks.dtype == (np.int64 if path is None else np.uint16)
        np.testing.assert_array_equal(blocks, np.reshape(stream[: whole * length], (whole, length))[:max_blocks])


def test_blocks_read_an_iterator_no_further_than_needed(tmp_path):
    for path in (None, tmp_path / "blocks.npy"):
        texts = iter(["1 2 3"] * 100)
        token_blocks(texts, TOKENIZER, length=4, max_blocks=7, path=path)
        assert len(list(texts)) == 93


def test_blocks_ignore_truncation_left_on_the_tokenizer():
    tokenizer = word_tokenizer(with_start=True)
    tokenizer(["1 2 3 4 5"], truncation=True, max_length=2, padding="max_length")
    np.testing.assert_array_equal(token_blocks(["1 2 3 4 5"], tokenizer, length=6), [[1, 2, 3, 4, 5, 0]])


def test_blocks_of_a_slow_tokenizer(tmp_path):
    for path in (None, tmp_path / "blocks.npy"):
        blocks = token_blocks(["ab", "c"], ByT5Tokenizer(), length=5, path=path)  # bytes from 3 on; 1 ends a text
        np.testing.assert_array_equal(blocks, [[100, 101, 1, 102, 1]])


def test_documents_of_a_corpus_are_texts():
    documents = [Document(text, name="a", kind="source") for text in ("ab", "c")]
    np.testing.assert_array_equal(token_blocks(documents, ByT5Tokenizer(), length=5), [[100, 101, 1, 102, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 1}, "length=1 must be"),
        ({"length": 3, "max_blocks": 0}, "max_blocks=0 must be"),
        ({"texts": "1 2 3", "length": 3}, "put it in a list"),
        ({"tokenizer": PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), "length": 3}, "no eos_token"),
        ({"texts": ["1 2", None], "length": 3}, r"texts\[1\]=None is no text"),
        (
            {"texts": datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["1 2 3"]})), "length": 3},
            "'train'",
        ),
        ({"texts": datasets.Dataset.from_dict({"content": ["1 2 3"]}), "length": 3}, "'content'.*set text_column"),
    ],
)
def test_blocks_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        token_blocks(**{"texts": ["1 2 3"], "tokenizer": TOKENIZER, **arguments})


# Datasets


def like_the_pile(texts):
    """Records with the columns of The Pile."""
    subsets = ["Pile-CC", "Github", "FreeLaw"]
    return [{"text": text, "meta": {"pile_set_name": subsets[i % 3]}} for i, text in enumerate(texts)]


def as_streams(texts, folder):
    """The same records as a dataset, as its stream, and as a stream from files with unknown columns."""
    rows = like_the_pile(texts)
    file = folder / "pile.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    dataset = datasets.Dataset.from_list(rows)
    return {
        "dataset": dataset,
        "stream": dataset.to_iterable_dataset(num_shards=3),
        "generator": datasets.IterableDataset.from_generator(like_the_pile, gen_kwargs={"texts": texts}),
        "files": datasets.load_dataset(
            "json", data_files=str(file), split="train", streaming=True, cache_dir=str(folder / "cache")
        ),
    }


def test_datasets_with_the_columns_of_the_pile_give_the_blocks_of_their_texts(tmp_path):
    expected = token_blocks(TEXTS, TOKENIZER, length=8)
    for name, dataset in as_streams(TEXTS, tmp_path).items():
        np.testing.assert_array_equal(token_blocks(dataset, TOKENIZER, length=8), expected, err_msg=name)
        blocks = token_blocks(dataset, TOKENIZER, length=8, path=tmp_path / f"{name}.npy")
        np.testing.assert_array_equal(blocks, expected, err_msg=name)
    renamed = datasets.Dataset.from_dict({"input_ids": [[1]] * len(TEXTS), "content": TEXTS})
    np.testing.assert_array_equal(token_blocks(renamed, TOKENIZER, length=8, text_column="content"), expected)
    with pytest.raises(ValueError, match="fewer than length=8"):
        token_blocks(datasets.IterableDataset.from_generator(lambda: iter(())), TOKENIZER, length=8)


# Files


def test_the_file_is_what_numpy_would_have_written(tmp_path):
    blocks = token_blocks(TEXTS, TOKENIZER, length=8, path=tmp_path / "new" / "blocks.npy")
    assert isinstance(blocks, np.memmap)
    assert not blocks.flags.writeable
    np.save(tmp_path / "expected.npy", np.array(blocks))
    assert (tmp_path / "new" / "blocks.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"blocks.npy", "blocks.npy.json"}


@pytest.mark.parametrize(("n_words", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32)])
def test_the_type_holds_the_highest_id(n_words, dtype, tmp_path):
    blocks = token_blocks([f"1 {n_words}"], word_tokenizer(n_words), length=3, path=tmp_path / "blocks.npy")
    assert blocks.dtype == dtype
    np.testing.assert_array_equal(blocks, [[1, n_words, 0]])


def stopping(texts, at):
    """Documents up to a number, then an error."""
    yield from texts[:at]
    raise ConnectionError


@pytest.mark.parametrize("max_blocks", [None, 40])
@pytest.mark.parametrize("stops", [(1,), (3,), (70, 4, 71), (20, 90, 199)])
def test_interrupted_it_goes_on_to_the_same_bytes(stops, max_blocks, tmp_path, small_pieces):
    arguments = {"tokenizer": TOKENIZER, "length": 8, "max_blocks": max_blocks}
    token_blocks(TEXTS, path=tmp_path / "whole" / "blocks.npy", **arguments)
    path = tmp_path / "again" / "blocks.npy"
    for stop in stops:
        if path.exists():
            break
        try:
            token_blocks(stopping(TEXTS, stop), path=path, **arguments)
        except ConnectionError:
            assert not path.exists()
        else:
            assert max_blocks  # enough tokens were read before
    token_blocks(iter(TEXTS), path=path, **arguments)
    assert files_in(tmp_path / "again") == files_in(tmp_path / "whole")


def test_to_go_on_a_dataset_skips_what_is_done(tmp_path, small_pieces, monkeypatch):
    token_blocks(TEXTS, TOKENIZER, length=8, path=tmp_path / "whole" / "blocks.npy")
    encode = _tokens._encoder(TOKENIZER)
    for name, dataset in as_streams(TEXTS, tmp_path).items():
        path = tmp_path / name / "blocks.npy"
        with pytest.raises(ConnectionError):
            token_blocks(stopping(TEXTS, 120), TOKENIZER, length=8, path=path)
        n_done = json.loads(path.with_name("blocks.npy.json").read_text())["documents"]
        assert n_done > 90
        read = []
        monkeypatch.setattr(_tokens, "_encoder", lambda _, read=read: lambda texts: read.extend(texts) or encode(texts))
        token_blocks(dataset, TOKENIZER, length=8, path=path)
        monkeypatch.setattr(_tokens, "_encoder", lambda _: encode)
        assert read == TEXTS[n_done:]
        assert files_in(path.parent) == files_in(tmp_path / "whole")


@pytest.mark.parametrize("at", range(1, 7))
def test_a_full_disk_loses_nothing(at, tmp_path, small_pieces, monkeypatch):
    token_blocks(TEXTS, TOKENIZER, length=8, path=tmp_path / "whole" / "blocks.npy")
    to_disk, path = _tokens._to_disk, tmp_path / "again" / "blocks.npy"
    calls = []

    def full(stream):
        calls.append(stream)
        if len(calls) in (at, at + 20):
            raise OSError(28, "No space left on device")
        to_disk(stream)

    monkeypatch.setattr(_tokens, "_to_disk", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device: .*/again/blocks.npy.part'"):
            token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    monkeypatch.setattr(_tokens, "_to_disk", to_disk)
    token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    assert files_in(tmp_path / "again") == files_in(tmp_path / "whole")


@pytest.mark.parametrize(("name", "n_calls"), [("write_sealed", 1), ("_to_disk", 2)])
def test_stopped_at_the_very_end_it_only_finishes(name, n_calls, tmp_path, monkeypatch):
    arguments = {"texts": TEXTS, "tokenizer": TOKENIZER, "length": 8}
    token_blocks(**arguments, path=tmp_path / "whole" / "blocks.npy")
    function, path = getattr(_tokens, name), tmp_path / "again" / "blocks.npy"
    calls = []

    def stop_after(*arguments):
        function(*arguments)
        calls.append(arguments)
        if len(calls) == n_calls:
            raise KeyboardInterrupt

    monkeypatch.setattr(_tokens, name, stop_after)
    with pytest.raises(KeyboardInterrupt):
        token_blocks(**arguments, path=path)
    assert not path.exists()
    monkeypatch.delattr(_tokens, "_encoded")  # no text is left to tokenize
    token_blocks(**arguments, path=path)
    assert files_in(tmp_path / "again") == files_in(tmp_path / "whole")


def write_apart(report, texts, path):
    _tokens._TEXTS_AT_ONCE, _tokens._SAVE_TOKENS = 3, 40
    write_sealed = _tokens.write_sealed

    def announced(path, state):
        write_sealed(path, state)
        report(state["documents"])

    _tokens.write_sealed = announced
    token_blocks(texts, TOKENIZER, length=8, path=path)


def test_sigkill_loses_nothing(server, tmp_path):
    texts, path = TEXTS * 6, tmp_path / "killed" / "blocks.npy"
    token_blocks(texts, TOKENIZER, length=8, path=tmp_path / "whole" / "blocks.npy")
    call_apart(server, write_apart, texts, path, kill_at=lambda n_documents: n_documents > 400)
    first, *_, last = call_apart(server, write_apart, texts, path)
    assert first > 400  # it continued, and did not start again
    assert last == len(texts)
    assert files_in(tmp_path / "killed") == files_in(tmp_path / "whole")


def test_a_finished_file_is_opened_and_no_text_but_the_first_is_read(tmp_path):
    path = tmp_path / "blocks.npy"
    blocks = token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    files = files_in(tmp_path)
    again = token_blocks(stopping(TEXTS, 1), TOKENIZER, length=8, path=path)
    np.testing.assert_array_equal(again, blocks)
    assert files_in(tmp_path) == files
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    loaded(
        ["1 2 3 4 5"], truncation=True, max_length=2
    )  # leaves truncation on the tokenizer, which is not among its rules
    token_blocks(TEXTS, loaded, length=8, path=path)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"length": 7}, "length"),
        ({"max_blocks": 5}, "max_blocks"),
        ({"tokenizer": word_tokenizer(N_WORDS + 1)}, "tokenizer"),
        ({"tokenizer": ByT5Tokenizer()}, "tokenizer"),
        ({"texts": TEXTS[1:]}, "texts"),
        ({"texts": []}, "texts"),
    ],
)
def test_a_file_of_something_else_is_refused(change, name, finished, tmp_path, small_pieces):
    path = tmp_path / "blocks.npy"
    arguments = {"texts": TEXTS, "tokenizer": TOKENIZER, "length": 8, "path": path}
    if finished:
        token_blocks(**arguments)
    else:
        with pytest.raises(ConnectionError):
            token_blocks(**{**arguments, "texts": stopping(TEXTS, 100)})
    files = files_in(tmp_path)
    remove = path if finished else f"{path}.part"
    with pytest.raises(ValueError, match=f"blocks.npy' was made with other values of {name}; remove '{remove}' or"):
        token_blocks(**{**arguments, **change})
    assert files_in(tmp_path) == files


@pytest.mark.parametrize("other", [[*TEXTS[:40], *TEXTS[41:]], TEXTS[:80]])
@pytest.mark.parametrize("convert", [list, lambda texts: datasets.Dataset.from_dict({"text": texts})])
def test_texts_that_differ_later_are_refused_when_it_goes_on(other, convert, tmp_path, small_pieces):
    path = tmp_path / "blocks.npy"
    with pytest.raises(ConnectionError):
        token_blocks(stopping(TEXTS, 100), TOKENIZER, length=8, path=path)
    with pytest.raises(ValueError, match="other values of texts"):
        token_blocks(convert(other), TOKENIZER, length=8, path=path)


def test_once_removed_a_file_is_made_anew(tmp_path, small_pieces):
    path = tmp_path / "blocks.npy"
    token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    path.unlink()
    with pytest.raises(ConnectionError):
        token_blocks(stopping(TEXTS[1:], 2), TOKENIZER, length=7, path=path)
    blocks = token_blocks(TEXTS[1:], TOKENIZER, length=7, path=path)
    np.testing.assert_array_equal(blocks, token_blocks(TEXTS[1:], TOKENIZER, length=7))


def test_damaged_and_foreign_files_are_named(tmp_path, small_pieces):
    path = tmp_path / "blocks.npy"
    again = {"texts": TEXTS, "tokenizer": TOKENIZER, "length": 8, "path": path}
    np.save(path, np.zeros((3, 8), dtype=np.uint16))
    with pytest.raises(ValueError, match=r"blocks.npy' exists without 'blocks.npy.json' beside it.* remove"):
        token_blocks(**again)
    path.unlink()
    token_blocks(**again)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:20], b"", content.replace(b"<u2", b"<i2")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="blocks.npy' is damaged.* remove '.*blocks.npy' or"):
            token_blocks(**again)
    path.unlink()
    with pytest.raises(ConnectionError):
        token_blocks(**{**again, "texts": stopping(TEXTS, 100)})
    partial = tmp_path / "blocks.npy.part"
    partial.write_bytes(partial.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged: 'blocks.npy.part' is shorter than it was; remove '.*.part'"):
        token_blocks(**again)
    (tmp_path / "blocks.npy.json").write_text("{}")
    with pytest.raises(ValueError, match=r"blocks.npy.json' is not the settings file of token_blocks; remove"):
        token_blocks(**again)


@pytest.mark.parametrize("finished", [True, False])
def test_altered_tokens_are_refused(finished, tmp_path, small_pieces):
    path = tmp_path / "blocks.npy"
    arguments = {"tokenizer": TOKENIZER, "length": 8, "path": path}
    if finished:
        token_blocks(TEXTS, **arguments)
    else:
        with pytest.raises(ConnectionError):
            token_blocks(stopping(TEXTS, 100), **arguments)
    file = path if finished else tmp_path / "blocks.npy.part"
    content = file.read_bytes()
    for where in (128, 200, 500):
        file.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])
        with pytest.raises(ValueError, match=f"blocks.npy' .*was altered after it was written.* remove '{file}'"):
            token_blocks(TEXTS, **arguments)
    file.write_bytes(content)
    np.testing.assert_array_equal(token_blocks(TEXTS, **arguments), token_blocks(TEXTS, TOKENIZER, length=8))


@pytest.mark.parametrize("finished", [True, False])
def test_altered_notes_are_refused(finished, tmp_path, small_pieces):
    path, notes = tmp_path / "blocks.npy", tmp_path / "blocks.npy.json"
    with pytest.raises(ConnectionError):
        token_blocks(stopping(TEXTS, 100), TOKENIZER, length=8, path=path)
    if finished:
        token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    state = json.loads(notes.read_text())
    notes.write_text(json.dumps({**state, "documents": state["documents"] - 3}))
    with pytest.raises(ValueError, match=r"blocks.npy.json' was altered .* remove"):
        token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    del state["checksum"]
    for change, message in [
        ({"version": 99}, "has version 99, and this geofloor reads version 2"),
        ({"documents": -1}, "documents=-1 is not a whole number"),
        ({"tokens": 10**30}, "tokens=1000.* is not a whole number"),
        ({"sha256": "x"}, "sha256='x' is no SHA-256"),
        ({"extra": 1}, "it has the unknown ..extra.."),
    ]:
        sealed.write_sealed(notes, {**state, **change})
        with pytest.raises(ValueError, match=f"blocks.npy.json' .*{message}"):
            token_blocks(TEXTS, TOKENIZER, length=8, path=path)


def test_texts_in_memory_are_compared_with_all_those_of_a_finished_file(tmp_path):
    token_blocks(TEXTS, TOKENIZER, length=8, path=tmp_path / "all.npy")
    token_blocks(TEXTS, TOKENIZER, length=8, max_blocks=40, path=tmp_path / "some.npy")
    for other in ([*TEXTS[:50], "7 7", *TEXTS[51:]], TEXTS[:50]):
        for name, max_blocks in [("all.npy", None), ("some.npy", 40)]:
            with pytest.raises(ValueError, match=f"{name}' was made with other values of texts"):
                token_blocks(other, TOKENIZER, length=8, max_blocks=max_blocks, path=tmp_path / name)
    with pytest.raises(ValueError, match="other values of texts"):
        token_blocks([*TEXTS, "1"], TOKENIZER, length=8, path=tmp_path / "all.npy")
    token_blocks([*TEXTS, "1"], TOKENIZER, length=8, max_blocks=40, path=tmp_path / "some.npy")  # reads no further


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<u2', 'fortran_order': False, 'shape': (3",
        b"\x93NUMPY\x01\x00\xf0\xff" + b"(" * 65520,
        b"\x93NUMPY\x01\x00\xf0\xff" + b"-" * 65520,
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 8), }".ljust(117) + b"\n",
        b"\x93NUMPY\x03\x00\xff\xff\xff\xff{",
    ],
    ids=["nothing", "magic", "cut", "parentheses", "minus", "pickle", "version"],
)
def test_hostile_headers_are_refused_by_name(header, tmp_path):
    path = tmp_path / "blocks.npy"
    token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    path.write_bytes(header)
    with pytest.raises(ValueError, match="blocks.npy' is damaged"):
        token_blocks(TEXTS, TOKENIZER, length=8, path=path)


def test_links_out_of_the_folder_are_neither_followed_nor_written_through(tmp_path, small_pieces):
    path, other = tmp_path / "files" / "blocks.npy", tmp_path / "other"
    path.parent.mkdir()
    other.write_text("mine")
    path.with_name("blocks.npy.part").symlink_to(other)
    with pytest.raises(ConnectionError):
        token_blocks(stopping(TEXTS, 100), TOKENIZER, length=8, path=path)
    assert other.read_text() == "mine"
    partial = path.with_name("blocks.npy.part")
    partial.rename(tmp_path / "elsewhere.part")
    partial.symlink_to(tmp_path / "elsewhere.part")
    with pytest.raises(ValueError, match=r"'blocks.npy.part' is a link to a file in another folder"):
        token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    partial.unlink()
    token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    notes = path.with_name("blocks.npy.json")
    notes.rename(tmp_path / "elsewhere.json")
    notes.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"blocks.npy.json' is a link to a file in another folder"):
        token_blocks(TEXTS, TOKENIZER, length=8, path=path)


def test_a_path_may_be_a_link_to_a_file_with_its_notes(tmp_path):
    blocks = token_blocks(TEXTS, TOKENIZER, length=8, path=tmp_path / "files" / "blocks.npy")
    (tmp_path / "link.npy").symlink_to(tmp_path / "files" / "blocks.npy")
    again = token_blocks(stopping(TEXTS, 1), TOKENIZER, length=8, path=tmp_path / "link.npy")
    np.testing.assert_array_equal(again, blocks)


def test_a_path_that_cannot_be_written_is_refused_before_any_text_but_the_first_is_read(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "blocks.npy", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="path='.*' can't be written"):
            token_blocks(stopping(TEXTS, 1), TOKENIZER, length=8, path=path)
    with pytest.raises(ValueError, match="exists without"):
        token_blocks(stopping(TEXTS, 1), TOKENIZER, length=8, path=tmp_path)


def test_wrong_kinds_of_arguments_are_named():
    for change, name in [
        ({"texts": 3}, "texts"),
        ({"tokenizer": 3}, "tokenizer"),
        ({"path": 3}, "path"),
        ({"text_column": 3}, "text_column"),
    ]:
        with pytest.raises(TypeError, match=f"{name}=3 is a int; give"):
            token_blocks(**{"texts": TEXTS, "tokenizer": TOKENIZER, "length": 8, **change})


# Several processes


def write_in_a_process(path, result, environment, half_way):
    os.environ.update(environment)
    _tokens._TEXTS_AT_ONCE, _tokens._SAVE_TOKENS = 3, 40

    def slowly():
        for i, text in enumerate(TEXTS):
            if i == len(TEXTS) // 2:
                half_way.set()
            time.sleep(2e-3)
            yield text

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning of waiting
        np.save(result, token_blocks(slowly(), TOKENIZER, length=8, path=path))


@pytest.mark.skipif(sealed.fcntl is None, reason="locks need fcntl")
@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "2"}], ids=["unrelated", "launched together"])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "half a run apart"])
def test_of_two_processes_one_writes_and_the_other_waits(apart, environment, server, tmp_path):
    path, half_way = tmp_path / "blocks" / "blocks.npy", server.Event()
    results = [tmp_path / f"{rank}.npy" for rank in range(2)]
    processes = [
        server.Process(target=write_in_a_process, args=(path, result, {**environment, "RANK": str(rank)}, half_way))
        for rank, result in enumerate(results)
    ]
    processes[0].start()
    assert not apart or half_way.wait(60)
    processes[1].start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    token_blocks(TEXTS, TOKENIZER, length=8, path=tmp_path / "whole" / "blocks.npy")
    assert files_in(path.parent) == files_in(tmp_path / "whole")
    for result in results:
        np.testing.assert_array_equal(np.load(result), np.load(path))


@pytest.mark.skipif(sealed.fcntl is None, reason="locks need fcntl")
def test_a_waiting_process_continues_after_the_writer_is_killed(server, tmp_path):
    path, half_way = tmp_path / "blocks" / "blocks.npy", [server.Event(), server.Event()]
    processes = [
        server.Process(target=write_in_a_process, args=(path, tmp_path / "result.npy", {}, event)) for event in half_way
    ]
    processes[0].start()
    assert half_way[0].wait(60)
    processes[1].start()
    processes[0].kill()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0]
    token_blocks(TEXTS, TOKENIZER, length=8, path=tmp_path / "whole" / "blocks.npy")
    assert files_in(path.parent) == files_in(tmp_path / "whole")


@pytest.mark.skipif(sealed.fcntl is None, reason="locks need fcntl")
def test_waiting_for_a_writer_warns(tmp_path):
    path, held = tmp_path / "blocks.npy", threading.Event()

    def write():
        with sealed.only_writer(path):
            held.set()
            time.sleep(0.2)

    writer = threading.Thread(target=write)
    writer.start()
    held.wait()
    with pytest.warns(UserWarning, match=f"Another process writes to '{tmp_path}'; waiting") as caught:
        token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    writer.join()
    assert caught[0].filename == __file__
    assert sorted(files_in(tmp_path)) == ["blocks.npy", "blocks.npy.json"]


def test_file_systems_without_locks_warn_and_continue(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(sealed.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="file system without locks .* only one process"):
        blocks = token_blocks(TEXTS, TOKENIZER, length=8, path=tmp_path / "blocks.npy")
    np.testing.assert_array_equal(blocks, token_blocks(TEXTS, TOKENIZER, length=8))


def test_a_finished_file_is_read_once_per_process_and_again_when_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "blocks.npy"
    token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    os.utime(path, ns=(0, 10**9))
    reads = []
    update_digest = npy.update_digest
    monkeypatch.setattr(npy, "update_digest", lambda *arguments: reads.append(update_digest(*arguments)))
    for _ in range(3):
        token_blocks(TEXTS, TOKENIZER, length=8, path=path)
    assert len(reads) == 1
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(0, 10**9))
    with pytest.raises(ValueError, match="altered"):
        token_blocks(TEXTS, TOKENIZER, length=8, path=path)
