"""The paper's six concepts, from rows of The Pile."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from sklearn.utils import Bunch

from geofloor._validation import check_iterable, check_number, shown
from geofloor.datasets._corpus import check_names
from geofloor.datasets._pairs import Example, PairPool, bunch_of_pairs
from geofloor.datasets._text import MIN_CHARACTERS, SENTENCE_END, first_words, hash_of, is_sentence, long_enough

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
    label = int(hash_of(text), 16) % 2  # one sentence per document, of the class chosen by a hash
    for sentence in SENTENCE_END.split(" ".join(text.split()))[1:]:  # the first may lack its beginning
        if sentence[-1] == ".?"[label] and is_sentence(sentence):
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
    """Function from passage to text and label, with a description."""

    labeled: Callable[[str, str], tuple[str, int] | None]  # given a passage and its subset
    description: str


_PILE: dict[str, _PileConcept] = {
    "question": _PileConcept(
        _pile_question,
        "A sentence from subsets of everyday language, ending in '?' or '.'. The mark is removed.",
    ),
    "french": _PileConcept(
        _pile_french,
        "A passage with at least 12% French function words, four of them different, or with less than 2%. Passages "
        "come from all subsets; the other languages of EuroParl are among the negatives.",
    ),
    "code": _PileConcept(
        _of_subsets({"Github"}, _TECHNICAL),
        "A passage of Github, or of another subset without much code and formulas.",
    ),
    "sports": _PileConcept(
        _pile_sports,
        "A web or encyclopedia passage with at least three different terms of sports, or with none. Each positive "
        "example holds some of these terms.",
    ),
    "legal": _PileConcept(
        _of_subsets({"FreeLaw"}, {"USPTO Backgrounds", "EuroParl"}),
        "A passage of FreeLaw, or of another subset except patents and debates of parliament.",
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

    The paper takes 2,000 positive and 2,000 negative examples per concept from The Pile [1]_ and gives no
    definitions of the classes. These definitions are our own.

    Parameters
    ----------
    dataset : datasets.Dataset, datasets.IterableDataset or iterable of dict
        Rows with the columns ``text`` and ``meta``, a dict with ``pile_set_name``. Rows are read from the
        start until all concepts are complete, so they should be shuffled, as in The Pile.
    concepts : sequence of {"question", "french", "code", "sports", "legal", "medical"}, default=None
        Concepts to collect; by default all.
    n_per_class : int, default=2000
        Number of examples of each of the two classes.
    max_characters : int, default=1500
        Maximum length of a text. Pythia has about one token per four characters of English and per three of
        code, so that 1,500 characters fit in 512 tokens.
    max_rows : int, default=None
        Maximum number of rows to read; by default no limit.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        As from `load_concepts`. Groups are row numbers; a row gives at most one example per concept.

    Raises
    ------
    ValueError
        If a concept is unknown, a number is out of range, a row lacks a column, or the rows end
        before all concepts are complete.

    See Also
    --------
    load_concepts : Build concepts from the source on this machine.

    Notes
    -----
    ==========  ==============================================  ==========================================
    concept     1                                               0
    ==========  ==============================================  ==========================================
    question    a sentence, ending in "?"                       a sentence, ending in "."
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

    Questions come from subsets of everyday language. Their final mark is removed, because it would give the
    label. Sports has no subset of its own and is recognized by its terms in Pile-CC, OpenWebText2 and
    Wikipedia. So these terms are in every positive example and in no negative one. A long document gives
    one passage from a place chosen by a hash, because the header of a document would give its subset. Each
    positive example is paired with a negative one of about its length.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037,
       Section 7.1.

    Examples
    --------
    Read The Pile without five of its subsets as a stream, with nothing kept on disk::

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
    chosen = list(_PILE) if concepts is None else check_names("concepts", concepts, tuple(_PILE))
    n_per_class = check_number("n_per_class", n_per_class, 1, whole=True)
    max_characters = check_number("max_characters", max_characters, MIN_CHARACTERS, whole=True)
    if max_rows is not None:
        max_rows = check_number("max_rows", max_rows, 1, whole=True)
    check_iterable("dataset", dataset, "give a Dataset or an iterable of dicts")
    pools = {name: PairPool(same_package=False, n_pairs=n_per_class) for name in chosen}
    for number, row in enumerate(islice(dataset, max_rows)):
        text, subset = _pile_row(row, number)
        passage = long_enough(_passage_of(text, max_characters))
        for name, pool in pools.items():
            example = _PILE[name].labeled(passage, subset) if passage and not pool.full else None
            if example:
                pool.add(Example(example[0], str(number), example[1]), "")
        if all(pool.full for pool in pools.values()):
            break
    return bunch_of_pairs(pools, {name: _PILE[name].description for name in chosen}, n_per_class, "read more rows")


def _pile_row(row: Mapping[str, Any], number: int) -> tuple[str, str]:
    try:
        text, subset = row["text"], row["meta"]["pile_set_name"]
    except (KeyError, TypeError, IndexError):
        columns = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(
            f"dataset: row {number} has {columns}; give rows with 'text' and 'meta', a dict with 'pile_set_name'."
        ) from None
    if not (isinstance(text, str) and isinstance(subset, str)):
        raise ValueError(f"dataset: row {number} has text={shown(text)} and pile_set_name={shown(subset)}; give text.")
    return text, subset


def _passage_of(text: str, max_characters: int) -> str:
    """Cut a passage out of a long text, from a word at a place chosen by a hash."""
    text = text.strip()
    if len(text) > max_characters:
        start = int(hash_of(text), 16) % (len(text) - max_characters + 1)
        space = re.compile(r"\s").search(text, start)
        start = space.end() if start and space and space.end() < start + max_characters // 4 else start
        text = first_words(text[start:], max_characters)
    return text
