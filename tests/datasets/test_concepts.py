import re

import numpy as np
import pytest

from geofloor.datasets import load_concepts
from geofloor.datasets._concepts import _LOCAL

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
        ) <= (12 if name == "license" else 3)
        lengths = np.array([len(text) for text in concept.texts]).reshape(-1, 2)
        assert (lengths.max(axis=1) / lengths.min(axis=1) < 1.4).all()
        assert concept.description


def test_local_concepts_are_balanced_bounded_and_matched_in_length(local):
    check(local, 12, 320)


def texts(concept, label):
    return [text for text, its in zip(concept.texts, concept.labels, strict=True) if its == label]


def test_pairs_come_from_one_package_where_the_package_could_tell(local):
    for name, concept in local.items():
        if name != "license":
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
    assert np.mean([bool(legal.search(text)) for text in texts(local.license, 1)]) > 0.8
    assert not any(re.search("licen[sc]e|copyright", text, re.IGNORECASE) for text in texts(local.license, 0))


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
def test_loader_refuses_bad_arguments(concepts, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_concepts(concepts, **arguments)


def test_too_few_examples_are_an_error_that_says_how_many():
    with pytest.raises(ValueError, match=r"n_per_class=500, but 'annotated' has \d+ examples"):
        load_concepts(["annotated"], split="test", packages=["joblib"])
