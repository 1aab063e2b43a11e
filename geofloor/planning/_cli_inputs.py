"""Inputs of the command line: the teacher and its text, checked before anything is loaded."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geofloor.planning._cli_click import Failure, Mistake, one_line

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}  # builders of `datasets`
_COLUMN = "text"
_CHECKED = 2**16  # bytes that tell whether a file is text
_PIECE = 2**20  # characters of a large text file that are tokenized at once
_PATIENCE = 5.0  # seconds that the hub may take to answer


# The teacher


def find_teacher(name: str | None, model_kwargs: Mapping[str, Any] | None) -> tuple[str | Path, bool]:
    """Return the name or folder of the teacher, and whether it is the embedded one.

    Raises
    ------
    Mistake
        If the name can be neither a folder nor a repository.
    Failure
        If it is a repository that is not in the cache, and the hub does not answer.
    """
    from geofloor.datasets._teacher import TEACHER_PATH

    if name is None:
        return TEACHER_PATH, True
    path = Path(name).expanduser()
    if path.is_dir():
        return (TEACHER_PATH, True) if path.resolve() == TEACHER_PATH.resolve() else (path, False)
    if path.is_file():
        gguf = f""" and --model-kwargs '{{"gguf_file": "{path.name}"}}'""" if path.suffix == ".gguf" else ""
        raise Mistake(f"MODEL '{name}' is a file; give its folder '{path.parent}'{gguf}.")
    if name.isdigit():
        raise Mistake(f"MODEL '{name}' is a number; put commas between several, as in --steps 150,300,600.")
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise Mistake(f"MODEL '{name}' is no folder; give the folder of a transformers model, or its name on the hub.")
    _ask_hub(name, model_kwargs or {})
    return name, False


def _ask_hub(name: str, model_kwargs: Mapping[str, Any]) -> None:
    """Refuse a repository that can't be had, since transformers would try for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    where = {key: model_kwargs[key] for key in ("cache_dir", "revision") if key in model_kwargs}
    wanted = str(model_kwargs.get("gguf_file", "config.json"))
    if isinstance(try_to_load_from_cache(name, wanted, **where), str):
        return
    missing = f"MODEL '{name}' is no folder here and is not in the cache of the hub"
    if model_kwargs.get("local_files_only"):
        raise Failure(f"{missing}, and --model-kwargs sets local_files_only.")
    try:
        HfApi().model_info(
            name, revision=model_kwargs.get("revision"), token=model_kwargs.get("token"), timeout=_PATIENCE
        )
    except OfflineModeIsEnabled as error:
        raise Failure(f"{missing}, and HF_HUB_OFFLINE is set.") from error
    except RepositoryNotFoundError as error:
        raise Failure(
            f"MODEL '{name}' is no folder here, and the hub has no such model, or it is private; check the name, or "
            "log in with 'hf auth login'."
        ) from error
    except HfHubHTTPError:
        return  # the hub answers: transformers says best what it refuses
    except Exception as error:  # each version of the hub's client has its own errors of the network
        raise Failure(f"{missing}, and the hub can't be reached ({one_line(str(error))}).") from error


# Its text


def find_texts(files: Sequence[str], *, embedded: bool) -> tuple[Iterable[str], str]:
    """Return the documents, and a sentence that says which text this is.

    Parameters
    ----------
    files : sequence of str
        Files of text, one document each, or tables with a column "text". None stands for the corpus of this machine.
    embedded : bool
        Whether they are for the embedded teacher, which has read the training split of this corpus.

    Raises
    ------
    Mistake
        If a file is missing, empty or not text, or a table has no such column. The start of each file is checked at
        once. Later parts are read as needed.
    """
    if not files:
        from geofloor.datasets import load_local_corpus

        documents = load_local_corpus("test" if embedded else "train")
        which = "held-out Python source of this machine" if embedded else "Python source of this machine"
        advice = "" if embedded else "; give --text like that which students are to be distilled on"
        return (document.text for document in documents), f"Text: {which}{advice}."
    paths = [Path(name).expanduser() for name in files]
    for path in paths:
        _check_file(path)
        if path.suffix.lower() in _TABLES:
            _check_table(path)
    names = f"'{paths[0]}'" if len(paths) == 1 else f"{len(paths):,} files, '{paths[0]}' to '{paths[-1]}'"
    return _documents(paths), f"Text: {names}."


def _check_file(path: Path) -> None:
    """Refuse a file that can't be read or is no text."""
    if path.is_dir():
        raise Mistake(f"--text '{path}' is a folder; give its files, such as {path}/*.txt, and MODEL before --text.")
    try:
        with open(path, "rb") as file:
            start = file.read(_CHECKED)
    except FileNotFoundError as error:
        raise Mistake(f"--text '{path}' is not there; give files of text, and MODEL before --text.") from error
    except OSError as error:
        raise Mistake(f"--text '{path}' can't be read ({error.strerror}).") from error
    if path.suffix.lower() == ".parquet":
        if not start.startswith(b"PAR1"):
            raise Mistake(f"--text '{path}' is no Parquet file.")
        return
    if not start.strip():
        raise Mistake(f"--text '{path}' is empty.")
    with _as_text(path):
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)
    if "\0" in text:
        raise Mistake(f"--text '{path}' is no text: it holds null characters.")


@contextmanager
def _as_text(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise Mistake(f"--text '{path}' is no text in UTF-8 ({error.reason}); convert it.") from error


def _check_table(path: Path) -> None:
    record = next(_records(path), None)
    if record is None:
        raise Mistake(f"--text '{path}' holds no row.")
    if _COLUMN not in record:
        raise Mistake(f"--text '{path}' has no column '{_COLUMN}' among {', '.join(map(repr, record))}; rename one.")
    if not isinstance(record[_COLUMN], str | None):
        raise Mistake(f"--text '{path}' holds no text in the column '{_COLUMN}', but {record[_COLUMN]!r:.40}.")


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table, read as needed."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the error says it
    try:
        yield from datasets.load_dataset(
            _TABLES[path.suffix.lower()], data_files=os.path.abspath(path), split="train", streaming=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise Mistake(f"--text '{path}' can't be read as {path.suffix[1:]} ({one_line(str(error))}).") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _documents(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        if path.suffix.lower() in _TABLES:
            yield from (record[_COLUMN] or "" for record in _records(path))
        else:
            yield from _pieces(path)


def _pieces(path: Path) -> Iterator[str]:
    """Yield a file's text: as one document, or several divided at ends of lines if it is large."""
    with _as_text(path), open(path, encoding="utf-8-sig") as file:
        while piece := file.read(_PIECE):
            yield piece + (file.readline(_PIECE) if len(piece) == _PIECE else "")
