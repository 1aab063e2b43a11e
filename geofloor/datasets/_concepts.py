"""Texts with a binary concept each, for linear probes: from the local corpus, and from The Pile."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import math
import re
import textwrap
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import Bunch

from geofloor._validation import check_iterable, check_number, shown
from geofloor.datasets._corpus import CORPUS_PACKAGES, check_names, load_local_corpus, parse

_MIN_CHARACTERS = 80  # of a piece of code or a paragraph
_MIN_SENTENCE = 24
_PER_FILE = 3  # examples of a class that a file may give, so that no file is a class of its own
_SAME_START = 60  # letters and digits; texts that agree on them are variants of one text
_DEEP_LEARNING = ("torch", "transformers")
_Function = ast.FunctionDef | ast.AsyncFunctionDef

_HEADING = re.compile(r"^[A-Z]\w*(?: \w+)?\s?:|\b(?:Args|Arguments|Parameters|Returns|Raises|Examples?):|-{3}|={3}|>>>")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z(\"'`])")
_TAG = re.compile(r"^(?:TODO|FIXME|XXX|NOTE|HACK)\b(?:\([^)]*\))?[:\s-]*", re.IGNORECASE)
_CHECKS = re.compile(r"assert|raises|warns|pytest|unittest|mock|\bfail\(|\btest", re.IGNORECASE)
_OWNER = re.compile(r"\b(?:self|cls|super)\b")
_PACKAGE = re.compile(r"torch|transformers|scikit|sklearn|numpy|scipy|pandas|statsmodels|joblib", re.IGNORECASE)
_LICENCE_FILE = re.compile(r"(?:licen[sc]e|notice|copying)[^/]*(?:/[^/]*)?$", re.IGNORECASE)
_COPYRIGHT = re.compile(
    r"copyright|licen[sc]e|warrant|redistribut|liab|permission|disclaim|provided that|hereby|\blaws?\b|royalt|infring",
    re.IGNORECASE,
)


class _Example(NamedTuple):
    text: str
    group: str
    label: int


# The local corpus


class _File:
    """A source file, parsed at most once for all concepts."""

    def __init__(self, name: str, source: str, max_characters: int) -> None:
        self.name, self.max_characters = name, max_characters
        self.package = name.split("/", 1)[0]
        self.source, self.lines = source, source.splitlines()
        self.is_test = _is_test(name)

    @cached_property
    def tree(self) -> ast.Module:
        return parse(self.source)

    @cached_property
    def functions(self) -> list[tuple[_Function, bool]]:
        return list(_functions(self.tree))

    @cached_property
    def docstrings(self) -> list[str]:
        return [text for node in ast.walk(self.tree) if (text := _docstring(node))]

    def code(self, node: _Function) -> list[str]:
        """Lines of a function's body without its docstring and comments on lines of their own."""
        body = node.body[1:] if ast.get_docstring(node, clean=False) else node.body
        if not body:
            return []
        lines = self.lines[body[0].lineno - 1 : node.end_lineno]
        return textwrap.dedent(
            "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
        ).splitlines()

    def piece(self, lines: Sequence[str]) -> str:
        """The first of these lines that fit, or nothing if they are too short."""
        return _long_enough(_first_lines(textwrap.dedent("\n".join(lines)).splitlines(), self.max_characters))

    def prose(self) -> Iterator[str]:
        """Paragraphs of docstrings that are sentences."""
        for docstring in self.docstrings:
            for paragraph in re.split(r"\n\s*\n", docstring):
                text = " ".join(paragraph.split())
                if _is_prose(text):
                    yield _first_words(text, self.max_characters)

    def remarks(self) -> Iterator[str]:
        """Sentences of comments, with their final mark and without tags such as TODO."""
        block: list[str] = []
        for line in [*self.lines, ""]:
            stripped = line.strip()
            if stripped.startswith("#"):
                block.append(stripped.lstrip("#!: "))
                continue
            for sentence in _SENTENCE_END.split(" ".join(block)) if block else ():
                text = _TAG.sub("", " ".join(sentence.split()))
                if _is_sentence(text) and len(text) <= self.max_characters:
                    yield text
            block = []


