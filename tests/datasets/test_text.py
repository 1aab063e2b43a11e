import pytest

from geofloor.datasets._text import first_sentence, first_words, is_prose, is_sentence, long_enough


@pytest.mark.parametrize(
    ("text", "cut"),
    [("short", "short"), ("three short words", "three"), ("three short", "three"), ("unbroken" * 3, "unbroken")],
)
def test_text_is_cut_between_words_if_it_can_be(text, cut):
    assert first_words(text, 8) == cut


def test_first_sentence_loses_its_mark_and_must_fit():
    text = "The width of the array is\nnegative. Give another one."
    assert first_sentence(text, 60) == "The width of the array is negative"
    assert first_sentence(text, 20) == ""
    assert first_sentence("Not enough words.", 60) == ""


def test_prose_has_few_symbols_and_no_heading():
    sentences = "The estimator keeps the parameters of its constructor and copies none of the data given to it."
    assert is_prose(sentences)
    assert not is_prose("Parameters: " + sentences)
    assert not is_prose(sentences + " x[0] == y[1] + z[2] * (a - b) / (c - d) % e.")
    assert not is_sentence("x[0] == y[1] + z[2] * (a - b) / (c - d)")
    assert long_enough(sentences) == sentences
    assert long_enough(sentences[:40]) == ""
