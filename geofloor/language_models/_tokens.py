"""Cut texts into blocks of tokens, in memory or in a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from geofloor._files import schema
from geofloor._files.atomic import check_writable, remove_left_behind
from geofloor._files.npy import leaves_folder, map_npy, npy_header, update_digest
from geofloor._files.sealed import count, lock_left, only_writer, read_sealed, sha256, write_sealed
from geofloor._validation import check_iterable, check_number, check_object, check_path, shown
from geofloor.language_models._dataset_columns import column_names, column_values, is_dataset, is_dataset_stream

_TEXTS_AT_ONCE = 64
_BYTES_AT_ONCE = 2**24  # limit on the bytes of these texts, unless one text alone is longer
_SAVE_TOKENS = 2**22  # tokens between saves of the progress of a file
_FORMAT, _VERSION = "geofloor token blocks", 2


def token_blocks(
    texts: Iterable[str],
    tokenizer: Any,
    *,
    length: int,
    max_blocks: int | None = None,
    path: str | os.PathLike[str] | None = None,
    text_column: str = "text",
) -> np.ndarray:
    """Tokenize texts, join them with the end-of-text token and cut the stream into blocks.

    Parameters
    ----------
    texts : iterable of str or Document, datasets.Dataset or datasets.IterableDataset
        Documents, such as those of `load_local_corpus <geofloor.datasets.load_local_corpus>`. An iterator is read only
        as far as needed.
    tokenizer : PreTrainedTokenizerBase
        A ``transformers`` tokenizer with an end-of-text token.
    length : int
        Tokens per block. Tokens left over at the end are dropped.
    max_blocks : int or None, default=None
        Stop after this many blocks.
    path : str, path or None, default=None
        A ``.npy`` file to write the blocks to, so that they need not fit into memory. After an interruption the same
        call continues, to the same bytes. A finished file is verified and opened; from a dataset or an iterator only
        the first text is read then. While one process writes to a path, others wait.
    text_column : str, default="text"
        Column of a dataset that holds the text. Other columns are not read.

    Returns
    -------
    tokens : ndarray of shape (n_sequences, length), int64
        Token ids. With `path` a read-only memory map of uint16, or uint32 if the vocabulary is larger.

    Raises
    ------
    ValueError
        If `length` is below 2, the tokenizer has no end-of-text token, the texts give no block or hold an item of
        another type; or if the file at `path` was made from other texts, with other settings, or is damaged.
    TypeError
        If an argument has the wrong type.

    Notes
    -----
    The only special token added is the end-of-text token after each document. A block may begin anywhere in a
    document, as in the pre-training of most causal language models.

    Text files are read by ``(file.read_text() for file in sorted(folder.glob("*.txt")))``. A stream leaves nothing but
    its tokens on disk::

        pile = datasets.load_dataset("monology/pile-uncopyrighted", split="train", streaming=True)
        tokens = token_blocks(pile, tokenizer, length=2048, max_blocks=150_000, path="pile.npy")

    A second file, ``pile.npy.json``, holds the settings and the SHA-256 of the tokens. During writing the tokens are in
    ``pile.npy.part``, and the lock ``.pile.npy.lock`` makes other processes wait, such as those of ``torchrun``: the
    first process writes, and all open the same file. On file systems without locks, and on Windows, use one process at
    a time.

    To continue, a dataset skips the documents that are done. Any other iterable is read again from its start, so give
    an iterator anew. Other settings are always refused. Texts are compared with the earlier ones by digest: in full if
    they are in memory or read again. Of a dataset, the first text is compared and, to continue, the last one done.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> from geofloor.language_models import token_blocks
    >>> words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2}, unk_token="<end>"))
    >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    >>> token_blocks(["a b", "b", "a a a"], tokenizer, length=4)
    array([[1, 2, 0, 2],
           [0, 1, 1, 1]])
    """
    length = check_number("length", length, 2, 2**31 - 1, whole=True)
    if max_blocks is not None:
        max_blocks = check_number("max_blocks", max_blocks, 1, 2**47 // length, whole=True)
    if isinstance(texts, str | bytes):
        raise ValueError(f"texts={texts[:40]!r} is one text; put it in a list.")
    check_iterable("texts", texts, "give a list or another iterable of str, or a dataset")
    check_object("text_column", text_column, str, "give the name of a column")
    if path is not None:
        check_path("path", path)
    if not hasattr(tokenizer, "eos_token_id"):
        raise TypeError(
            f"tokenizer={shown(tokenizer)} is a {type(tokenizer).__name__}; give a tokenizer of transformers."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer has no eos_token to separate documents; set tokenizer.eos_token.")
    wanted = np.inf if max_blocks is None else max_blocks * length
    encode = _encoder(tokenizer)
    documents = _documents(texts, text_column)
    if path is None:
        pieces = [ids for _, ids in _encoded(documents, encode, wanted)]
        n_tokens = _whole(sum(map(len, pieces)), length, wanted)
        return np.concatenate(pieces)[:n_tokens].reshape(-1, length)

    path = check_path("path", path)
    if not path.name:
        raise ValueError(f"path={str(path)!r} is a folder; give the path of a file in it.")
    if os.path.islink(path):  # the target has its other files beside it
        path = Path(os.path.realpath(path))
    first = next(documents, "")
    settings = {
        "tokenizer": _tokenizer_digest(tokenizer),
        "length": length,
        "max_blocks": max_blocks,
        "texts": _text_sha256(first),
    }
    dtype = _smallest_dtype(tokenizer)
    in_memory = isinstance(texts, Sized) and not is_dataset(texts)  # quick to read again
    if not os.path.exists(path) or lock_left(path):  # a finished file needs neither a lock nor write permission
        check_writable("path", path)
        remove_left_behind(path.with_name(f"{path.name}.json"))
        with only_writer(path):
            file = _TokenFile(path, settings, dtype)  # another process may have finished it by now
            if not file.finished:
                if not file.complete:
                    done = file.n_documents
                    rest = file.skip_done(documents, first, texts, text_column) if done else chain([first], documents)
                    file.append(_encoded(rest, encode, wanted - file.n_tokens), wanted)
                elif in_memory:
                    file.compare(_documents(texts, text_column), wanted)
                file.finish()
                return file.open()
    file = _TokenFile(path, settings, dtype)
    if in_memory:
        file.compare(_documents(texts, text_column), wanted)
    return file.open()


# Texts


def _documents(texts: Any, text_column: str, *, start: int = 0) -> Iterator[str]:
    """Yield the texts, checked to be strings; a dataset starts at number `start`."""
    for index, item in enumerate(_column(texts, text_column, start), start):
        text = item if isinstance(item, str) else getattr(item, "text", item)  # such as a Document
        if not isinstance(text, str):
            raise ValueError(f"texts[{index}]={text!r:.60} is no text; leave it out or convert it.")
        yield text


def _column(texts: Any, text_column: str, start: int) -> Iterable[Any]:
    """Return the texts, from a dataset its text column from number `start` on."""
    if not (is_dataset(texts) or is_dataset_stream(texts)):
        if isinstance(texts, Mapping):
            raise ValueError(
                f"texts is a {type(texts).__name__}; choose one entry of the mapping, such as texts['train']."
            )
        return texts
    columns = column_names(texts)
    if columns and text_column not in columns:
        raise ValueError(f"texts has the columns {columns}, and not text_column={text_column!r}; set text_column.")
    return column_values(texts.skip(start) if start else texts, text_column) if columns else ()


# Texts to tokens


def _encoded(
    documents: Iterator[str], encode: Callable[[list[str]], list[np.ndarray]], wanted: float
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield groups of documents with their tokens, until there are as many tokens as wanted."""
    while wanted > 0:
        chunk: list[str] = []
        n_bytes = 0
        # A character gives at most four bytes, hence four tokens. A group stops growing once it may hold enough
        # tokens, so that an iterator is read no further than needed.
        while len(chunk) < _TEXTS_AT_ONCE and n_bytes < min(wanted, _BYTES_AT_ONCE):
            text = next(documents, None)
            if text is None:
                break
            chunk.append(text)
            n_bytes += 4 * len(text) + 1
        if not chunk:
            return
        ids = np.concatenate(encode(chunk))
        wanted -= len(ids)
        yield chunk, ids