def _code_pieces(file: _File) -> Iterator[tuple[str, int]]:
    if not file.is_test:
        yield from ((file.piece(file.code(node)), 1) for node, _ in file.functions)
        yield from ((text, 0) for text in file.prose())


def _questions(file: _File) -> Iterator[tuple[str, int]]:
    for text in file.remarks():
        if text[-1] in "?.":
            yield text.rstrip("?.! "), int(text.endswith("?"))


def _test_code(file: _File) -> Iterator[tuple[str, int]]:
    for node, _ in file.functions:
        if file.is_test == node.name.startswith("test"):
            code = file.code(node)
            end = next((place for place, line in enumerate(code) if _CHECKS.search(line)), len(code))
            yield file.piece(code[:end]), int(file.is_test)


def _number_tables(file: _File) -> Iterator[tuple[str, int]]:
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


def _deep_learning(file: _File) -> Iterator[tuple[str, int]]:
    for text in file.prose():
        if not _PACKAGE.search(text):
            yield text, int(file.package in _DEEP_LEARNING)


def _error_messages(file: _File) -> Iterator[tuple[str, int]]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            message = node.exc.args[0]
            if isinstance(message, ast.Constant) and isinstance(message.value, str):
                yield _one_sentence(message.value, file.max_characters), 1
    for docstring in file.docstrings:
        yield _one_sentence(docstring.split("\n\n", 1)[0], file.max_characters), 0


def _methods(file: _File) -> Iterator[tuple[str, int]]:
    if file.is_test:
        return
    for node, in_class in file.functions:
        runs: list[list[str]] = [[]]
        for line in file.code(node):
            if _OWNER.search(line):
                runs.append([])
            else:
                runs[-1].append(line)
        yield file.piece(_from_some_line(max(runs, key=len), file.max_characters)), int(in_class)


def _annotated(file: _File) -> Iterator[tuple[str, int]]:
    if file.is_test:
        return
    for node, _ in file.functions:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given = [argument.annotation is not None for argument in arguments if argument.arg not in ("self", "cls")]
        inside = (inner for part in node.body for inner in ast.walk(part))
        says_itself = any(isinstance(inner, ast.AnnAssign | _Function) for inner in inside)
        if given and len(set(given)) == 1 and not says_itself:
            yield file.piece(file.code(node)), int(given[0])


class _Concept(NamedTuple):
    pieces: Callable[[_File], Iterator[tuple[str, int]]] | None
    same_package: bool  # pairs of the two classes come from one package
    description: str


