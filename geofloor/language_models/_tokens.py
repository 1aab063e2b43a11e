"""From texts to blocks of tokens, in memory or in a file."""

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
_BYTES_AT_ONCE = 2**24  # and no more than this of them, or one text
_SAVE_TOKENS = 2**22  # tokens between notes of how far a file is
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
    texts : iterable of str, datasets.Dataset or datasets.IterableDataset
        Documents; an iterator is read only as far as needed.
    tokenizer : PreTrainedTokenizerBase
        A ``transformers`` tokenizer with an end-of-text token.
    length : int
        Tokens a block. What is left over at the end is dropped.
    max_blocks : int or None, default=None
        Stop after this many blocks.
    path : str, path or None, default=None
        A ``.npy`` file to write the blocks to, so that they need not fit into memory. Interrupted, the same call
        goes on from where it was, to the same bytes. A finished file is verified and opened; of a dataset or an
        iterator only the first text is read then. While one process writes to a path, others wait for it.
    text_column : str, default="text"
        Column of a dataset that holds the text. The others are not read.

    Returns
    -------
    tokens : ndarray of shape (n_sequences, length), int64
        Token ids. With `path` a read-only memory map of uint16, or uint32 if the vocabulary is larger.

    Raises
    ------
    ValueError
        If `length` is below 2, the tokenizer has no end-of-text token, the texts give no block or one of them is
        no text; or if `path` was made from other texts or with other settings, or was altered.
    TypeError
        If an argument is of a wrong kind.

    Notes
    -----
    No special token is added but the end-of-text token after each document, so a block may begin
    anywhere in a document, as in the pre-training of most causal language models.

    Text files are texts as well, ``(file.read_text() for file in sorted(folder.glob("*.txt")))``, and so is a
    stream of The Pile, of which nothing but the tokens is kept on disk::

        pile = datasets.load_dataset("monology/pile-uncopyrighted", split="train", streaming=True)
        tokens = token_blocks(pile, tokenizer, length=2048, max_blocks=150_000, path="pile.npy")

    Beside the file lies another, ``pile.npy.json``, that says what it was made with and has the SHA-256 of the
    tokens. While it is being written, ``pile.npy.part`` holds its tokens, and ``.pile.npy.lock`` makes other
    processes wait, such as those that ``torchrun`` starts: the first one writes, and all open the same file. File
    systems without locks, and Windows, take one process at a time.

    To go on, a dataset skips the documents that are done; from any other iterable they are read and dropped, so
    give an iterator anew, from its start. Other settings are refused in any case. Texts in memory are compared in
    full, and so are those that are read and dropped. Of a dataset, the first text is compared and, to go on, the
    last that is done.

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
        raise ValueError("tokenizer has no eos_token, which separates documents; set tokenizer.eos_token.")
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
    if os.path.islink(path):  # the file and what lies beside it are used where they are
        path = Path(os.path.realpath(path))
    first = next(documents, "")
    settings = {
        "tokenizer": _tokenizer_digest(tokenizer),
        "length": length,
        "max_blocks": max_blocks,
        "texts": _digest(first),
    }
    dtype = _smallest_dtype(tokenizer)
    in_memory = isinstance(texts, Sized) and not is_dataset(texts)  # and so read in no time
    if not os.path.exists(path) or lock_left(path):  # else it needs no lock, nor a folder that can be written to
        check_writable("path", path)
        remove_left_behind(path.with_name(f"{path.name}.json"))
        with only_writer(path):
            file = _TokenFile(path, settings, dtype)  # which another process may have finished by now
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
    """Texts, of a dataset those from number `start` on, each checked to be one."""
    for index, text in enumerate(_column(texts, text_column, start), start):
        if not isinstance(text, str):
            raise ValueError(f"texts[{index}]={text!r:.60} is no text; leave it out or convert it.")
        yield text


def _column(texts: Any, text_column: str, start: int) -> Iterable[Any]:
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
    """Some documents at a time and their tokens, until there are as many tokens as wanted."""
    while wanted > 0:
        chunk: list[str] = []
        n_bytes = 0
        # A character is at most four bytes, hence four tokens: less than what is wanted is safe to read at once.
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
    """A function from texts to their token ids, whole and without special tokens but the end of text."""
    bare = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    end = tokenizer.eos_token_id

    def ended(rows: Iterable[list[int]]) -> list[np.ndarray]:
        return [np.asarray([*row, end], dtype=np.int64) for row in rows]

    if getattr(tokenizer, "is_fast", False):
        # Past the wrapper is half as much time again; one call through it clears the truncation and
        # padding that an earlier call may have left on the backend.
        tokenizer("", **bare)
        backend = tokenizer.backend_tokenizer
        return lambda texts: ended(row.ids for row in backend.encode_batch(texts, add_special_tokens=False))
    return lambda texts: ended(tokenizer(texts, **bare)["input_ids"])