def _encoder(tokenizer: Any) -> Callable[[list[str]], list[np.ndarray]]:
    """Make a function from texts to token ids, without truncation, ended by the end-of-text token."""
    bare = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    end = tokenizer.eos_token_id

    def ended(rows: Iterable[list[int]]) -> list[np.ndarray]:
        return [np.asarray([*row, end], dtype=np.int64) for row in rows]

    if getattr(tokenizer, "is_fast", False):
        # The wrapper would take half as much time again. One call through it clears truncation and padding that an
        # earlier call may have left on the backend.
        tokenizer("", **bare)
        backend = tokenizer.backend_tokenizer
        return lambda texts: ended(row.ids for row in backend.encode_batch(texts, add_special_tokens=False))
    return lambda texts: ended(tokenizer(texts, **bare)["input_ids"])


def _smallest_dtype(tokenizer: Any) -> np.dtype:
    """Return uint16 if it holds all ids, else uint32."""
    highest = max([tokenizer.eos_token_id, *tokenizer.get_vocab().values()])
    return np.dtype(np.uint16 if highest <= np.iinfo(np.uint16).max else np.uint32)


def _tokenizer_digest(tokenizer: Any) -> str:
    """Compute a digest of the tokenizer's rules, for a backend without truncation or padding."""
    if getattr(tokenizer, "is_fast", False):
        rules = tokenizer.backend_tokenizer.to_str()
    else:
        rules = f"{type(tokenizer).__name__}:{sorted(tokenizer.get_vocab().items())}"
    return _text_sha256(f"{tokenizer.eos_token_id}:{rules}")