_LOCAL: dict[str, _Concept] = {
    "code": _Concept(
        _code_pieces,
        True,
        "Python code (bodies of functions, without docstrings and comments) or prose (paragraphs of docstrings that "
        "are sentences). Punctuation and indentation tell them apart: an easy concept.",
    ),
    "licence": _Concept(
        None,
        False,
        "Licence text (passages of the licence files of all installed distributions that speak of rights, warranty or "
        "liability; variants of one text count once) or technical prose (paragraphs of docstrings that do not). The "
        "passages are chosen by legal words, some of which stand in each of them.",
    ),
    "question": _Concept(
        _questions,
        True,
        "A question or a statement: one sentence of a comment that ended in '?' or '.'. The final mark and tags such "
        "as TODO are taken off, so that no token tells.",
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
        "Lines of source of which at least 40% of the characters are digits, or at most 5% and not none. The label is "
        "a count of tokens, which averaged states hold almost directly.",
    ),
    "deep_learning": _Concept(
        _deep_learning,
        False,
        "Docstring prose of torch and transformers, or of the other packages. Paragraphs that name a package are left "
        "out. A topic, and the habits of the authors with it.",
    ),
    "error_message": _Concept(
        _error_messages,
        True,
        "The constant string that an exception is raised with, or the first sentence of a docstring, each without its "
        "final mark.",
    ),
    "method": _Concept(
        _methods,
        True,
        "Lines of a method or of a function of a module: the longest run of lines in the body that has none of self, "
        "cls and super, from a line chosen by a hash. The label is nowhere in the text.",
    ),
    "annotated": _Concept(
        _annotated,
        True,
        "The body of a function all of whose parameters are annotated, or none. The signature is not shown, and bodies "
        "with annotations or functions in them are left out: the label is nowhere in the text.",
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
    """Build labelled texts for linear probes from the source and docstrings on this machine.

    Nothing is downloaded, and nothing is drawn at random: with the same versions of the packages every
    machine gets the same texts, and of fewer examples a class the same first ones.

    Parameters
    ----------
    concepts : sequence of str, default=None
        Names from the list in the Notes; by default all.
    split : {"train", "test"}, default="train"
        Part of the local corpus, as in `load_local_corpus`. The held-out part is a twentieth of it and
        has about 50 questions.
    n_per_class : int, default=500
        Positive examples of each concept, and as many negative ones.
    max_characters : int, default=320
        Longest text. The embedded teacher has a token for about 2.9 characters of source, so these
        fit in 128 tokens.
    packages : sequence of str, default=CORPUS_PACKAGES
        Import names of the packages to read, as in `load_local_corpus`.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        For each concept a :class:`~sklearn.utils.Bunch` with

        - ``texts`` : list of str, of length 2 × n_per_class;
        - ``labels`` : ndarray of shape (2 × n_per_class,), int64, 1 and 0 in turn;
        - ``groups`` : ndarray of shape (2 × n_per_class,) of str, the file that each text is from, so that
          a probe can be tested on other files (`ConceptProbe.fit`);
        - ``description`` : str, how both classes were made.

    Raises
    ------
    ValueError
        If a concept is unknown, a number is out of range, or a concept has fewer examples here.

    See Also
    --------
    pile_concepts : The paper's six concepts.
    geofloor.probing.probe_table : Probes for all concepts on the states of several models.

    Notes
    -----
    ===============  ===============================================  ==================================
    concept          1                                                0
    ===============  ===============================================  ==================================
    code             bodies of functions                              docstring prose
    licence          passages of licence files                        docstring prose
    question         sentences of comments that ended in "?"          sentences that ended in "."
    test_code        set-up code of tests                             library code
    numbers          source that is 40% digits or more                source that is 5% digits or less
    deep_learning    docstring prose of torch and transformers        docstring prose of other packages
    error_message    what exceptions are raised with                  first sentences of docstrings
    method           lines of methods without self, cls and super     lines of functions, also without
    annotated        bodies of functions with annotated parameters    bodies of functions without
    ===============  ===============================================  ==================================

    Each positive example has a negative one of about its length (within a third), and of its package but
    for licence and deep_learning, so that neither tells the classes apart. A file gives at most three
    examples to a class, and texts with the same first 60 letters and digits count once. Tokens that
    would give the label away are taken out where that is possible (question, test_code,
    deep_learning, method, annotated); where the concept is a matter of such tokens it stays easy
    (code, licence, numbers). The descriptions have the details.

    There is no concept of language: the corpus has too little text that is not English.

    Examples
    --------
    >>> from geofloor.datasets import load_concepts
    >>> data = load_concepts(["code"], n_per_class=2, packages=["joblib"])
    >>> data.code.labels
    array([1, 0, 1, 0])
    >>> len(data.code.texts), max(map(len, data.code.texts)) <= 320
    (4, True)
    """
    chosen = _chosen(concepts, _LOCAL)
    n_per_class = check_number("n_per_class", n_per_class, 1, whole=True)
    max_characters = check_number("max_characters", max_characters, _MIN_CHARACTERS, whole=True)
    pools = {name: _Pool(_LOCAL[name].same_package, n_per_class) for name in chosen}
    if "licence" in pools:
        for text, distribution in sorted(_licence_passages(max_characters), key=lambda passage: _hash(passage[0])):
            pools["licence"].add(_Example(text, distribution, 1), "")
    for document in load_local_corpus(split, kinds=["source"], packages=packages, max_characters_per_package=None):
        if all(pool.full for pool in pools.values()):
            break
        file = _File(document.name, document.text, max_characters)
        for name, pool in pools.items():
            if not pool.full:
                for example in _examples(name, file):
                    pool.add(example, file.package)
    descriptions = {name: _LOCAL[name].description for name in chosen}
    return _bunch(pools, descriptions, n_per_class, "read the other split or more packages")


def _examples(concept: str, file: _File) -> Iterator[_Example]:
    """Up to three examples a class, chosen by a hash so that they come from anywhere in the file."""
    find = _LOCAL[concept].pieces
    pieces = ((text, 0) for text in file.prose() if not _COPYRIGHT.search(text)) if find is None else find(file)
    by_label: dict[int, set[str]] = defaultdict(set)
    for text, label in pieces:
        if text:
            by_label[label].add(text)
    for label, texts in sorted(by_label.items()):
        for text in islice(sorted(texts, key=_hash), _PER_FILE):
            yield _Example(text, file.name, label)


class _Pool:
    """Pairs of a positive and a negative example of about one length, and of one package if asked for."""

    def __init__(self, same_package: bool, n_pairs: int) -> None:
        self._same_package, self._n_pairs = same_package, n_pairs
        self._waiting: dict[Any, tuple[deque[_Example], deque[_Example]]] = defaultdict(lambda: (deque(), deque()))
        self._seen: set[str] = set()
        self.pairs: list[tuple[_Example, _Example]] = []

    @property
    def full(self) -> bool:
        return len(self.pairs) >= self._n_pairs

    def add(self, example: _Example, package: str) -> None:
        start = re.sub(r"\W+", "", example.text.lower())[:_SAME_START]
        if self.full or start in self._seen:
            return
        length = round(3 * math.log2(len(example.text)))  # classes a quarter wide
        waiting = self._waiting[length, package if self._same_package else ""]
        if waiting[1 - example.label]:
            partner = waiting[1 - example.label].popleft()
            self.pairs.append((example, partner) if example.label else (partner, example))
        elif len(waiting[example.label]) < self._n_pairs:  # more can't be used, and a stream has no end of them
            waiting[example.label].append(example)
        else:
            return
        self._seen.add(start)


def _bunch(pools: Mapping[str, _Pool], descriptions: Mapping[str, str], n_per_class: int, remedy: str) -> Bunch:
    found = Bunch()
    for name, pool in pools.items():
        if not pool.full:
            raise ValueError(
                f"n_per_class={n_per_class}, but {name!r} has {len(pool.pairs)} examples a class here; "
                f"ask for fewer, leave the concept out, or {remedy}."
            )
        examples = [example for pair in pool.pairs for example in pair]
        found[name] = Bunch(
            texts=[example.text for example in examples],
            labels=np.array([example.label for example in examples], dtype=np.int64),
            groups=np.array([example.group for example in examples]),
            description=descriptions[name],
        )
    return found


def _licence_passages(max_characters: int) -> Iterator[tuple[str, str]]:
    """Passages of the licence files of all installed distributions."""
    distributions = {each.metadata["Name"] or "": each for each in importlib.metadata.distributions()}
    for name in sorted(distributions):
        for path in sorted(distributions[name].files or (), key=str):
            if _LICENCE_FILE.search(str(path)) and path.suffix in ("", ".txt", ".md", ".rst"):
                try:
                    text = path.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                for passage in _passages(text, max_characters):
                    if len(passage) >= _MIN_CHARACTERS and _COPYRIGHT.search(passage):
                        yield passage, name


def _passages(text: str, max_characters: int) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        rest = " ".join(paragraph.split()).strip("*-=# ")
        while rest:
            passage = _first_words(rest, max_characters)
            yield passage
            rest = rest[len(passage) :].lstrip()


# The Pile

_FRENCH = re.compile(
    r"\b(?:les|des|est|dans|pour|qui|pas|sur|avec|du|et|nous|vous|aux|sont|cette|une|au|été|être|mais|comme|leurs?|ces|"
    r"plus|fait|peut|aussi|très|même|ont|ou|où)\b"
)
_SPORTS = re.compile(
    r"\b(?:athletes?|baseball|basketball|batting|championships?|cricket|fifa|football(?:er)?|goalkeeper|halftime|hockey|"
    r"innings?|league|linebacker|mlb|nba|nfl|nhl|offseason|olympics?|pitcher|playoffs?|quarterback|rebounds|rugby|"
    r"(?:semi|quarter)finals?|soccer|striker|stadium|tennis|touchdowns?|tournaments?|uefa)\b"
)
_EVERYDAY = frozenset(
    {
        *("Pile-CC", "OpenWebText2", "Wikipedia (en)", "StackExchange", "HackerNews", "OpenSubtitles", "Books3"),
        *("BookCorpus2", "YoutubeSubtitles", "Ubuntu IRC", "Gutenberg (PG-19)", "Enron Emails"),
    }
)
_WEB = frozenset(("Pile-CC", "OpenWebText2", "Wikipedia (en)"))
_MEDICAL = frozenset(("PubMed Abstracts", "PubMed Central", "NIH ExPorter"))
_TECHNICAL = frozenset(("StackExchange", "HackerNews", "Ubuntu IRC", "ArXiv", "DM Mathematics"))


def _pile_question(text: str, subset: str) -> tuple[str, int] | None:
    if subset not in _EVERYDAY:
        return None
    label = int(_hash(text), 16) % 2  # a document gives one sentence, of one kind or the other
    for sentence in _SENTENCE_END.split(" ".join(text.split()))[1:]:  # the first may have lost its beginning
        if sentence[-1] == ".?"[label] and _is_sentence(sentence):
            return sentence.rstrip("?.! "), label
    return None


def _pile_french(text: str, _: str) -> tuple[str, int] | None:
    n_words = len(re.findall(r"[^\W\d_]+", text))
    marks = _FRENCH.findall(text.lower())
    share = len(marks) / max(n_words, 1)
    if share >= 0.12 and len(set(marks)) >= 4:
        return text, 1
    return (text, 0) if n_words and share < 0.02 else None


def _pile_sports(text: str, subset: str) -> tuple[str, int] | None:
    if subset not in _WEB:
        return None
    terms = _SPORTS.findall(text.lower())
    if len(set(terms)) >= 3:
        return text, 1
    return None if terms else (text, 0)


def _of_subsets(positive: Collection[str], neither: Collection[str] = ()) -> Callable[[str, str], Any]:
    return lambda text, subset: None if subset in neither else (text, int(subset in positive))


class _PileConcept(NamedTuple):
    labelled: Callable[[str, str], tuple[str, int] | None]  # of a passage and its subset
    description: str


_PILE: dict[str, _PileConcept] = {
    "question": _PileConcept(
        _pile_question,
        "A sentence that ended in '?' or '.', without that mark, from subsets of everyday language.",
    ),
    "french": _PileConcept(
        _pile_french,
        "A passage in which at least 12% of the words, and four different ones, are French function words, or under "
        "2%; from all subsets, EuroParl's other languages among the negatives.",
    ),
    "code": _PileConcept(
        _of_subsets({"Github"}, _TECHNICAL),
        "A passage of Github, or of another subset that is not likely to hold code or formulas.",
    ),
    "sports": _PileConcept(
        _pile_sports,
        "A web or encyclopaedia passage with at least three different terms of sports, or with none. These terms are "
        "in every positive example.",
    ),
    "legal": _PileConcept(
        _of_subsets({"FreeLaw"}, {"USPTO Backgrounds", "EuroParl"}),
        "A passage of FreeLaw, or of another subset but patents and debates of parliament.",
    ),
    "medical": _PileConcept(
        _of_subsets(_MEDICAL),
        "A passage of PubMed Abstracts, PubMed Central or NIH ExPorter, or of another subset.",
    ),
}


def pile_concepts(
    dataset: Iterable[Mapping[str, Any]],
    concepts: Sequence[str] | None = None,
    *,
    n_per_class: int = 2000,
    max_characters: int = 1500,
    max_rows: int | None = None,
) -> Bunch:
    """Collect examples of the paper's six concepts from rows of The Pile.

    The paper names the concepts and says that 2,000 positive and as many negative examples of each
    come from The Pile [1]_; it does not say how they were told apart. The definitions are ours.

    Parameters
    ----------
    dataset : datasets.Dataset, datasets.IterableDataset or iterable of dict
        Rows with the columns ``text`` and ``meta``, a dict with ``pile_set_name``. It is read from the
        start until all concepts have their examples, and should be shuffled as The Pile is.
    concepts : sequence of {"question", "french", "code", "sports", "legal", "medical"}, default=None
        Concepts to collect; by default all.
    n_per_class : int, default=2000
        Positive examples of each concept, and as many negative ones.
    max_characters : int, default=1500
        Longest text. Pythia has a token for about four characters of English and three of code, so
        these fit in 512 tokens.
    max_rows : int, default=None
        Read no more rows than this.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        As of `load_concepts`; groups are numbers of rows, of which each gives one example.

    Raises
    ------
    ValueError
        If a concept is unknown, a number is out of range, a row lacks a column, or the rows end
        before all concepts have their examples.

    See Also
    --------
    load_concepts : Concepts from text that every installation has.

    Notes
    -----
    ==========  ==============================================  ==========================================
    concept     1                                               0
    ==========  ==============================================  ==========================================
    question    a sentence that ended in "?"                    a sentence that ended in "."
    french      12% French function words or more, 4 of them    under 2%, whatever the language
    code        Github                                          other subsets, without StackExchange,
                                                                HackerNews, Ubuntu IRC, ArXiv and
                                                                DM Mathematics
    sports      three different terms of sports                 none of the terms
    legal       FreeLaw                                         other subsets, without USPTO Backgrounds
                                                                and EuroParl
    medical     PubMed Abstracts, PubMed Central,               other subsets
                NIH ExPorter
    ==========  ==============================================  ==========================================

    Questions come from subsets of everyday language and lose their final mark, since with it the
    token itself would tell. Sports has no subset of its own: it is told by its terms in Pile-CC,
    OpenWebText2 and Wikipedia, so that the terms are in every positive example and in no negative one.
    A long document gives one passage, from a place chosen by a hash of the document: headers would tell
    the subset. Each positive example has a negative one of about its length.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037,
       Section 7.1.

    Examples
    --------
    The Pile itself is read as a stream, of which nothing is kept on disk::

        pile = datasets.load_dataset("monology/pile-uncopyrighted", split="train", streaming=True)
        data = pile_concepts(pile)

    >>> from geofloor.datasets import pile_concepts
    >>> rows = [
    ...     {"text": "The judgment of the district court is affirmed. " * 3, "meta": {"pile_set_name": "FreeLaw"}},
    ...     {"text": "She walked home along the river in the evening. " * 3, "meta": {"pile_set_name": "Books3"}},
    ... ]
    >>> data = pile_concepts(rows, ["legal"], n_per_class=1)
    >>> data.legal.texts[0][:12], data.legal.labels
    ('The judgment', array([1, 0]))
    """
    chosen = _chosen(concepts, _PILE)
    n_per_class = check_number("n_per_class", n_per_class, 1, whole=True)
    max_characters = check_number("max_characters", max_characters, _MIN_CHARACTERS, whole=True)
    if max_rows is not None:
        max_rows = check_number("max_rows", max_rows, 1, whole=True)
    check_iterable("dataset", dataset, "give a Dataset or an iterable of dicts")
    pools = {name: _Pool(same_package=False, n_pairs=n_per_class) for name in chosen}
    for number, row in enumerate(islice(dataset, max_rows)):
        text, subset = _pile_row(row, number)
        passage = _long_enough(_passage_of(text, max_characters))
        for name, pool in pools.items():
            example = _PILE[name].labelled(passage, subset) if passage and not pool.full else None
            if example:
                pool.add(_Example(example[0], str(number), example[1]), "")
        if all(pool.full for pool in pools.values()):
            break
    return _bunch(pools, {name: _PILE[name].description for name in chosen}, n_per_class, "read more rows")


def _pile_row(row: Mapping[str, Any], number: int) -> tuple[str, str]:
    try:
        text, subset = row["text"], row["meta"]["pile_set_name"]
    except (KeyError, TypeError, IndexError):
        columns = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(
            f"dataset: row {number} has {columns}; needed are 'text' and 'meta', a dict with 'pile_set_name'."
        ) from None
    if not (isinstance(text, str) and isinstance(subset, str)):
        raise ValueError(f"dataset: row {number} has text={shown(text)} and pile_set_name={shown(subset)}; give text.")
    return text, subset


def _passage_of(text: str, max_characters: int) -> str:
    """The text, or a passage of it that begins with a word at a place chosen by a hash."""
    text = text.strip()
    if len(text) > max_characters:
        start = int(_hash(text), 16) % (len(text) - max_characters + 1)
        space = re.compile(r"\s").search(text, start)
        start = space.end() if start and space and space.end() < start + max_characters // 4 else start
        text = _first_words(text[start:], max_characters)
    return text


# Texts


def _is_test(name: str) -> bool:
    *folders, base = name.split("/")
    return bool({"test", "tests", "testing"} & set(folders)) or base.startswith("test_") or base.endswith("_test.py")


def _functions(tree: ast.Module) -> Iterator[tuple[_Function, bool]]:
    """Functions of the module and methods of its classes, with whether they are methods."""
    for node in tree.body:
        if isinstance(node, _Function):
            yield node, False
        elif isinstance(node, ast.ClassDef):
            yield from ((inner, True) for inner in node.body if isinstance(inner, _Function))


def _docstring(node: ast.AST) -> str | None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return ast.get_docstring(node) if isinstance(node, kinds) else None


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return (
        len(text) >= _MIN_CHARACTERS
        and text[0].isupper()
        and text.endswith(".")
        and not _HEADING.search(text)
        and letters >= 0.9 * len(text)
    )


def _is_sentence(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text) >= _MIN_SENTENCE and len(text.split()) >= 5 and letters >= 0.85 * len(text)


def _one_sentence(text: str, max_characters: int) -> str:
    sentence = _SENTENCE_END.split(" ".join(text.split()))[0]
    return sentence.rstrip(".!? ") if _is_sentence(sentence) and len(sentence) <= max_characters else ""


def _long_enough(text: str) -> str:
    return text if len(text) >= _MIN_CHARACTERS else ""


def _first_words(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    cut = text[: max_characters + 1].rsplit(" ", 1)[0]
    return cut if len(cut) <= max_characters else text[:max_characters]


def _first_lines(lines: Sequence[str], max_characters: int) -> str:
    kept: list[str] = []
    n_characters = -1
    for line in lines:
        n_characters += len(line) + 1
        if n_characters > max_characters:
            break
        kept.append(line)
    return "\n".join(kept)


def _from_some_line(lines: list[str], max_characters: int) -> list[str]:
    """The lines from one on, chosen by a hash among those that leave the text its full length."""
    left = sum(map(len, lines)) + len(lines)
    starts = 1
    for line in lines:
        left -= len(line) + 1
        if left < max_characters:
            break
        starts += 1
    return lines[int(_hash("\n".join(lines)), 16) % starts :]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _chosen(concepts: Sequence[str] | None, known: Collection[str]) -> list[str]:
    return list(known) if concepts is None else list(check_names("concepts", concepts, tuple(known)))
