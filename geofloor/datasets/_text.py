"""Recognize, cut and hash pieces of text."""

from __future__ import annotations

import hashlib
import re

MIN_CHARACTERS = 80  # of a piece of code or a paragraph
_MIN_SENTENCE = 24

SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z(\"'`])")
_HEADING = re.compile(r"^[A-Z]\w*(?: \w+)?\s?:|\b(?:Args|Arguments|Parameters|Returns|Raises|Examples?):|-{3}|={3}|>>>")


def is_prose(text: str) -> bool:
    """Tell whether a paragraph is made of sentences, without headings and with few symbols."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return (
        len(text) >= MIN_CHARACTERS
        and text[0].isupper()
        and text.endswith(".")
        and not _HEADING.search(text)
        and letters >= 0.9 * len(text)
    )


def is_sentence(text: str) -> bool:
    """Tell whether a sentence has at least five words and few symbols."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text) >= _MIN_SENTENCE and len(text.split()) >= 5 and letters >= 0.85 * len(text)


def first_sentence(text: str, max_characters: int) -> str:
    """Return the first sentence without its final mark, or nothing if it is too long or no sentence."""
    sentence = SENTENCE_END.split(" ".join(text.split()))[0]
    return sentence.rstrip(".!? ") if is_sentence(sentence) and len(sentence) <= max_characters else ""


def long_enough(text: str) -> str:
    """Return the text, or nothing if it is too short for an example."""
    return text if len(text) >= MIN_CHARACTERS else ""


def first_words(text: str, max_characters: int) -> str:
    """Cut the text between words, or within a word longer than the limit."""
    if len(text) <= max_characters:
        return text
    cut = text[: max_characters + 1].rsplit(" ", 1)[0]
    return cut if len(cut) <= max_characters else text[:max_characters]


def hash_of(text: str) -> str:
    """Return the SHA-256 digest in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