def _smallest_dtype(tokenizer: Any) -> np.dtype:
    """uint16, or uint32 if ids go beyond it."""
    highest = max([tokenizer.eos_token_id, *tokenizer.get_vocab().values()])
    return np.dtype(np.uint16 if highest <= np.iinfo(np.uint16).max else np.uint32)


def _tokenizer_digest(tokenizer: Any) -> str:
    """Digest of all that decides on tokens; a backend must have no truncation or padding."""
    if getattr(tokenizer, "is_fast", False):
        rules = tokenizer.backend_tokenizer.to_str()
    else:
        rules = f"{type(tokenizer).__name__}:{sorted(tokenizer.get_vocab().items())}"
    return _digest(f"{tokenizer.eos_token_id}:{rules}")


def _chained(digest: str, text: str) -> str:
    """Digest of all documents so far and one more, which needs nothing but the digest before."""
    return _digest(digest + _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _whole(n_tokens: int, length: int, wanted: float) -> int:
    """How many of the tokens go into blocks."""
    if n_tokens < length:
        raise ValueError(f"texts hold fewer than length={length} tokens; give more text or shorter blocks.")
    return int(min(n_tokens - n_tokens % length, wanted))


# Tokens to a file


class _TokenFile:
    """A file of blocks in the making, and JSON beside it: what it is made of, and how far it is.

    JSON is written when the tokens that it counts have reached the disk. Tokens beyond them are of a run that
    was stopped, and are written again.
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
            "sha256": hashlib.sha256().hexdigest(),  # of the tokens
            "last_text": None,
            "texts": "",  # digest of all documents that were read
            "complete": False,  # all documents have been read, and tokens that fill no block are left out
        }
        self._digest = hashlib.sha256()  # of whole blocks; what is left of the tokens is in `_rest`
        self._rest = b""
        self.finished = path.exists()
        if self.finished or (self.partial.exists() and self.notes.exists()):
            self._read_state()

    @property
    def n_documents(self) -> int:
        return self.state["documents"]

    @property
    def n_tokens(self) -> int:
        return self.state["tokens"]

    @property
    def complete(self) -> bool:
        return self.state["complete"]

    @property
    def _remedy(self) -> str:
        return f"remove '{self.path if self.finished else self.partial}' or give another path"

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"path='{self.path}' {reason}; {self._remedy}.")

    def _read_state(self) -> None:
        if not self.notes.is_file():
            raise self._refused(f"is there, and no '{self.notes.name}' beside it tells what it was made of")
        state = read_sealed(
            self.notes,
            what="what token_blocks writes beside its tokens",
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
        """Compare the tokens that are there with their digest, and make ready to go on with it."""
        start, stop = self._place(self.n_tokens - self.n_tokens % self.length), self._place(self.n_tokens)
        if leaves_folder(self.partial):
            raise self._refused(f"can't go on: '{self.partial.name}' is a link to a file in another folder")
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
        """Refuse documents that are not those of a finished file."""
        digest = ""
        for text in islice(documents, self.n_documents):
            digest = _chained(digest, text)
        more = self.n_tokens < wanted and next(documents, None) is not None
        if more or digest != self.state["texts"]:
            raise self._refused("was made with other values of texts")

    def skip_done(self, documents: Iterator[str], first: str, texts: Any, text_column: str) -> Iterator[str]:
        """Skip the documents that are already tokenized; `first` has been read from `documents`."""
        if is_dataset(texts) or is_dataset_stream(texts):
            documents = _documents(texts, text_column, start=self.n_documents - 1)
            last = next(documents, None)
            same = last is not None and _digest(last) == self.state["last_text"]
        else:
            digest = _chained("", first)
            for text in islice(documents, self.n_documents - 1):
                digest = _chained(digest, text)
            same = digest == self.state["texts"]
        if not same:
            raise self._refused("was made with other values of texts")
        return documents

    def append(self, chunks: Iterator[tuple[list[str], np.ndarray]], wanted: float) -> None:
        """Write up to `wanted` tokens in all, and note from time to time how far they go."""
        if not self.n_documents:
            for stale in (self.notes, self.partial):  # of a file that was removed, or a link to one elsewhere
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
                    self.state["texts"] = _chained(self.state["texts"], text)
                self.state["last_text"] = _digest(texts[-1])
                if self.n_tokens - n_saved >= _SAVE_TOKENS:
                    _to_disk(stream)
                    self._save()
                    n_saved = self.n_tokens
            _to_disk(stream)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[BinaryIO]:
        """Open the part; an error of the system, such as of a full disk, names it."""
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
        """Make it a file of blocks."""
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
        """Bytes up to a token."""
        return len(self._header(0)) + n_tokens * self.dtype.itemsize

    def open(self) -> np.memmap:
        shape = self.n_tokens // self.length, self.length
        return map_npy(self.path, shape=shape, dtype=self.dtype, sha256=self.state["sha256"], refused=self._refused)


def _to_disk(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
