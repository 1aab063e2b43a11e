"""Binary concepts from the local corpus."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from sklearn.utils import Bunch

from geofloor._validation import check_number
from geofloor.datasets._corpus import CORPUS_PACKAGES, check_names, load_local_corpus
from geofloor.datasets._pairs import Example, PairPool, bunch_of_pairs
from geofloor.datasets._source import Function, SourceFile, from_some_line
from geofloor.datasets._text import MIN_CHARACTERS, first_sentence, first_words, hash_of

_PER_FILE = 3  # most examples per class from one file, so that no file dominates a class
_DEEP_LEARNING = ("torch", "transformers")

_CHECKS = re.compile(r"assert|raises|warns|pytest|unittest|mock|\bfail\(|\btest", re.IGNORECASE)
_OWNER = re.compile(r"\b(?:self|cls|super)\b")
_PACKAGE = re.compile(r"torch|transformers|scikit|sklearn|numpy|scipy|pandas|statsmodels|joblib", re.IGNORECASE)
_LICENSE_FILE = re.compile(r"(?:licen[sc]e|notice|copying)[^/]*(?:/[^/]*)?$", re.IGNORECASE)
_LEGAL = re.compile(
    r"copyright|licen[sc]e|warrant|redistribut|liab|permission|disclaim|provided that|hereby|\blaws?\b|royalt|infring",
    re.IGNORECASE,
)


def _code_pieces(file: SourceFile) -> Iterator[tuple[str, int]]:
    if not file.is_test:
        yield from ((file.piece(file.code(node)), 1) for node, _ in file.functions)
        yield from ((text, 0) for text in file.prose())


def _technical_prose(file: SourceFile) -> Iterator[tuple[str, int]]:
    """Yield negatives alone: the positives are not in source files."""
    yield from ((text, 0) for text in file.prose() if not _LEGAL.search(text))


def _questions(file: SourceFile) -> Iterator[tuple[str, int]]:
    for text in file.remarks():
        if text[-1] in "?.":
            yield text.rstrip("?.! "), int(text.endswith("?"))


def _test_code(file: SourceFile) -> Iterator[tuple[str, int]]:
    for node, _ in file.functions:
        if file.is_test == node.name.startswith("test"):
            code = file.code(node)
            end = next((place for place, line in enumerate(code) if _CHECKS.search(line)), len(code))
            yield file.piece(code[:end]), int(file.is_test)


def _number_tables(file: SourceFile) -> Iterator[tuple[str, int]]:
    rest = deque(line for line in file.lines if line.strip() and not line.lstrip().startswith("#"))
    while rest:
        block = [rest.popleft()]
        while rest and sum(map(len, block)) + len(block) + len(rest[0]) <= file.max_characters:
            block.append(rest.popleft())
        text = file.piece(block)
        characters = re.sub(r"\s", "", text)
        share = sum(character.isdigit() for character in characters) / max(len(characters), 1)
        if share >= 0.4 or 0.0 < share <= 0.05:
            yield text, int(share >= 0.4)


def _deep_learning(file: SourceFile) -> Iterator[tuple[str, int]]:
    for text in file.prose():
        if not _PACKAGE.search(text):
            yield text, int(file.package in _DEEP_LEARNING)


def _error_messages(file: SourceFile) -> Iterator[tuple[str, int]]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            message = node.exc.args[0]
            if isinstance(message, ast.Constant) and isinstance(message.value, str):
                yield first_sentence(message.value, file.max_characters), 1
    for docstring in file.docstrings:
        yield first_sentence(docstring.split("\n\n", 1)[0], file.max_characters), 0


def _methods(file: SourceFile) -> Iterator[tuple[str, int]]:
    if file.is_test:
        return
    for node, in_class in file.functions:
        runs: list[list[str]] = [[]]
        for line in file.code(node):
            if _OWNER.search(line):
                runs.append([])
            else:
                runs[-1].append(line)
        yield file.piece(from_some_line(max(runs, key=len), file.max_characters)), int(in_class)


def _annotated(file: SourceFile) -> Iterator[tuple[str, int]]:
    if file.is_test:
        return
    for node, _ in file.functions:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given = [argument.annotation is not None for argument in arguments if argument.arg not in ("self", "cls")]
        inside = (inner for part in node.body for inner in ast.walk(part))
        shows_annotations = any(isinstance(inner, ast.AnnAssign | Function) for inner in inside)
        if given and len(set(given)) == 1 and not shows_annotations:
            yield file.piece(file.code(node)), int(given[0])


class _Concept(NamedTuple):
    """Function from source file to texts and labels, with a description."""

    pieces: Callable[[SourceFile], Iterator[tuple[str, int]]]
    same_package: bool  # of the two texts of a pair
    description: str


_LOCAL: dict[str, _Concept] = {
    "code": _Concept(
        _code_pieces,
        True,
        "Python code (bodies of functions, without docstrings and comments) or prose (paragraphs of docstrings that "
        "are sentences). Punctuation and indentation tell them apart: an easy concept.",
    ),
    "license": _Concept(
        _technical_prose,
        False,
        "License text (passages on rights, warranty or liability from the license files of all installed "
        "distributions; variants of a text count once) or technical prose (paragraphs of docstrings without legal "
        "words). Each passage holds at least one of the legal words by which it was chosen.",
    ),
    "question": _Concept(
        _questions,
        True,
        "A question or a statement: one sentence of a comment that ended in '?' or '.'. The final mark and tags such "
        "as TODO are removed, so that no token gives the label.",
    ),
    "test_code": _Concept(
        _test_code,
        True,
        "Set-up code of a test (a body of test_... in a test file) or library code (a body in another file). Both are "
        "cut before the first line with assert, raises, warns, pytest, unittest, mock, fail( or test; names of "
        "functions are not shown.",
    ),
    "numbers": _Concept(
        _number_tables,
        True,
        "Lines of source with at least 40% digits, or with some but at most 5%. The label is a count of tokens, and "
        "averaged states hold such counts almost directly.",
    ),
    "deep_learning": _Concept(
        _deep_learning,
        False,
        "Docstring prose of torch and transformers, or of the other packages. Paragraphs with the name of a package "
        "are left out. The classes differ by topic and also by the style of their authors.",
    ),
    "error_message": _Concept(
        _error_messages,
        True,
        "The constant string of a raised exception, or the first sentence of a docstring, each without its final mark.",
    ),
    "method": _Concept(
        _methods,
        True,
        "Lines of a method or of a module's function: the longest run of lines in the body without self, cls and "
        "super, from a line chosen by a hash. No token gives the label.",
    ),
    "annotated": _Concept(
        _annotated,
        True,
        "The body of a function with all parameters annotated, or with none. The signature is not shown, and bodies "
        "with annotations or inner functions are left out: no token gives the label.",
    ),
}


def load_concepts(
    concepts: Sequence[str] | None = None,
    *,
    split: str = "train",
    n_per_class: int = 500,
    max_characters: int = 320,
    packages: Sequence[str] = CORPUS_PACKAGES,
) -> Bunch:
    """Build labeled texts for linear probes from the source and docstrings on this machine.

    Nothing is downloaded, and nothing is drawn at random. The same versions of the packages give the same
    texts on every machine, and a smaller `n_per_class` gives the first of them.

    Parameters
    ----------
    concepts : sequence of str, default=None
        Names from the table in the Notes; by default all.
    split : {"train", "test"}, default="train"
        Part of the local corpus, as in `load_local_corpus`. The test part is a twentieth of the corpus
        and has about 50 questions.
    n_per_class : int, default=500
        Number of examples of each of the two classes.
    max_characters : int, default=320
        Maximum length of a text. The embedded teacher has one token per 2.9 characters of source
        (measured), so that 320 characters fit in 128 tokens.
    packages : sequence of str, default=CORPUS_PACKAGES
        Import names of the packages to read, as in `load_local_corpus`.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        For each concept a :class:`~sklearn.utils.Bunch` with

        - ``texts`` : list of str, of length 2 × n_per_class;
        - ``labels`` : ndarray of shape (2 × n_per_class,), int64, alternately 1 and 0;
        - ``groups`` : ndarray of shape (2 × n_per_class,) of str, the file of each text, to hold out whole
          files (`ConceptProbe.fit`); for a license passage its distribution;
        - ``description`` : str, definition of both classes.

    Raises
    ------
    ValueError
        If a concept is unknown, a number is out of range, or a concept has too few examples here.

    See Also
    --------
    pile_concepts : Collect the paper's six concepts from The Pile.
    geofloor.probing.probe_table : Probe several models for all concepts.

    Notes
    -----
    ===============  ===============================================  ==================================
    concept          1                                                0
    ===============  ===============================================  ==================================
    code             bodies of functions                              docstring prose
    license          passages of license files                        docstring prose
    question         sentences of comments, ending in "?"             the same, ending in "."
    test_code        set-up code of tests                             library code
    numbers          source with at least 40% digits                  source with at most 5% digits
    deep_learning    docstring prose of torch and transformers        docstring prose of other packages
    error_message    messages of exceptions                           first sentences of docstrings
    method           lines of methods without self, cls and super     lines of functions, also without
    annotated        bodies of functions with annotated parameters    bodies of functions without
    ===============  ===============================================  ==================================

    Each positive example is paired with a negative one of about its length (within a third). Both come
    from the same package, except for license and deep_learning. So neither length nor package tells the
    classes apart. One file gives at most three examples per class, and texts with the same first 60
    letters and digits count once.

    License passages come from all installed distributions, whatever `split` and `packages`, so that both
    splits share them.

    Some tokens would give the label away. They are removed for question, test_code, deep_learning, method
    and annotated. The concepts code, license and numbers consist of such tokens and stay easy. The
    descriptions have the details.

    There is no concept of natural language, because the corpus has too little text in languages other than English.

    Examples
    --------
    >>> from geofloor.datasets import load_concepts
    >>> data = load_concepts(["code"], n_per_class=2, packages=["joblib"])
    >>> data.code.labels
    array([1, 0, 1, 0])
    >>> len(data.code.texts), max(map(len, data.code.texts)) <= 320
    (4, True)
    """
    chosen = list(_LOCAL) if concepts is None else check_names("concepts", concepts, tuple(_LOCAL))
    n_per_class = check_number("n_per_class", n_per_class, 1, whole=True)
    max_characters = check_number("max_characters", max_characters, MIN_CHARACTERS, whole=True)
    pools = {name: PairPool(_LOCAL[name].same_package, n_per_class) for name in chosen}
    if "license" in pools:
        for text, distribution in sorted(_license_passages(max_characters), key=lambda passage: hash_of(passage[0])):
            pools["license"].add(Example(text, distribution, 1), "")
    for document in load_local_corpus(split, kinds=["source"], packages=packages, max_characters_per_package=None):
        if all(pool.full for pool in pools.values()):
            break
        file = SourceFile(document.name, document.text, max_characters)
        for name, pool in pools.items():
            if not pool.full:
                for example in _examples(name, file):
                    pool.add(example, file.package)
    descriptions = {name: _LOCAL[name].description for name in chosen}
    return bunch_of_pairs(pools, descriptions, n_per_class, "read the other split or more packages")


def _examples(concept: str, file: SourceFile) -> Iterator[Example]:
    """Yield up to three examples per class, spread over the file by a hash."""
    by_label: dict[int, set[str]] = defaultdict(set)
    for text, label in _LOCAL[concept].pieces(file):
        if text:
            by_label[label].add(text)
    for label, texts in sorted(by_label.items()):
        for text in islice(sorted(texts, key=hash_of), _PER_FILE):
            yield Example(text, file.name, label)


def _license_passages(max_characters: int) -> Iterator[tuple[str, str]]:
    """Yield passages of the license files of all installed distributions, each with its distribution."""
    distributions = {each.metadata["Name"] or "": each for each in importlib.metadata.distributions()}
    for name in sorted(distributions):
        for path in sorted(distributions[name].files or (), key=str):
            if _LICENSE_FILE.search(str(path)) and path.suffix in ("", ".txt", ".md", ".rst"):
                try:
                    text = path.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                for passage in _passages(text, max_characters):
                    if len(passage) >= MIN_CHARACTERS and _LEGAL.search(passage):
                        yield passage, name


def _passages(text: str, max_characters: int) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        rest = " ".join(paragraph.split()).strip("*-=# ")
        while rest:
            passage = first_words(rest, max_characters)
            yield passage
            rest = rest[len(passage) :].lstrip()