def _extended(digest: str, text: str) -> str:
    """Extend a digest of documents by one more document."""
    return _text_sha256(digest + _text_sha256(text))


def _text_sha256(text: str) -> str:
    """Compute the SHA-256 of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _whole(n_tokens: int, length: int, wanted: float) -> int:
    """Return the number of tokens in whole blocks, at most `wanted`."""
    if n_tokens < length:
        raise ValueError(f"texts hold fewer than length={length} tokens; give more text or shorter blocks.")
    return int(min(n_tokens - n_tokens % length, wanted))


# Tokens to a file


class _TokenFile:
    """A file of blocks while it is written, and JSON beside it with its settings and progress.

    The JSON is written after the tokens that it counts have reached the disk. Tokens beyond them are left from an
    interrupted run, and are written again.

    Parameters
    ----------
    path : Path
        File of the finished blocks.
    settings : dict
        Settings to compare with those of an earlier run.
    dtype : numpy.dtype
        Stored type of the token ids.
    """

    def __init__(self, path: Path, settings: dict[str, Any], dtype: np.dtype) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.part")
        self.notes = path.with_name(f"{path.name}.json")
        self.dtype, self.length = dtype, settings["length"]
        self.state: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "settings": settings,
            "documents": 0,
            "tokens": 0,
            "sha256": hashlib.sha256().hexdigest(),  # of the tokens so far
            "last_text": None,
            "texts": "",  # digest of all documents read so far
            "complete": False,  # all documents are read, and tokens that fill no block are dropped
        }
        self._digest = hashlib.sha256()  # of whole blocks; the tokens after them are in `_rest`
        self._rest = b""
        self.finished = path.exists()
        if self.finished or (self.partial.exists() and self.notes.exists()):
            self._read_state()

    @property
    def n_documents(self) -> int:
        """Documents done."""
        return self.state["documents"]

    @property
    def n_tokens(self) -> int:
        """Tokens written."""
        return self.state["tokens"]

    @property
    def complete(self) -> bool:
        """Whether all documents are read."""
        return self.state["complete"]

    @property
    def _remedy(self) -> str:
        return f"remove '{self.path if self.finished else self.partial}' or give another path"

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"path='{self.path}' {reason}; {self._remedy}.")

    def _read_state(self) -> None:
        if not self.notes.is_file():
            raise self._refused(f"exists without '{self.notes.name}' beside it, which holds its settings")
        state = read_sealed(
            self.notes,
            what="the settings file of token_blocks",
            kind=_FORMAT,
            version=_VERSION,
            entries={
                "settings": schema.mapping,
                "documents": count,
                "tokens": schema.number(0, 2**48, whole=True),
                "sha256": sha256,
                "last_text": schema.optional(sha256),
                "texts": schema.text,
                "complete": schema.flag,
            },
            remedy=self._remedy,
        )
        settings = self.state["settings"]
        other = [name for name, value in settings.items() if state["settings"].get(name) != value]
        if other:
            raise self._refused(f"was made with other values of {', '.join(other)}")
        self.state = state
        if not self.finished:
            self._read_partial()

    def _read_partial(self) -> None:
        """Compare the tokens of an interrupted run with their digest, and continue that digest."""
        start, stop = self._place(self.n_tokens - self.n_tokens % self.length), self._place(self.n_tokens)
        if leaves_folder(self.partial):
            raise self._refused(f"can't be continued: '{self.partial.name}' is a link to a file in another folder")
        if self.partial.stat().st_size < stop:
            raise self._refused(f"is damaged: '{self.partial.name}' is shorter than it was")
        with open(self.partial, "rb") as stream:
            update_digest(self._digest, stream, self._place(0), start)
            self._rest = stream.read(stop - start)
        if self._sha256() != self.state["sha256"]:
            raise self._refused(f"is damaged: '{self.partial.name}' was altered after it was written")

    def _sha256(self) -> str:
        digest = self._digest.copy()
        digest.update(self._rest)
        return digest.hexdigest()

    def compare(self, documents: Iterator[str], wanted: float) -> None:
        """Refuse documents other than those of a finished file."""
        digest = ""
        for text in islice(documents, self.n_documents):
            digest = _extended(digest, text)
        more = self.n_tokens < wanted and next(documents, None) is not None
        if more or digest != self.state["texts"]:
            raise self._refused("was made with other values of texts")

    def skip_done(self, documents: Iterator[str], first: str, texts: Any, text_column: str) -> Iterator[str]:
        """Skip the documents that are already tokenized; `first` has been read from `documents`."""
        if is_dataset(texts) or is_dataset_stream(texts):
            documents = _documents(texts, text_column, start=self.n_documents - 1)
            last = next(documents, None)
            same = last is not None and _text_sha256(last) == self.state["last_text"]
        else:
            digest = _extended("", first)
            for text in islice(documents, self.n_documents - 1):
                digest = _extended(digest, text)
            same = digest == self.state["texts"]
        if not same:
            raise self._refused("was made with other values of texts")
        return documents

    def append(self, chunks: Iterator[tuple[list[str], np.ndarray]], wanted: float) -> None:
        """Append tokens until there are `wanted` in all, and save the progress from time to time."""
        if not self.n_documents:
            for stale in (self.notes, self.partial):  # left from a file that was removed, or a link to another file
                stale.unlink(missing_ok=True)
            self.partial.write_bytes(self._header(0))
        with self._writing() as stream:
            stream.seek(self._place(self.n_tokens))
            stream.truncate()
            n_saved = self.n_tokens
            for texts, ids in chunks:
                kept = ids[: int(min(len(ids), wanted - self.n_tokens))].astype(self.dtype).tobytes()
                stream.write(kept)
                self._add(kept)
                self.state["documents"] += len(texts)
                for text in texts:
                    self.state["texts"] = _extended(self.state["texts"], text)
                self.state["last_text"] = _text_sha256(texts[-1])
                if self.n_tokens - n_saved >= _SAVE_TOKENS:
                    _to_disk(stream)
                    self._save()
                    n_saved = self.n_tokens
            _to_disk(stream)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[BinaryIO]:
        """Open the partial file, and name it in errors of the system, such as a full disk."""
        try:
            with open(self.partial, "r+b") as stream:
                yield stream
        except OSError as error:
            if error.filename is None:
                error.filename = os.fspath(self.partial)
            raise

    def _add(self, tokens: bytes) -> None:
        tokens = self._rest + tokens
        self.state["tokens"] += (len(tokens) - len(self._rest)) // self.dtype.itemsize
        whole = len(tokens) - len(tokens) % (self.length * self.dtype.itemsize)
        self._digest.update(tokens[:whole])
        self._rest = tokens[whole:]

    def _save(self) -> None:
        self.state["sha256"] = self._sha256()
        write_sealed(self.notes, self.state)

    def finish(self) -> None:
        """Turn the partial file into a finished file of blocks."""
        if self.n_tokens < self.length:
            self.partial.unlink()
        self.state["tokens"] = _whole(self.n_tokens, self.length, np.inf)
        self._rest = b""
        self.state["complete"] = True
        self._save()
        with self._writing() as stream:
            stream.write(self._header(self.n_tokens // self.length))
            stream.truncate(self._place(self.n_tokens))
            _to_disk(stream)
        os.replace(self.partial, self.path)
        self.finished = True

    def _header(self, n_blocks: int) -> bytes:
        return npy_header((n_blocks, self.length), self.dtype)

    def _place(self, n_tokens: int) -> int:
        """Return the offset of a token in the file, in bytes."""
        return len(self._header(0)) + n_tokens * self.dtype.itemsize

    def open(self) -> np.memmap:
        """Verify the finished file and map it into memory."""
        shape = self.n_tokens // self.length, self.length
        return map_npy(self.path, shape=shape, dtype=self.dtype, sha256=self.state["sha256"], refused=self._refused)


def _to_disk(stream: BinaryIO) -> None:
    """Wait until all bytes written have reached the disk."""
    stream.flush()
    os.fsync(stream.fileno())
