import re

import datasets
import numpy as np
import pytest

from geofloor.datasets._concepts import _LOCAL, _PILE, load_concepts, pile_concepts

PACKAGES = ["joblib", "statsmodels"]


@pytest.fixture(scope="module")
def local():
    concepts = [name for name in _LOCAL if name not in ("deep_learning", "numbers")]
    return load_concepts(concepts, n_per_class=12, packages=PACKAGES)


def check(data, n_per_class, max_characters):
    for name, concept in data.items():
        assert concept.labels.tolist() == [1, 0] * n_per_class, name
        assert len(concept.texts) == len(set(concept.texts)) == len(concept.groups)
        assert all(0 < len(text) <= max_characters for text in concept.texts)
        assert max(
            np.unique(concept.groups[concept.labels == label], return_counts=True)[1].max() for label in (0, 1)
        ) <= (12 if name == "licence" else 3)
        lengths = np.array([len(text) for text in concept.texts]).reshape(-1, 2)
        assert (lengths.max(axis=1) / lengths.min(axis=1) < 1.4).all()
        assert concept.description


def test_local_concepts_are_balanced_bounded_and_matched_in_length(local):
    check(local, 12, 320)


def texts(concept, label):
    return [text for text, its in zip(concept.texts, concept.labels, strict=True) if its == label]


def test_pairs_come_from_one_package_where_the_package_could_tell(local):
    for name, concept in local.items():
        if name != "licence":
            packages = np.array([group.split("/")[0] for group in concept.groups]).reshape(-1, 2)
            assert (packages[:, 0] == packages[:, 1]).all()


def test_tokens_that_would_tell_are_taken_out(local):
    assert not any(text.endswith(("?", ".")) for text in local.question.texts)
    assert not any(re.search(r"assert|raises|pytest|def test", text) for text in local.test_code.texts)
    assert not any(re.search(r"\b(self|cls|super)\b", text) for text in local.method.texts)
    assert {"test" in group for group in local.test_code.groups[::2]} == {True}
    assert not any("tests/" in group for group in local.test_code.groups[1::2])


def test_classes_are_what_they_say(local):
    code, prose = (" ".join(texts(local.code, label)) for label in (1, 0))
    assert code.count("=") / len(code) > 5 * prose.count("=") / len(prose)
    legal = re.compile(r"licen[sc]e|copyright|warrant|liab|permission|law|redistribut", re.IGNORECASE)
    assert np.mean([bool(legal.search(text)) for text in texts(local.licence, 1)]) > 0.8
    assert not any(re.search("licen[sc]e|copyright", text, re.IGNORECASE) for text in texts(local.licence, 0))


def test_number_tables_by_their_share_of_digits():
    data = load_concepts(["numbers"], n_per_class=10, packages=["statsmodels"])
    for label, (low, high) in ((1, (0.4, 1.0)), (0, (1e-9, 0.05))):
        for text in texts(data.numbers, label):
            characters = re.sub(r"\s", "", text)
            assert low <= sum(map(str.isdigit, characters)) / len(characters) <= high


def test_deep_learning_is_told_by_the_package_and_not_by_its_name():
    data = load_concepts(["deep_learning"], n_per_class=5, packages=["torch", "joblib"])
    assert {group.split("/")[0] for group in data.deep_learning.groups[::2]} == {"torch"}
    assert {group.split("/")[0] for group in data.deep_learning.groups[1::2]} == {"joblib"}
    assert not any(re.search("torch|joblib", text, re.IGNORECASE) for text in data.deep_learning.texts)


def test_fewer_examples_are_the_first_ones(local):
    fewer = load_concepts(["code", "question"], n_per_class=4, packages=PACKAGES)
    for name, concept in fewer.items():
        assert concept.texts == local[name].texts[:8]
        assert concept.groups.tolist() == local[name].groups[:8].tolist()


@pytest.mark.parametrize("loader", [load_concepts, lambda concepts, **kwargs: pile_concepts([], concepts, **kwargs)])
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
def test_loaders_refuse_bad_arguments(loader, concepts, arguments, message):
    with pytest.raises(ValueError, match=message):
        loader(concepts, **arguments)


def test_too_few_examples_are_an_error_that_says_how_many():
    with pytest.raises(ValueError, match=r"n_per_class=500, but 'annotated' has \d+ examples"):
        load_concepts(["annotated"], split="test", packages=["joblib"])


# The Pile

ENGLISH = "She looked at the old house near the river and thought about the winter of that year. "
FRENCH = "Nous sommes dans la maison avec les enfants qui ont mangé pour la fête du village et des amis. "
SPANISH = "Estamos en la casa con los niños que comieron para la fiesta del pueblo y de sus amigos. "
SPORTS = "The quarterback threw a touchdown in the stadium before the playoffs of the football league began. "
QUESTIONS = "It was late. Do you know where NAME has gone after dinner? I saw how NAME left the house before dawn. "


def pile_rows(n):
    """Rows with The Pile's columns, no two alike."""
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
    label = _PILE["french"].labelled
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
    with pytest.raises(ValueError, match="'legal' has 1 examples a class here"):
        pile_concepts(pile, ["legal"], n_per_class=50, max_rows=10)
    with pytest.raises(ValueError, match="row 0 has .'text'.; needed are"):
        pile_concepts([{"text": "x"}])
    with pytest.raises(ValueError, match="row 1 has .'meta', 'text'."):
        pile_concepts([pile[0], {"text": "x", "meta": None}])
    with pytest.raises(TypeError, match="dataset=3 is a int; give a Dataset or an iterable of dicts"):
        pile_concepts(3)
    with pytest.raises(ValueError, match="row 0 has text=3 and pile_set_name='FreeLaw'; give text"):
        pile_concepts([{"text": 3, "meta": {"pile_set_name": "FreeLaw"}}])
