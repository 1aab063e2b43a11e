import re

import datasets
import pytest

from geofloor.datasets import pile_concepts
from geofloor.datasets._pile import _PILE

ENGLISH = "She looked at the old house near the river and thought about the winter of that year. "
FRENCH = "Nous sommes dans la maison avec les enfants qui ont mangé pour la fête du village et des amis. "
SPANISH = "Estamos en la casa con los niños que comieron para la fiesta del pueblo y de sus amigos. "
SPORTS = "The quarterback threw a touchdown in the stadium before the playoffs of the football league began. "
QUESTIONS = "It was late. Do you know where NAME has gone after dinner? I saw how NAME left the house before dawn. "


def pile_rows(n):
    """Make rows with The Pile's columns and different texts."""
    kinds = [
        ("Pile-CC", ENGLISH),
        ("EuroParl", FRENCH),
        ("EuroParl", SPANISH),
        ("OpenWebText2", SPORTS),
        ("Pile-CC", QUESTIONS),
        ("FreeLaw", "The judgment of the district court is affirmed and the motion is denied. "),
        ("PubMed Abstracts", "Patients received a daily dose of the drug and were followed for a year. "),
        ("Github", "def area(width, height):\n    return width * height\n"),
        ("StackExchange", "The code below fails when I run it on the server: x = f(y); print(x) "),
    ]
    return [
        {
            "text": f"Number {number}w{place}. " + text.replace("NAME", f"Ann{number}") * (2 + number % 3),
            "meta": {"pile_set_name": subset},
        }
        for number in range(n)
        for place, (subset, text) in enumerate(kinds)
    ]


@pytest.fixture
def pile():
    return pile_rows(40)


def texts(concept, label):
    return [text for text, its in zip(concept.texts, concept.labels, strict=True) if its == label]


def subsets(pile, concept, label):
    chosen = concept.groups[concept.labels == label].astype(int)
    return {pile[row]["meta"]["pile_set_name"] for row in chosen}


def test_the_paper_s_six_concepts_from_rows_of_the_pile(pile):
    data = pile_concepts(pile, n_per_class=4, max_characters=200)
    assert list(data) == list(_PILE) == ["question", "french", "code", "sports", "legal", "medical"]
    for concept in data.values():
        assert concept.labels.tolist() == [1, 0] * 4
        assert max(map(len, concept.texts)) <= 200
        assert len(set(concept.groups)) == 8
    assert subsets(pile, data.code, 1) == {"Github"}
    assert not subsets(pile, data.code, 0) & {"Github", "StackExchange"}
    assert subsets(pile, data.legal, 1) == {"FreeLaw"}
    assert not subsets(pile, data.legal, 0) & {"FreeLaw", "EuroParl"}
    assert subsets(pile, data.medical, 1) == {"PubMed Abstracts"}
    assert "PubMed Abstracts" not in subsets(pile, data.medical, 0)
    assert all("enfants" in text for text in texts(data.french, 1))
    assert not any("enfants" in text for text in texts(data.french, 0))
    assert all("quarterback" in text for text in texts(data.sports, 1))
    assert not any("quarterback" in text for text in texts(data.sports, 0))
    assert all(
        re.fullmatch(r"Do you know where Ann\d+ has gone after dinner", text) for text in texts(data.question, 1)
    )
    assert all(re.fullmatch(r"I saw how Ann\d+ left the house before dawn", text) for text in texts(data.question, 0))


def test_spanish_is_not_french():
    label = _PILE["french"].labeled
    assert label(FRENCH, "EuroParl") == (FRENCH, 1)
    assert label(SPANISH, "EuroParl") == (SPANISH, 0)
    assert label(ENGLISH, "Pile-CC") == (ENGLISH, 0)


def test_datasets_streams_and_lists_give_the_same(pile):
    dataset = datasets.Dataset.from_list(pile)
    found = [pile_concepts(rows, ["legal"], n_per_class=5) for rows in (pile, dataset, dataset.to_iterable_dataset())]
    assert found[0].legal.texts == found[1].legal.texts == found[2].legal.texts


def test_a_stream_is_read_no_further_than_needed(pile):
    rows = iter(pile)
    pile_concepts(rows, ["code"], n_per_class=1)
    assert next(rows)["text"].startswith(("Number 0w", "Number 1w"))


def test_rows_that_are_too_few_or_not_of_the_pile_are_errors(pile):
    with pytest.raises(ValueError, match="'legal' has 1 examples per class here"):
        pile_concepts(pile, ["legal"], n_per_class=50, max_rows=10)
    with pytest.raises(ValueError, match="row 0 has .'text'.; give rows with"):
        pile_concepts([{"text": "x"}])
    with pytest.raises(ValueError, match="row 1 has .'meta', 'text'."):
        pile_concepts([pile[0], {"text": "x", "meta": None}])
    with pytest.raises(TypeError, match="dataset=3 is a int; give a Dataset or an iterable of dicts"):
        pile_concepts(3)
    with pytest.raises(ValueError, match="row 0 has text=3 and pile_set_name='FreeLaw'; give text"):
        pile_concepts([{"text": 3, "meta": {"pile_set_name": "FreeLaw"}}])


@pytest.mark.parametrize(
    ("concepts", "arguments", "message"),
    [
        (["codes"], {}, "concepts="),
        ("code", {}, "concepts="),
        ([], {}, "concepts="),
        (["code"], {"n_per_class": 0}, "n_per_class=0"),
        (["code"], {"max_characters": 10}, "max_characters=10"),
        (["code"], {"n_per_class": "2"}, "n_per_class='2' must be a whole number"),
        ({"code", "question"}, {}, "concepts="),
        (3, {}, "concepts=3 must be a list of some of"),
    ],
)
def test_collector_refuses_bad_arguments(concepts, arguments, message):
    with pytest.raises(ValueError, match=message):
        pile_concepts([], concepts, **arguments)
